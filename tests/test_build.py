"""setup.py: the plan (what is built and why) without a compiler at hand; the sdist; a wheel in a clean environment."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_setup = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="the tests run outside the source tree"
)
pytestmark = needs_setup

CUDA = {"torch_cuda": "13.0", "compiler": "/usr/bin/g++", "cuda_home": "/usr/local/cuda", "nvcc": "13.0"}


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pfgm_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_all_found_builds_all(setup_py: ModuleType) -> None:
    plan = setup_py.plan({}, **CUDA)
    assert plan.cpu
    assert plan.cuda
    assert plan.error is None
    assert plan.architectures == setup_py.DEFAULT_ARCHITECTURES
    assert "no GPU here" in plan.cuda_reason


def test_architectures_come_from_the_list_then_the_device(setup_py: ModuleType) -> None:
    assert setup_py.plan({}, **CUDA, device_architectures="8.6;9.0").architectures == "8.6;9.0a"
    listed = setup_py.plan({"TORCH_CUDA_ARCH_LIST": "8.0 8.6"}, **CUDA, device_architectures="9.0")
    assert listed.architectures == "8.0;8.6"
    assert "TORCH_CUDA_ARCH_LIST" in listed.cuda_reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch_cuda": None}, "CPU build"),
        ({"cuda_home": None, "nvcc": None}, "nvcc not found.*13.0.*CUDA_HOME"),
        ({"nvcc": None}, "nvcc not found"),
        (
            {"nvcc": "12.8"},
            r"nvcc is 12.8, PyTorch was built with CUDA 13.0.*major versions must agree.*13.x",
        ),
    ],
    ids=["cpu-torch", "no-cuda-home", "no-nvcc", "majors-differ"],
)
def test_what_is_missing_is_said_and_force_makes_it_an_error(
    setup_py: ModuleType, change: dict, said: str
) -> None:
    found = CUDA | change
    plan = setup_py.plan({}, **found)
    assert plan.cpu
    assert not plan.cuda
    assert plan.error is None
    assert re.search(said, plan.cuda_reason)
    assert re.search(said, plan.report())
    forced = setup_py.plan({"PFGM_FAST_CUDA": "1"}, **found)
    assert forced.error is not None
    assert re.search(said, forced.error)


def test_minor_versions_may_differ(setup_py: ModuleType) -> None:
    assert setup_py.plan({}, **CUDA | {"nvcc": "13.2"}).cuda


@pytest.mark.parametrize(
    ("listed", "hopper"),
    [("", True), ("8.0 9.0a", True), ("9.0a+PTX", True), ("9.0", False), ("9.0;9.0a", False), ("8.0", False)],
)
def test_hopper_is_built_where_it_is_sure_to_be_loaded(
    setup_py: ModuleType, listed: str, hopper: bool
) -> None:
    assert setup_py.plan({"TORCH_CUDA_ARCH_LIST": listed}, **CUDA).hopper() is hopper
    assert not setup_py.plan({"PFGM_FAST_CUDA": "0"}, **CUDA).hopper()


def test_switches(setup_py: ModuleType) -> None:
    off = setup_py.plan({"PFGM_FAST_CUDA": "0"}, **CUDA)
    assert off.cpu
    assert not off.cuda
    assert off.error is None
    assert off.cuda_reason == "PFGM_FAST_CUDA=0"
    only_cuda = setup_py.plan({"PFGM_FAST_CPU": "0"}, **CUDA)
    assert not only_cuda.cpu
    assert only_cuda.cuda


def test_no_compiler_is_one_clear_reason(setup_py: ModuleType) -> None:
    plan = setup_py.plan({}, **CUDA | {"compiler": None})
    assert not plan.cpu
    assert not plan.cuda
    assert plan.error is None
    assert "apt-get install g++" in plan.cpu_reason
    assert setup_py.plan({"PFGM_FAST_CUDA": "1"}, **CUDA | {"compiler": None}).error is not None


def test_gpus_that_are_too_old(setup_py: ModuleType) -> None:
    plan = setup_py.plan({}, **CUDA, device_architectures="7.5")
    assert not plan.cuda
    assert "7.5" in plan.cuda_reason
    assert plan.error is None
    listed = setup_py.plan({"TORCH_CUDA_ARCH_LIST": "7.5;8.0"}, **CUDA)
    assert listed.error is not None
    assert "7.5" in listed.error


def test_a_plan_changes_nothing(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    setup_py.plan({"TORCH_CUDA_ARCH_LIST": "9.0"}, **CUDA)
    assert dict(os.environ) == before


def test_nvcc_release_of_nothing_is_none(setup_py: ModuleType, tmp_path: Path) -> None:
    assert setup_py.nvcc_release(None) is None
    assert setup_py.nvcc_release(str(tmp_path)) is None
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    compiler.chmod(0o755)
    assert setup_py.nvcc_release(str(tmp_path)) == "13.0"


def test_an_nvcc_that_is_a_wrapper_leads_to_its_toolkit(setup_py: ModuleType, tmp_path: Path) -> None:
    real, wrapper = tmp_path / "cuda-13.0", tmp_path / "usr"
    for home, script in ((real, ""), (wrapper, f"echo '#$ TOP={real}/bin/..' >&2\n")):
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "nvcc").write_text(f"#!/bin/sh\n{script}")
        (home / "bin" / "nvcc").chmod(0o755)
    (real / "include").mkdir()
    (real / "include" / "cuda_runtime.h").touch()
    assert setup_py.toolkit_home(None) is None
    assert setup_py.toolkit_home(str(real)) == str(real)
    assert setup_py.toolkit_home(str(wrapper)) == str(real)
    assert setup_py.toolkit_home(str(tmp_path)) == str(tmp_path)  # no nvcc: the plan says so


# ---- what is distributed -------------------------------------------------------------------------------------------------


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


def _build(tree: Path, what: str, out: Path) -> subprocess.CompletedProcess[str]:
    code = f"import setuptools.build_meta as b; print(b.build_{what}({str(out)!r}))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False, timeout=1500
    )


def test_the_sdist_has_every_source(tmp_path: Path) -> None:
    tree, out = _clean_tree(tmp_path / "tree"), tmp_path / "out"
    out.mkdir()
    built = _build(tree, "sdist", out)
    assert built.returncode == 0, built.stderr
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    wanted = {
        str(path.relative_to(tree))
        for folder in ("csrc", "pfgm_fast")
        for path in (tree / folder).rglob("*")
        if path.is_file() and (folder == "csrc" or path.suffix == ".py")
    } | {"setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    assert wanted <= names, sorted(wanted - names)


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
    built = _build(unpacked, "wheel", out)
    log = built.stdout + built.stderr
    assert built.returncode == 0, log
    assert "C++ backend: yes" in log
    assert not re.search(r"csrc/\S+ warning:|^cc1plus: warning", log, re.MULTILINE), log
    (wheel,) = out.glob("*.whl")
    assert any(name.startswith("pfgm_fast/_C") for name in zipfile.ZipFile(wheel).namelist()), log

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
