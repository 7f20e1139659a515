"""setup.py: the plan (what is built and why) without a compiler at hand; clang."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
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


def test_info_names_the_kernels_in_use() -> None:
    code = "import pfgm_fast as pf; print(pf.info()['build'])"
    said = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PFGM_FAST_CPU_ISA": "portable"}, capture_output=True, text=True
    )  # fmt: skip
    if "None" in said.stdout:
        pytest.skip("the C++ backend is not built")
    assert "'kernels': 'portable'" in said.stdout, said


ON_THIS_BUILD = """
import torch, pfgm_fast as pf
from pfgm_fast.backends import reference
from tests.cases import CASES, direction_error
print(pf.info()["build"]["compiler"])
for name in ("plane", "odd-sizes", "bytes", "bytes-odd", "near-duplicates-100", "D=inf", "D=128", "weights"):
    case = CASES[name]()
    values = pf.Charges(pf.Charges(case.charges).values().double(), case.weights)
    exact = reference.poisson_field(values.query(case.x.double(), case.r.double(), case.aug_dim))[0]
    with pf.use_backend("cpu"):
        field = pf.poisson_field(case.x, case.r, pf.Charges(case.charges, case.weights), case.aug_dim)[0]
    print(name, direction_error(field, exact, case.r))
x, v, vz, z = torch.randn(9, 771), 0.3 * torch.randn(9, 771), -torch.rand(9) - 0.1, torch.linspace(2.0, 8.0, 9)
with pf.use_backend("cpu"):
    step = torch.ops.pfgm_fast.euler_step(x, v, vz, z, 0.9 * z, 5.0, 5.0)
exact = reference.euler_step(*(a.double() for a in (x, v, vz, z, 0.9 * z)), 5.0, 5.0)
print("euler_step", ((step - exact).norm(dim=1) / exact.norm(dim=1)).max().item())
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ here")
def test_clang_builds_a_backend_that_is_right(tmp_path: Path) -> None:
    """setup.py with CXX=clang++, no warning in our sources; each instruction set's results in a process of its own."""
    environment = os.environ | {"CXX": "clang++", "CC": "clang", "PFGM_FAST_CPU": "1", "PFGM_FAST_CUDA": "0"}
    environment |= {"MAX_JOBS": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "package")}
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", str(tmp_path / "objects")]
    command += ["--build-lib", str(tmp_path / "package")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if "csrc/" in line and "warning:" in line] == []
    kinds = [""]
    if platform.machine() == "x86_64":
        kinds += ["avx2", "portable"]
    if platform.machine() == "x86_64" and shutil.which("objdump"):
        for name, register in (("avx2", "%ymm"), ("avx512", "%zmm")):
            (compiled,) = (tmp_path / "objects").rglob(f"{name}.o")
            code = subprocess.run(
                ["objdump", "-d", compiled], capture_output=True, text=True, check=True
            ).stdout
            assert len(re.findall(rf"vfmadd\w+ps .*{register}", code)) > 20, name
    shutil.copytree(
        ROOT / "pfgm_fast",
        tmp_path / "package" / "pfgm_fast",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.so", "__pycache__", "_build.json"),
    )
    (tmp_path / "package" / "tests").symlink_to(ROOT / "tests")
    for kind in kinds:
        chosen = environment | ({"PFGM_FAST_CPU_ISA": kind} if kind else {})
        done = subprocess.run(
            [sys.executable, "-c", ON_THIS_BUILD],
            cwd=tmp_path / "package",
            env=chosen,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        compiler, *lines = done.stdout.splitlines()
        assert compiler.startswith("clang")
        errors = {name: float(error) for name, error in (line.split() for line in lines)}
        assert len(errors) == 9
        assert {name: error for name, error in errors.items() if not error <= 1e-5} == {}, kind
