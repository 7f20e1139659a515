"""The integer tensor-core path (csrc/cuda/bytes.cu) executed on the host: each tile, each split, light and heavy queries."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.ops.schema import Query
from tests import cuda_tools
from tests.cases import TOLERANCE, Case, direction_error

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to compile the emulated kernels"
)


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every GPU can do; tests/test_cuda_hopper.py has what the emulated device, a Hopper GPU, does by default."""
    torch.ops.load_library(str(cuda_tools.host_library()))
    monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "0")


def _case(batch: int, count: int, dim: int, spread: float, aug_dim: float = 1.0) -> Case:
    """Smooth images (a common mean, a few directions), as data are; radii up to `spread` times the images' own distance."""
    basis = torch.randn(8, dim)
    images = (60 * torch.tanh(torch.randn(count, 8) @ basis / 3) + 128).clamp(0, 255).to(torch.uint8)
    radii = torch.logspace(-2, math.log10(spread), batch) * 0.3 * math.sqrt(dim)
    x = images[torch.arange(batch) % count] / 127.5 - 1
    x = x + radii[:, None] * torch.randn(batch, dim) / math.sqrt(dim)
    r = radii / math.sqrt(dim) if not math.isinf(aug_dim) else radii / math.sqrt(dim) + 0.02
    return Case(x, r, images, aug_dim)


def _call(op: str, case: Case, *more: Tensor) -> tuple[Tensor, ...]:
    charges = pf.Charges(case.charges, case.weights)
    query = charges.query(case.x, case.r, case.aug_dim)
    result = getattr(torch.ops.pfgm_fast_cuda, op)(*query, *more)
    return result if isinstance(result, tuple) else (result,)


def _exact(op: str, case: Case, *more: Tensor) -> tuple[Tensor, ...]:
    values = pf.Charges(case.charges).values().double()
    weights = None if case.weights is None else case.weights.double().log()
    query = Query(case.x.double(), case.r.double(), values, weights, None, None, 1.0, 0.0, case.aug_dim)
    result = getattr(reference, op)(query, *(value.double() for value in more))
    return result if isinstance(result, tuple) else (result,)


SHAPES = {
    "slim": (5, 200, 128),
    "slim-split": (3, 70, 2064),  # N is cut
    "narrow": (19, 150, 192),
    "narrow-odd": (65, 67, 80),
    "wide": (33, 420, 64),
    "wide-two-query-tiles": (131, 260, 96),
    "charges-split": (4, 1700, 64),
    "many-columns": (17, 90, 784),
    "long-rows": (6, 90, 4624),  # segments of the digits and of the anchor's distance
    "long-rows-wide": (36, 420, 4112),  # likewise, with a first digit alone
}


@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["training", "spread"])
@pytest.mark.parametrize("name", SHAPES)
def test_field_against_float64(name: str, spread: float) -> None:
    case = _case(*SHAPES[name], spread)
    field, lse = _call("poisson_field", case)
    expected, expected_lse = _exact("poisson_field", case)
    assert direction_error(field, expected, case.r) <= TOLERANCE
    torch.testing.assert_close(lse, expected_lse, rtol=3e-6, atol=3e-5)


@pytest.mark.parametrize("aug_dim", [1.0, 2048.0, math.inf])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_every_operator(aug_dim: float, weighted: bool) -> None:
    case = _case(18, 140, 112, 3.0, aug_dim)
    if weighted:
        case = Case(case.x, case.r, case.charges, aug_dim, torch.rand(140) + 1e-3)
    field = _exact("poisson_field", case)[0]
    scale = 1 + field.norm(dim=1)
    mean, step = _call("posterior_mean", case)[0], _call("field_step", case, 0.5 * case.r)[0]
    assert ((mean - _exact("posterior_mean", case)[0]).norm(dim=1) / math.sqrt(112)).max() <= TOLERANCE
    assert ((step - _exact("field_step", case, 0.5 * case.r)[0]).norm(dim=1) / scale).max() <= TOLERANCE
    torch.testing.assert_close(_call("log_density", case), _exact("log_density", case), rtol=3e-6, atol=3e-5)
    names = ("gradient", "field", "rate", "trace")
    for name, got, expected in zip(names, _call("score", case), _exact("score", case), strict=False):
        size = expected.abs().max() if expected.dim() == 1 else expected.norm(dim=1).max()
        assert (
            (got - expected).abs() if got.dim() == 1 else (got - expected).norm(dim=1)
        ).max() <= 2e-5 * size, name


def test_light_and_heavy_queries_side_by_side() -> None:
    """One charge, a few, more than a list holds, all: each way of the second product in one call."""
    case = _case(40, 333, 64, 30.0)
    expected = _exact("poisson_field", case)[0]
    values = pf.Charges(case.charges).values().double()
    used = []
    for i in range(40):
        logits = -32.5 * torch.log1p((values - case.x[i].double()).square().sum(1) / case.r[i].double() ** 2)
        used.append(int((torch.softmax(logits, 0) > 1e-10).sum()))
    assert (
        min(used) == 1
        and any(1 < n <= 64 for n in used)
        and any(64 < n < 333 for n in used)
        and max(used) == 333
    )
    assert direction_error(_call("poisson_field", case)[0], expected, case.r) <= TOLERANCE


