"""The kernels are compiled three times; what this processor would not choose by itself is right as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pfgm_fast.ops.dispatch import status
from tests.cases import CASES, TOLERANCE

SCRIPT = """
import sys, torch, pfgm_fast as pf
from tests.cases import CASES, direction_error
for name, build in CASES.items():
    case = build()
    with pf.use_backend("reference"):
        values = pf.Charges(pf.Charges(case.charges).values().double(), case.weights)
        exact = pf.poisson_field(case.x.double(), case.r.double(), values, case.aug_dim)[0]
    with pf.use_backend("cpu"):
        field = pf.poisson_field(case.x, case.r, pf.Charges(case.charges, case.weights), case.aug_dim)[0]
    print(name, direction_error(field, exact, case.r))
"""


@pytest.mark.skipif(status()["cpu"] != "ok", reason="the cpu backend is not built")
@pytest.mark.parametrize("name", ["avx2", "portable"])
def test_every_instruction_set_is_right(name: str) -> None:
    """A processor without AVX2 takes the portable kernels for both."""
    environment = os.environ | {"PFGM_FAST_CPU_ISA": name}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment
    )
    errors = {case: float(error) for case, error in (line.split() for line in done.stdout.splitlines())}
    assert set(errors) == set(CASES)
    assert {case: error for case, error in errors.items() if not error <= TOLERANCE} == {}


BYTES = """
import torch, pfgm_fast as pf
byte = torch.arange(256, dtype=torch.uint8).repeat(3)[None, :701]
for low, high in (-1.0, 1.0), (-1.0, 2.0), (0.0, 1.0), (0.0, 255.0), (-0.3, 0.7), (-3.0, 1e-3), (1e-3, 1e4):
    charges = pf.Charges(byte, value_range=(low, high))
    with pf.use_backend("cpu"):
        mean = pf.posterior_mean(torch.zeros(1, 701), 1.0, charges)
    print(low, high, int((mean != byte / (255.0 / (high - low)) + low).sum()))
"""


@pytest.mark.skipif(status()["cpu"] != "ok", reason="the cpu backend is not built")
@pytest.mark.parametrize("name", ["avx512", "avx2", "portable"])
def test_every_instruction_set_decodes_bytes_to_the_bit(name: str) -> None:
    """A lone charge is its own mean: all 256 values, in every lane, for any range of values."""
    environment = os.environ | {"PFGM_FAST_CPU_ISA": name}
    done = subprocess.run(
        [sys.executable, "-c", BYTES], capture_output=True, text=True, check=True, env=environment
    )
    wrong = {line for line in done.stdout.splitlines() if not line.endswith(" 0")}
    assert len(done.stdout.splitlines()) == 7
    assert wrong == set()


KERNELS = Path(__file__).resolve().parent.parent / "csrc" / "cpu" / "kernels"
COMPILERS = {"clang": "clang++", "AArch64": "aarch64-linux-gnu-g++"}


@pytest.mark.skipif(not KERNELS.exists(), reason="the tests run outside the source tree")
@pytest.mark.parametrize("name", COMPILERS)
def test_kernels_compile_elsewhere(name: str, tmp_path: Path) -> None:
    compiler = shutil.which(COMPILERS[name])
    if compiler is None:
        pytest.skip(f"no {COMPILERS[name]} here")
    for source in sorted(KERNELS.glob("*.cpp")):
        command = [compiler, "-std=c++20", "-O0", "-Wall", "-Werror", "-Wno-psabi", "-Wno-unused-function"]
        target = tmp_path / f"{source.stem}.o"
        done = subprocess.run(
            [*command, "-c", str(source), "-o", str(target)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
