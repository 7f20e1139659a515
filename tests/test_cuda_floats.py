"""Float charges on integer tensor cores (csrc/cuda/floats.cu) executed on the host: digits, parts, and what is computed anew."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

import pfgm_fast as pf
from tests import cuda_tools
from tests.cases import TOLERANCE, Case, direction_error
from tests.test_cuda_bytes import _call, _exact

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to compile the emulated kernels"
)


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    torch.ops.load_library(str(cuda_tools.host_library()))


def _case(batch: int, count: int, dim: int, spread: float, aug_dim: float = 1.0) -> Case:
    """Charges with a mean and a few directions, as data have; radii from 0.01 to `spread` times the charges' own distances."""
    charges = torch.randn(count, 8) @ torch.randn(8, dim) / 3 + 0.2 * torch.randn(count, dim) + 1.5
    radii = torch.logspace(-2, math.log10(spread), batch) * math.sqrt(dim)
    x = charges[torch.arange(batch) % count] + radii[:, None] * torch.randn(batch, dim) / math.sqrt(dim)
    return Case(x, radii / math.sqrt(dim) + 1e-3, charges, aug_dim)


SHAPES = {
    "one-part": (65, 300, 64),
    "padded": (70, 390, 97),
    "two-query-tiles": (131, 260, 80),
    "long": (66, 270, 1100),
}


@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["training", "spread"])
@pytest.mark.parametrize("name", SHAPES)
def test_field_against_float64(name: str, spread: float) -> None:
    case = _case(*SHAPES[name], spread)
    field, lse = _call("poisson_field", case)
    expected, expected_lse = _exact("poisson_field", case)
    assert direction_error(field, expected, case.r) <= TOLERANCE / 5
    torch.testing.assert_close(lse, expected_lse, rtol=3e-6, atol=3e-5)


@pytest.mark.parametrize("aug_dim", [1.0, 2048.0, math.inf])
def test_every_operator(aug_dim: float) -> None:
    case = _case(65, 260, 112, 3.0, aug_dim)
    scale = 1 + _exact("poisson_field", case)[0].norm(dim=1)
    mean, step = _call("posterior_mean", case)[0], _call("field_step", case, 0.5 * case.r)[0]
    assert ((mean - _exact("posterior_mean", case)[0]).norm(dim=1) / math.sqrt(112)).max() <= TOLERANCE
    assert ((step - _exact("field_step", case, 0.5 * case.r)[0]).norm(dim=1) / scale).max() <= TOLERANCE
    torch.testing.assert_close(_call("log_density", case), _exact("log_density", case), rtol=3e-6, atol=3e-5)
    names = ("gradient", "field", "rate", "trace")
    for name, got, expected in zip(names, _call("score", case), _exact("score", case), strict=False):
        size = expected.abs().max() if expected.dim() == 1 else expected.norm(dim=1).max()
        error = (got - expected).abs() if got.dim() == 1 else (got - expected).norm(dim=1)
        assert error.max() <= 2e-5 * size, name


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4, 0.0])
@pytest.mark.parametrize("copies", [2, 100])
def test_near_duplicates_are_computed_anew(copies: int, noise: float) -> None:
    """The products' rounding (2^-24 of a row's largest element) exceeds the copies' distances; few copies, and more than a few."""
    base = _case(70, 400 // copies, 80, 0.1)
    charges = (base.charges.repeat(copies, 1) + noise * torch.randn(400 // copies * copies, 80)).contiguous()
    radii = torch.logspace(-4, 0, 70)
    x = charges[torch.arange(70) * 5 % len(charges)] + radii[:, None] * torch.randn(70, 80) / math.sqrt(80)
    case = Case(x, radii / math.sqrt(80), charges)
    assert (
        direction_error(_call("poisson_field", case)[0], _exact("poisson_field", case)[0], case.r)
        <= TOLERANCE
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_outliers_and_offsets(scale: float) -> None:
    """One element of a few charges and queries is a thousand times larger than all others: its row's digits are coarse."""
    case = _case(80, 300, 96, 1.0)
    charges, x = case.charges * scale, case.x * scale
    charges[::7, 5] += 300 * scale
    x[::11, 5] += 300 * scale
    case = Case(x, case.r * scale, charges)
    assert (
        direction_error(_call("poisson_field", case)[0], _exact("poisson_field", case)[0], case.r)
        <= TOLERANCE
    )


def test_a_query_on_a_charge_and_bad_rows() -> None:
    case = _case(72, 300, 80, 1.0)
    x, r = case.x.clone(), case.r.clone()
    x[:3] = case.charges[:3]
    good = _call("poisson_field", Case(x, r, case.charges))
    expected = _exact("poisson_field", Case(x, r, case.charges))
    assert direction_error(good[0], expected[0], r) <= TOLERANCE
    x[5, 3], x[6, 0], r[7], r[8] = math.nan, math.inf, math.nan, 0.0
    bad = _call("poisson_field", Case(x, r, case.charges))
    for value, was in zip(bad, good, strict=True):
        assert value[5:9].isnan().all()
        assert torch.equal(value[9:], was[9:])


@pytest.mark.parametrize("order", ["backward", "5"])
def test_the_order_of_threads_changes_nothing(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(*SHAPES["padded"], 3.0)
    expected = _call("poisson_field", case)
    monkeypatch.setenv("PFGM_FAST_EMULATOR_ORDER", order)
    for got, value in zip(_call("poisson_field", case), expected, strict=True):
        assert torch.equal(got, value)


def test_agrees_with_the_direct_way() -> None:
    """The same call in two halves of at most 64 queries is served by direct differences."""
    case = _case(100, 300, 64, 3.0)
    together = _call("poisson_field", case)[0]
    halves = [
        _call("poisson_field", Case(case.x[s], case.r[s], case.charges))[0]
        for s in (slice(0, 50), slice(50, 100))
    ]
    assert direction_error(together, torch.cat(halves).double(), case.r) <= TOLERANCE
    assert not torch.equal(together, torch.cat(halves))  # another way, indeed


def test_weighted_charges_go_the_direct_way() -> None:
    case = _case(70, 300, 64, 3.0)
    case = Case(case.x, case.r, case.charges, 1.0, torch.rand(300) + 1e-3)
    assert pf.Charges(case.charges, case.weights).log_weights is not None
    assert (
        direction_error(_call("poisson_field", case)[0], _exact("poisson_field", case)[0], case.r)
        <= TOLERANCE
    )
