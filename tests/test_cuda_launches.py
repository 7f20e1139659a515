"""The host side of csrc/cuda on large shapes and real devices' limits: dry runs over the emulated runtime, where every launch is
checked (tests/cuda_host/runtime.h) and none is executed."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

import pfgm_fast  # noqa: F401 - defines the operators' schemas
from tests import cuda_tools

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to compile the emulated kernels"
)

SCRATCH = 1 << 30
"""What a call may take at a time (csrc/cuda/field.cu, kScratch), unless one query alone needs more."""


@pytest.fixture(scope="module")
def emulated() -> cuda_tools.Emulated:
    return cuda_tools.Emulated()


def _call(
    op: str,
    batch: int,
    count: int,
    dim: int,
    kind: str = "bytes",  # of charges: bytes, float32, float64
    *,
    aug_dim: float = 1.0,
    weighted: bool = False,
    prepared: bool = True,
) -> object:
    """An operator of the emulated library on memory that nobody reads: in a dry run only shapes matter."""
    dtype = torch.float64 if kind == "float64" else torch.float32
    x, r = torch.empty(batch, dim, dtype=dtype), torch.empty(batch, dtype=dtype)
    charges = torch.empty(count, dim, dtype=torch.uint8 if kind == "bytes" else dtype)
    norms = torch.empty(count, dtype=torch.float64)
    query = (
        *(x, r, charges, norms if weighted else None),
        *(torch.empty(dim, dtype=dtype) if prepared else None, norms if prepared else None),
        *(127.5 if kind == "bytes" else 1.0, -1.0 if kind == "bytes" else 0.0, aug_dim),
    )
    more: dict[str, tuple[Tensor | int, ...]] = {"field_step": (r,), "second_moment": (x, 1)}
    return getattr(torch.ops.pfgm_fast_cuda, op)(*query, *more.get(op, ()))


OPERATORS = ("posterior_mean", "poisson_field", "score", "log_density", "second_moment", "field_step")


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("kind", ["bytes", "float32", "float64"])
def test_scratch_memory_is_bounded(emulated: cuda_tools.Emulated, op: str, kind: str) -> None:
    """B M of 3 billion pairs would be 49 GB; each part's memory is the next one's, and freed in the end."""
    for batch, count, dim in (
        (65536, 50000, 64),
        (65536, 50000, 128),
        (128, 3_000_000, 64),
        (20, 9_000_000, 64),
    ):
        with emulated.devices((132, 90)):
            _call(op, batch, count, dim, kind)
            assert 0 < emulated.scratch() <= SCRATCH
            assert emulated.scratch(most=False) == 0
            assert emulated.launches()
