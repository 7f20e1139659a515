"""All of CIFAR-10's size as charges: what a call takes beyond its inputs and its output stays under 64 MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pfgm_fast.ops.dispatch import status

LIMIT = 64e6

SCRIPT = """
import ctypes, re, torch, pfgm_fast as pf
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
count, dim, batch = 50000, 3072, 128
data = torch.randint(0, 256, (count, dim), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
charges = pf.Charges(data)
radii = torch.logspace(-1, 3.5, batch)  # from rows that see one charge to rows that see all
x = charges.values(torch.arange(batch)) + radii[:, None] * torch.randn(batch, dim) / dim**0.5
r = radii / dim**0.5
with pf.use_backend("cpu"):
    pf.poisson_field(x[:2], r[:2], charges.values(slice(0, 300)))  # threads and libraries are there
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
    before = resident()
    field, _ = pf.poisson_field(x, r, charges)
print(peak() - before - field.numel() * 4)
"""


@pytest.mark.slow
@pytest.mark.skipif(status()["cpu"] != "ok", reason="the cpu backend is not built")
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="peaks are read from Linux's /proc, with glibc's malloc_trim",
)
def test_memory_beyond_inputs_and_output() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    taken = int(done.stdout.split()[-1])
    assert 1e6 < taken <= LIMIT, f"{taken / 1e6:.1f} MB"