@pytest.mark.parametrize("near", [1, 2, 40, 64, 65])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_a_list_over_parts_of_the_charges_and_segments_of_n(
    near: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near-duplicates all over the charges, so that each block of a row finds some: lists up to the longest, and one beyond."""
    case = _case(2, 600, 1040, 0.1)
    images = case.charges.clone()
    places = torch.randperm(600)[:near]
    images[places] = (images[0].int() + torch.randint(-1, 2, (near, 1040))).clamp(0, 255).to(torch.uint8)
    images[0] = 255 - images[0]
    x = images[places[:1]] / 127.5 - 1 + torch.tensor([[0.002], [0.02]]) * torch.randn(2, 1040)
    weights = torch.rand(600) + 1e-3 if weighted else None
    case = Case(x, torch.tensor([0.03, 0.3]), images, 1.0, weights)
    field, lse = _call("poisson_field", case)
    expected, expected_lse = _exact("poisson_field", case)
    assert direction_error(field, expected, case.r) <= 1e-6
    torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-5)
    monkeypatch.setenv("PFGM_FAST_EMULATOR_ORDER", "backward")
    assert torch.equal(_call("poisson_field", case)[0], field)


def test_weighted_charges_take_all_digits_at_once() -> None:
    case = _case(33, 420, 64, 3.0)
    case = Case(case.x, case.r, case.charges, 1.0, torch.rand(420) ** 4 + 1e-4)
    assert (
        direction_error(_call("poisson_field", case)[0], _exact("poisson_field", case)[0], case.r)
        <= TOLERANCE
    )


@pytest.mark.parametrize(("aug_dim", "r"), [(1.0, 0.01), (1e5, 2.0), (math.inf, 0.01), (math.inf, 0.05)])
@pytest.mark.parametrize("outlier", [10.0, 100.0])
def test_a_coarse_first_digit_proves_nothing_wrong(outlier: float, aug_dim: float, r: float) -> None:
    """One large element of x makes the digits of all others coarse, while the charges that matter differ by a few units: the
    screening's bound must leave the query open, and the list's direct differences must cure what is left."""
    case = _case(40, 200, 64, 1.0)
    twins = (case.charges.int() + torch.randint(-3, 4, (200, 64))).clamp(0, 255).byte()
    x = 0.5 * (case.charges[:40] + twins[:40].float()) / 127.5 - 1 + 0.002 * torch.randn(40, 64)
    x[:, 0] += torch.logspace(-1, math.log10(outlier), 40)
    coarse = Case(x, torch.full((40,), r), torch.cat([case.charges, twins]), aug_dim)
    field, lse = _call("poisson_field", coarse)
    expected, expected_lse = _exact("poisson_field", coarse)
    assert direction_error(field, expected, coarse.r) <= 1e-6
    torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-5)


def test_extreme_bytes_do_not_overflow() -> None:
    """The emulator fails where an int32 sum overflows: all bytes 255, digits at their limits, the longest part of N."""
    dim = (1 << 16) + 16
    images = torch.full((3, dim), 255, dtype=torch.uint8)
    images[1, : dim // 2] = 0
    images[2] = 0
    case = Case(torch.full((1, dim), 1.0) + 0.01 * torch.randn(1, dim), torch.tensor([2.0]), images)
    assert (
        direction_error(_call("poisson_field", case)[0], _exact("poisson_field", case)[0], case.r)
        <= TOLERANCE
    )


@pytest.mark.parametrize("order", ["backward", "3", "4"])
@pytest.mark.parametrize("name", ["slim", "narrow-odd", "wide"])
def test_the_order_of_threads_changes_nothing(name: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(*SHAPES[name], 10.0)
    expected = _call("poisson_field", case)
    monkeypatch.setenv("PFGM_FAST_EMULATOR_ORDER", order)
    for got, value in zip(_call("poisson_field", case), expected, strict=True):
        assert torch.equal(got, value)


def test_bad_rows_become_nan_and_others_do_not() -> None:
    case = _case(20, 100, 64, 10.0)
    expected = _call("poisson_field", case)
    x, r = case.x.clone(), case.r.clone()
    x[1, 3], x[4, 0], r[7], r[9] = math.nan, math.inf, math.nan, 0.0
    bad, good = [1, 4, 7, 9], [0, 2, 3, 5, 6, 8, *range(10, 20)]
    got = _call("poisson_field", Case(x, r, case.charges))
    for value, was in zip(got, expected, strict=True):
        assert value[bad].isnan().all()
        assert torch.equal(value[good], was[good])


def test_duplicates_and_a_query_on_a_charge() -> None:
    case = _case(10, 30, 64, 1.0)
    images = case.charges.repeat(4, 1)
    images[60:90] = (images[60:90].int() + 1).clamp(max=255).to(torch.uint8)  # near-duplicates, one unit away
    x = case.x.clone()
    x[:4] = images[:4] / 127.5 - 1
    doubled = Case(x, case.r, images)
    assert (
        direction_error(_call("poisson_field", doubled)[0], _exact("poisson_field", doubled)[0], case.r)
        <= TOLERANCE
    )
    alone = Case(x[:1], case.r[:1], images[:1])
    assert torch.equal(_call("poisson_field", alone)[0], torch.zeros(1, 64))


@pytest.mark.data
def test_the_shared_images(shared) -> None:
    """192 real CIFAR-10 images, queries of the paper's perturbation from m = 0 to 290."""
    import numpy as np

    fixture = np.load(shared / "fixtures" / "poisson_flow_tiny.npz")
    images = torch.from_numpy(fixture["field_charges_uint8"]).flatten(1)
    x, z = torch.from_numpy(fixture["field_x"]).flatten(1), torch.from_numpy(fixture["field_z"])
    case = Case(x.float(), z.float(), images)
    assert direction_error(_call("poisson_field", case)[0], _exact("poisson_field", case)[0], case.r) <= 1e-6
