"""What is distributed: the sdist, a wheel in a clean environment, and builds that fail in part or whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="the tests run outside the source tree"
)


def _clean_tree(folder: Path) -> Path:
    """The files that git knows, in a folder of their own: nothing that happens to lie about gets into a distribution."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    if not any(listed):
        pytest.skip("needs the git checkout: the list of its files")
    for name in filter(None, listed):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _build(tree: Path, what: str, out: Path, tools: Path | None = None) -> subprocess.CompletedProcess[str]:
    """tools: a folder that comes first on PATH."""
    code = f"import setuptools.build_meta as b; print(b.build_{what}({str(out)!r}))"
    environment = os.environ | ({"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"} if tools else {})
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )


def _quick_compiler(folder: Path) -> Path:
    """A folder with a g++ that optimises less: what is tested is the package, and `make env` has compiled the same sources with -O3."""
    folder.mkdir()
    compiler = folder / "g++"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} "$@" -O1\n')
    compiler.chmod(0o755)
    return folder


def test_the_sdist_has_every_source(tmp_path: Path) -> None:
    tree, out = _clean_tree(tmp_path / "tree"), tmp_path / "out"
    out.mkdir()
    built = _build(tree, "sdist", out)
    assert built.returncode == 0, built.stderr
    assert "SetuptoolsDeprecationWarning" not in built.stderr
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
        about = tar.extractfile(
            next(m for m in tar.getmembers() if m.name.count("/") == 1 and m.name.endswith("PKG-INFO"))
        )
        assert about is not None
        metadata = about.read().decode()
    wanted = {
        str(path.relative_to(tree))
        for folder in ("csrc", "pfgm_fast")
        for path in (tree / folder).rglob("*")
        if path.is_file() and (folder == "csrc" or path.suffix == ".py")
    } | {"setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "pfgm_fast/py.typed"}
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if name.endswith((".so", "_build.json"))]
    _check_metadata(metadata)


def _check_metadata(metadata: str) -> None:
    for line in ("Name: pfgm-fast", "License: MIT", "License-File: LICENSE", "Requires-Dist: torch>=2.10"):
        assert line in metadata.splitlines(), metadata[:2000]
    core = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE)
    assert not {"triton", "matplotlib", "scikit-learn", "scipy"} & set(core)
    for extra, needs in (("triton", "triton>=3.6"), ("plots", "matplotlib"), ("demo", "scikit-learn")):
        assert re.search(rf"^Requires-Dist: {needs}.*extra == .{extra}.$", metadata, re.MULTILINE), extra


def test_the_licence_is_said_so_that_every_setuptools_takes_it() -> None:
    """`license = "MIT"` stops setuptools before 77, `license = {text = ...}` is on its way out of later ones."""
    text = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"^license(-files)? *=", text, re.MULTILINE)
    assert re.search(r'^dynamic = \[.*"license".*\]', text, re.MULTILINE)
    assert 'license="MIT"' in (ROOT / "setup.py").read_text()


# ---- builds that fail, in part or whole ----------------------------------------------------------------------------------


def _small_tree(folder: Path) -> Path:
    """The package with a C++ library of two files and one CUDA source: enough to be built, or to fail."""
    tree = _clean_tree(folder)
    for path in (tree / "csrc" / "cpu").rglob("*.cpp"):
        path.unlink()
    for path in (tree / "csrc" / "cuda").glob("*.cu"):
        path.unlink()
    (tree / "csrc" / "cuda" / "one.cu").write_text("int one() { return 1; }\n")
    (tree / "csrc" / "build_info.cpp").write_text(
        '#include <Python.h>\nstatic PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};\n'
        "PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }\n"
    )
    return tree


def _setup(
    tree: Path, *arguments: str, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run setup.py; `before`: statements that change what it will find."""
    code = f"{before}\nimport sys, runpy\nsys.argv = ['setup.py', *{list(arguments)!r}]\nrunpy.run_path('setup.py', run_name='__main__')"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PFGM_FAST_", "PYTHONPATH"))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=clean | environment, capture_output=True, text=True, check=False
    )  # fmt: skip


def _outcome(tree: Path) -> dict[str, str]:
    found = json.loads((tree / "pfgm_fast" / "_build.json").read_text())
    return {name: outcome["state"] for name, outcome in found.items()}


def _python(tree: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the package in `tree`, and without what an editable installation would add to it."""
    alone = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]\n"
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, "-c", alone + code], cwd=tree, env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_cuda_library_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    """nvcc and a CUDA PyTorch, as far as setup.py can see, no GPU; nvcc then compiles nothing."""
    tree, home = _small_tree(tmp_path / "tree"), tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "tools, release 13.0, V13.0.88" || exit 3\n')
    nvcc.chmod(0o755)
    cuda = (
        "import torch\nfrom torch.utils import cpp_extension\n"
        f"torch.version.cuda = '13.0'\ncpp_extension.CUDA_HOME = {str(home)!r}"
    )
    stale = tree / "pfgm_fast" / f"_C_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.touch()
    done = _setup(tree, "build_ext", "--inplace", before=cuda)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no GPU here" in done.stdout
    assert "the cuda backend could not be built" in done.stderr
    assert _outcome(tree) == {"cpu": "built", "cuda": "failed"}
    assert list((tree / "pfgm_fast").glob("_C.*so"))
    assert not stale.exists()
    forced = _setup(tree, "build_ext", "--inplace", before=cuda, PFGM_FAST_CUDA="1", PFGM_FAST_CPU="0")
    assert forced.returncode != 0
    said = _python(tree, "import pfgm_fast as pf; print(pf.info()['not_built']['cuda'])")
    assert "its build failed: " in said.stdout, said.stderr


