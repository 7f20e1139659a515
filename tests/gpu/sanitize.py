"""What compute-sanitizer watches: every operator of a backend once on small, odd shapes. Run by tools/gpu.sh; not a pytest file.

compute-sanitizer --tool memcheck python -m tests.gpu.sanitize [cuda] [triton]

Without a name: cuda. Triton compiles each kernel on first use, about two seconds each, unless its cache has it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.backends.cuda import hopper_path
from pfgm_fast.ops.schema import Query
from tests.cases import TOLERANCE, direction_error

FIELDS = [  # B, M, N, bytes: each way to serve a field, each tile of it, its edges
    (33, 70, 2, False),
    (5, 40, 16, False),
    (7, 131, 97, False),
    (3, 300, 1100, False),
    (13, 67, 77, True),
    (5, 200, 128, True),
    (3, 70, 2064, True),
    (65, 67, 80, True),
    (3, 70, 16656, True),  # segments of a row
    (131, 150, 96, True),
    (33, 17000, 80, True),  # enough tiles for the first digit alone, the screening and the other digits
]


def fields(shapes: list[tuple[int, int, int, bool]]) -> None:
    for batch, count, dim, as_bytes in shapes:
        y = torch.randint(0, 256, (count, dim), dtype=torch.uint8) if as_bytes else torch.randn(count, dim)
        charges = pf.Charges(y.cuda())
        x = charges.values(torch.arange(batch) % count) + 0.5 * torch.randn(batch, dim, device="cuda")
        r = torch.logspace(-2, 1, batch, device="cuda")
        query = charges.query(x, r, 1.0)
        ops = torch.ops.pfgm_fast
        got, _ = ops.poisson_field(*query)
        for op in ("posterior_mean", "log_density", "score"):
            getattr(ops, op)(*query)
        ops.field_step(*query, 0.5 * r)
        ops.second_moment(*query, torch.randn_like(x), 1)
        exact = Query(x.double(), r.double(), charges.values().double(), None, None, None, 1.0, 0.0, 1.0)
        error = direction_error(got, reference.poisson_field(exact)[0], r)
        print(
            f"field {batch} x {count} x {dim} {'bytes' if as_bytes else 'float32'}: error {error:.1e}",
            flush=True,
        )
        assert error <= TOLERANCE


def steps() -> None:
    for shape in [(1, 1), (5, 17), (9, 128), (3, 4096), (2, 4100), (2, 8199), (2, 17000)]:
        for dtype in (torch.float32, torch.bfloat16):
            x, vx = torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda").to(dtype)
            vz, z = -torch.ones(shape[0], device="cuda"), torch.tensor(2.0, device="cuda")
            ops = torch.ops.pfgm_fast
            ops.drift(vx, vz, z, 5.0, 5.0)
            ops.euler_step.out(x, vx, vz, z, 0.5 * z, 5.0, 5.0, out=x)
            ops.heun_step(x, vx, vz, vx, vz, z, 0.5 * z, 5.0, 5.0)
            ops.normalize_field(x, vz.abs(), 5.0)
    print("steps: done", flush=True)


def without_hopper() -> None:
    """The first product as other GPUs have it, where Hopper's own path is the default."""
    if not hopper_path():
        return
    os.environ["PFGM_FAST_CUDA_HOPPER"] = "0"
    fields(FIELDS[-1:])
    del os.environ["PFGM_FAST_CUDA_HOPPER"]


def ready() -> None:
    """Tells tools/gpu.sh that PyTorch is loaded and the device is there: its time limit begins now."""
    torch.zeros(1, device="cuda").add_(1).item()
    if "PFGM_FAST_READY" in os.environ:
        Path(os.environ["PFGM_FAST_READY"]).touch()


if __name__ == "__main__":
    ready()
    torch.manual_seed(0)
    for name in sys.argv[1:] or ["cuda"]:
        with pf.use_backend(name):
            fields(FIELDS if name == "cuda" else FIELDS[:-1])
            if name == "cuda":
                without_hopper()
            steps()
    torch.cuda.synchronize()
