"""Laws of the field that hold for all data, on drawn shapes and scales: `cpu` (float32) beside `reference` in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.ops.dispatch import status
from tests.cases import TOLERANCE, direction_error

if status()["cpu"] != "ok":
    pytest.skip(f"the cpu backend is not built: {status()['cpu']}", allow_module_level=True)

LAWS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DIMENSIONS = st.sampled_from([0.5, 1.0, 3.0, 128.0, 1e4, math.inf])


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """x (B, N), r (B,), charges (M, N) floats or bytes, D; x within reach of the charges, scales from 1e-2 to 1e2."""
    batch, count = draw(st.integers(1, 40)), draw(st.integers(1, 160))
    dim = draw(st.one_of(st.integers(1, 20), st.integers(21, 400)))
    scale = 10.0 ** draw(st.floats(-2, 2))
    aug_dim, seed = draw(DIMENSIONS), draw(st.integers(0, 2**31 - 1))
    generator = torch.Generator().manual_seed(seed)
    if draw(st.booleans()):
        charges, scale = torch.randint(0, 256, (count, dim), generator=generator, dtype=torch.uint8), 1.0
        values = pf.Charges(charges).values()
    else:
        charges = values = scale * torch.randn(count, dim, generator=generator)
    radius = scale * 10.0 ** (3 * torch.rand(batch, generator=generator) - 2)
    picked = values[torch.randint(count, (batch,), generator=generator)]
    x = picked + radius[:, None] * torch.randn(batch, dim, generator=generator)
    r = radius if math.isinf(aug_dim) else radius * math.sqrt(aug_dim)
    return x, r, charges, aug_dim


def _field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float, weights: Tensor | None = None) -> Tensor:
    with pf.use_backend("cpu"):
        return pf.poisson_field(x, r, pf.Charges(charges, weights), aug_dim)[0]


def _exact(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float, weights: Tensor | None = None) -> Tensor:
    values = pf.Charges(charges).values().double()
    with pf.use_backend("reference"):
        return pf.poisson_field(x.double(), r.double(), pf.Charges(values, weights), aug_dim)[0]


@LAWS
@given(problems())
def test_cpu_is_the_reference(problem: tuple[Tensor, Tensor, Tensor, float]) -> None:
    x, r, charges, aug_dim = problem
    assert direction_error(_field(*problem), _exact(x, r, charges, aug_dim), r) <= TOLERANCE


@LAWS
@given(problems(), st.integers(0, 2**31 - 1))
def test_the_order_of_the_charges_does_not_matter(
    problem: tuple[Tensor, Tensor, Tensor, float], seed: int
) -> None:
    x, r, charges, aug_dim = problem
    order = torch.randperm(len(charges), generator=torch.Generator().manual_seed(seed))
    assert direction_error(_field(x, r, charges[order], aug_dim), _field(*problem), r) <= 2 * TOLERANCE


@LAWS
@given(problems(), st.integers(-8, 8))
def test_a_shift_of_everything_does_not_matter(
    problem: tuple[Tensor, Tensor, Tensor, float], steps: int
) -> None:
    """Everything on a grid of 2⁻¹⁰ and the shift a power of two, so that float32 shifts exactly."""
    x, r, charges, aug_dim = problem
    values = pf.Charges(charges).values()
    scale = 2.0 ** math.floor(math.log2(float(values.abs().max()) + 1e-3))

    def grid(t: Tensor) -> Tensor:
        return (t / scale * 1024).round().clamp(-(2**20), 2**20) / 1024 * scale

    x, values, shift = grid(x), grid(values), steps * scale
    shifted = _field(x + shift, r, values + shift, aug_dim)
    assert direction_error(shifted, _field(x, r, values, aug_dim), r) <= 2 * TOLERANCE


@LAWS
@given(problems())
def test_a_charge_is_two_of_half_its_weight(problem: tuple[Tensor, Tensor, Tensor, float]) -> None:
    x, r, charges, aug_dim = problem
    weights = torch.linspace(0.5, 2.0, len(charges), dtype=torch.float64)
    halved = torch.cat([weights, weights[:1] / 2])
    halved[0] /= 2
    split = _field(x, r, torch.cat([charges, charges[:1]]), aug_dim, halved)
    assert direction_error(split, _field(x, r, charges, aug_dim, weights), r) <= 2 * TOLERANCE


@LAWS
@given(problems())
def test_a_large_dimension_is_the_gaussian_limit(problem: tuple[Tensor, Tensor, Tensor, float]) -> None:
    """r = σ√D and D → ∞ (PFGM++, arXiv 2302.04265, proposition 3): log-weights differ by O(d²/(Dσ²))(N + d²/σ²)."""
    x, r, charges, aug_dim = problem
    sigma = (r if math.isinf(aug_dim) else r / math.sqrt(aug_dim)).double()
    values = pf.Charges(charges).values().double()
    large = 1e12
    with pf.use_backend("cpu"):
        near = pf.poisson_field(x.double(), sigma * math.sqrt(large), values, large)[0]
        limit = pf.poisson_field(x.double(), sigma, values, math.inf)[0]
    squares = torch.cdist(x.double(), values).square().max(1).values / sigma**2
    allowed = (
        1e-9 + 4 * (squares * (squares + x.shape[1]) / large) * torch.cdist(x.double(), values).max(1).values
    )
    assert ((near - limit).norm(dim=1) <= allowed + 1e-9 * limit.norm(dim=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(70, 3, 500), (90, 900, 300), (64, 400, 2)], ids=str)
def test_one_and_two_threads_agree(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, count, dim = shape
    generator = torch.Generator().manual_seed(2)
    charges = torch.randint(0, 256, (count, dim), generator=generator, dtype=torch.uint8)
    stored = charges if dtype == torch.uint8 else pf.Charges(charges).values()
    r = torch.logspace(-2, 1.5, batch)
    x = pf.Charges(charges).values()[torch.arange(batch) % count]
    x = x + r[:, None] * torch.randn(batch, dim, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(_field(x, r, stored, 1.0))
    finally:
        torch.set_num_threads(before)
    assert direction_error(found[0], found[1].double(), r) <= 1e-6


def test_bytes_are_decoded_as_pytorch_decodes_them() -> None:
    """A lone charge is its own mean: all 256 values to the bit, in every lane."""
    byte = torch.arange(256, dtype=torch.uint8).repeat(3)[None, :701]
    with pf.use_backend("cpu"):
        mean = pf.posterior_mean(torch.zeros(1, 701), 1.0, byte)
    assert torch.equal(mean, byte / 127.5 - 1)