def test_a_failing_compiler_leaves_a_package_that_says_so(tmp_path: Path) -> None:
    tree, out = _small_tree(tmp_path / "tree"), tmp_path / "out"
    compiler = tmp_path / "bin" / "broken-g++"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\ncase "$1" in -*version) echo "g++ 12.2.0";; *) exit 4;; esac\n')
    compiler.chmod(0o755)
    broken = {"CXX": str(compiler), "CC": str(compiler)}
    done = _setup(tree, "bdist_wheel", "-d", str(out), **broken)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert _outcome(tmp_path / "installed") == {"cpu": "failed", "cuda": "not built"}
    assert _setup(tree, "bdist_wheel", "-d", str(out), PFGM_FAST_CPU="1", **broken).returncode != 0
    call = "import torch, pfgm_fast as pf\nfor _ in range(2): pf.posterior_mean(torch.zeros(2, 3), 1.0, torch.eye(3))\n"
    call += "pf.log_density(torch.zeros(2, 3), 1.0, torch.eye(3))"
    said = _python(tmp_path / "installed", call)
    assert said.returncode == 0, said.stderr
    assert (
        said.stderr.count("RuntimeWarning: pfgm_fast: the cpu backend is not there (its build failed: ") == 1
    )
    assert "reference serves instead" in said.stderr


def test_nothing_is_compiled_where_nothing_is_asked_for(tmp_path: Path) -> None:
    tree, out = _small_tree(tmp_path / "tree"), tmp_path / "out"
    assert _setup(tree, "bdist_wheel", "-d", str(out), PFGM_FAST_CPU="0").returncode == 0
    (wheel,) = out.glob("*-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert _outcome(tmp_path / "installed") == {"cpu": "not built", "cuda": "not built"}
    call = "import torch, pfgm_fast as pf; pf.posterior_mean(torch.zeros(2, 3), 1.0, torch.eye(3))"
    assert "RuntimeWarning" not in _python(tmp_path / "installed", call).stderr  # it was left out on purpose


@pytest.mark.slow
def test_a_wheel_works_in_a_clean_environment(tmp_path: Path) -> None:
    """Built from the sdist, as users do, installed without its dependencies over this environment's, run elsewhere."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    tree, out = _clean_tree(tmp_path / "tree"), tmp_path / "out"
    out.mkdir()
    assert _build(tree, "sdist", out).returncode == 0
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    built = _build(unpacked, "wheel", out, _quick_compiler(tmp_path / "tools"))
    log = built.stdout + built.stderr
    assert built.returncode == 0, log
    assert "C++ backend: yes" in log
    assert not re.search(r"csrc/\S+ warning:|^cc1plus: warning", log, re.MULTILINE), log
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        _check_metadata(archive.read(next(name for name in names if name.endswith("/METADATA"))).decode())
    (library,) = (name for name in names if name.startswith("pfgm_fast/_C."))
    python_files = {str(path.relative_to(tree)) for path in (tree / "pfgm_fast").rglob("*.py")}
    package = {name for name in names if ".dist-info/" not in name}
    assert package == {library, "pfgm_fast/py.typed", "pfgm_fast/_build.json"} | python_files

    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "outer.pth").write_text("\n".join(outer) + "\n")
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True
    )
    code = (
        "import torch, pfgm_fast as pf\n"
        "from pathlib import Path\n"
        f"assert Path(pf.__file__).is_relative_to({str(home)!r}), pf.__file__\n"
        "m = pf.posterior_mean(torch.zeros(2, 3), 1.0, torch.eye(3))\n"
        "torch.testing.assert_close(m, torch.full((2, 3), 1 / 3))\n"
        "print(pf.info()['build'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "compiler" in ran.stdout
