"""The kernels are compiled for several instruction sets; what this processor would not choose by itself is right as well."""

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
@pytest.mark.parametrize("name", ["avx512", "avx2", "portable"])
def test_every_instruction_set_is_right(name: str) -> None:
    """A processor without one takes the next that it has; AMX, where it is, is what all other tests run."""
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


TILES = """
import sys, torch, pfgm_fast as pf
from pfgm_fast import _C
print(_C.build_info()["kernels"])
generator = torch.Generator().manual_seed(0)
for count, dim in (200, 128), (301, 130), (1000, 784), (291, 1000), (260, 4096):  # not whole tiles; sets of the cache shared
    byte = torch.randint(0, 256, (count, dim), dtype=torch.uint8, generator=generator)
    for data in byte, byte / 3 + torch.rand(count, dim, generator=generator):
        charges = pf.Charges(data, value_range=(0.0, 255.0))
        for batch in 1, 16, 17, 33, 65:
            sigma = torch.logspace(-1, 3.5, batch)  # from one charge that counts to all of them
            y = charges.values()[torch.arange(batch) % count]
            x = y + sigma[:, None] * torch.randn(batch, dim, generator=generator)
            for aug_dim in 1.0, float("inf"):
                mean = pf.posterior_mean(x, sigma, charges, aug_dim=aug_dim)
                print(count, dim, data.dtype, batch, aug_dim, mean.double().sum().item().hex(), mean.view(torch.int32).sum().item())
"""


@pytest.mark.skipif(status()["cpu"] != "ok", reason="the cpu backend is not built")
def test_tiles_of_amx_give_the_bits_of_avx512() -> None:
    """Whole numbers are exact in both, and everything else is the same code."""
    said = {}
    for name in "amx", "avx512":
        environment = os.environ | {"PFGM_FAST_CPU_ISA": name, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", TILES], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        used, *said[name] = done.stdout.splitlines()
        if used != name:
            pytest.skip(f"this processor has no {name}")
    assert len(said["amx"]) == 5 * 2 * 5 * 2
    assert said["amx"] == said["avx512"]


BESIDE = """
import torch, pfgm_fast as pf
torch.manual_seed(0)
a, b = torch.randn(300, 512).bfloat16(), torch.randn(512, 200).bfloat16()
charges = pf.Charges(torch.randint(0, 256, (500, 784), dtype=torch.uint8))
x = charges.values()[:40] + torch.randn(40, 784)
product, mean = a @ b, pf.posterior_mean(x, 1.0, charges)
for _ in range(5):
    assert torch.equal(a @ b, product)
    assert torch.equal(pf.posterior_mean(x, 1.0, charges), mean)
"""


@pytest.mark.skipif(status()["cpu"] != "ok", reason="the cpu backend is not built")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_tiles_are_shared_with_pytorchs_own(threads: str) -> None:
    """PyTorch's bfloat16 products configure AMX too, in the same threads; a processor without it runs the same calls."""
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", BESIDE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


MANY_THREADS = """
import torch, pfgm_fast as pf
charges = pf.Charges(torch.randint(0, 256, (400, 256), dtype=torch.uint8))
x = charges.values()[:3] + 30 * torch.randn(3, 256)  # spread: through the second product
means = []
for threads in 1, 300:
    torch.set_num_threads(threads)
    means.append(pf.posterior_mean(x, 30.0, charges))
assert torch.equal(*means)
"""


@pytest.mark.skipif(status()["cpu"] != "ok", reason="the cpu backend is not built")
def test_more_threads_than_columns() -> None:
    done = subprocess.run([sys.executable, "-c", MANY_THREADS], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)


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
