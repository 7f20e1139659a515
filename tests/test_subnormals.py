"""The C++ backend computes without numbers below the normal range (csrc/cpu/subnormals.h), and leaves its caller's arithmetic alone."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.ops.dispatch import status

pytestmark = pytest.mark.skipif(status()["cpu"] != "ok", reason=f"C++: {status()['cpu']}")

TINY = 1e-39
"""Below the smallest normal float32."""


@pytest.mark.parametrize("batch", [1, 4096], ids=["one-thread", "all-threads"])
def test_a_call_leaves_the_processor_as_it_was(batch: int) -> None:
    before = torch.set_flush_denormal(False)
    assert before
    tiny = torch.full((1 << 20,), TINY)
    kept = 0.5 * tiny
    assert bool((kept > 0).all())
    y = torch.randn(4096, 2)
    with pf.use_backend("cpu"):
        pf.posterior_mean(y[:batch] + 0.1, 0.01, y, math.inf)
    assert torch.equal(0.5 * tiny, kept)  # in this thread and in the pool's


@pytest.mark.parametrize("aug_dim", [1.0, 2048.0, math.inf])
def test_weights_that_vanish_change_nothing(aug_dim: float) -> None:
    """Charges at every distance, so that weights run from 1 through the whole range below."""
    distance = torch.logspace(-2, 3, 2000)
    y = torch.stack([distance, 0 * distance], 1)
    x, r = torch.tensor([[0.0, 0.3], [5.0, 0.0]]), torch.tensor([0.05, 2.0])
    with pf.use_backend("cpu"):
        got = pf.posterior_mean(x, r, y, aug_dim)
    with pf.use_backend("reference"):
        expected = pf.posterior_mean(x.double(), r.double(), y.double(), aug_dim)
    assert ((got - expected) / r[:, None]).abs().max() <= 1e-5


def test_data_below_the_normal_range_are_read() -> None:
    y = torch.tensor([[TINY, 1.0], [2.0, 3.0]])
    with pf.use_backend("cpu"):
        assert pf.posterior_mean(torch.tensor([[0.0, 1.0]]), 1e-3, y, 1.0)[0, 0] >= 0
        assert pf.posterior_mean(y[:1], 1e-3, y, math.inf).isfinite().all()
