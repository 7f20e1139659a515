"""The Triton kernels of the field in Triton's interpreter, against the reference in float64. No GPU is needed, or shown."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.errors import BackendError
from tests.cases import CASES, TOLERANCE, Case, direction_error

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]

DENSE = (
    "digits-size",
    "odd-sizes",
    "bytes",
    "bytes-odd",
    "near-duplicates-100",
    "duplicates",
    "on-a-charge",
    "all-radii-80",
    "D=128",
    "D=inf",
    "weights",
    "weights-inf",
)
"""Cases that are also served with a longest support of three charges, so that rows are dense and go through the second product."""


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Memory from torch.empty is NaN (integers: their largest), so that what no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def short_support(monkeypatch: pytest.MonkeyPatch) -> None:
    from pfgm_fast.backends.triton import configs

    monkeypatch.setattr(configs, "LONGEST_SUPPORT", 3)


def _exact(case: Case) -> tuple[Tensor, Tensor, pf.Charges]:
    values = pf.Charges(case.charges).values().double()
    return case.x.double(), case.r.double(), pf.Charges(values, case.weights)


def _check_field_and_mean(case: Case) -> None:
    charges = pf.Charges(case.charges, case.weights)
    with pf.use_backend("reference"):
        field, _ = pf.poisson_field(*_exact(case), case.aug_dim)
        mean = pf.posterior_mean(*_exact(case), case.aug_dim)
        density = pf.log_density(*_exact(case), case.aug_dim)
    with pf.use_backend("triton"):
        got, _ = pf.poisson_field(case.x, case.r, charges, case.aug_dim)
        got_mean = pf.posterior_mean(case.x, case.r, charges, case.aug_dim)
        got_density = pf.log_density(case.x, case.r, charges, case.aug_dim)
    assert direction_error(got, field, case.r) <= TOLERANCE
    scale = charges.values().double().norm(dim=1).max() + field.norm(dim=1)
    assert ((got_mean - mean).norm(dim=1) / scale).max() <= TOLERANCE
    assert (got_density - density).abs().max() <= 3e-5 * (1 + density.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_field_and_mean(name: str) -> None:
    _check_field_and_mean(CASES[name]())


@pytest.mark.parametrize("name", DENSE)
def test_rows_through_the_second_product(name: str, short_support) -> None:
    _check_field_and_mean(CASES[name]())


@pytest.mark.parametrize("name", ["one-dimension", "plane", "small-odd", "near-duplicates-2", "all-radii-2"])
def test_small_n_without_its_own_kernel(name: str, monkeypatch) -> None:
    from pfgm_fast.backends.triton import small_n

    monkeypatch.setattr(small_n, "LARGEST", 0)
    _check_field_and_mean(CASES[name]())


@pytest.mark.parametrize(
    "name", ["plane", "odd-sizes", "bytes", "D=inf", "weights", "D=128", "near-duplicates-2"]
)
def test_score_and_divergence(name: str) -> None:
    case = CASES[name]()
    charges = pf.Charges(case.charges, case.weights)
    with pf.use_backend("reference"):
        score = pf.score(*_exact(case), case.aug_dim)
        divergence = pf.field_divergence(*_exact(case), case.aug_dim)
    with pf.use_backend("triton"):
        got = pf.score(case.x, case.r, charges, case.aug_dim)
        got_divergence = pf.field_divergence(case.x, case.r, charges, case.aug_dim)
    assert ((got - score).norm(dim=1) / (score.norm(dim=1) + 1e-6 / case.r)).max() <= 5e-5
    assert (got_divergence - divergence).abs().max() <= 1e-3 * charges.dim


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("name", ["odd-sizes", "bytes", "D=inf"])
def test_second_moment(name: str, power: int) -> None:
    case = CASES[name]()
    charges, u = pf.Charges(case.charges), torch.randn(case.x.shape)
    query = charges.query(case.x, case.r, case.aug_dim)
    exact = query._replace(x=case.x.double(), r=case.r.double(), charges=charges.values().double())
    moment, projection = reference.second_moment(exact, u.double(), power)
    with pf.use_backend("triton"):
        got, got_projection = torch.ops.pfgm_fast.second_moment(*query, u, power)
    # Where the query sees one charge the moment is a product of that charge's ρ: its rounding is relative to |ρ·u|.
    length = moment.norm(dim=1)
    assert ((got - moment).norm(dim=1) / length).max() <= 1e-4
    assert ((got_projection - projection).abs() / (projection.abs() + length)).max() <= 1e-4


@pytest.mark.parametrize("name", ["plane", "odd-sizes", "bytes", "D=inf"])
def test_field_step(name: str) -> None:
    case = CASES[name]()
    with pf.use_backend("reference"):
        expected = pf.field_step(*_exact(case)[:2], 0.7 * case.r.double(), _exact(case)[2], case.aug_dim)
    with pf.use_backend("triton"):
        got = pf.field_step(case.x, case.r, 0.7 * case.r, pf.Charges(case.charges), case.aug_dim)
    assert ((got - expected).norm(dim=1) / (1 + expected.norm(dim=1))).max() <= TOLERANCE


@pytest.mark.parametrize("function", [pf.posterior_mean, pf.log_density, pf.score])
def test_gradients(function) -> None:
    """Where weights are spread: where a query sees one charge, terms that cancel leave float32's rounding only."""
    case = CASES["weights"]()
    results = []
    for backend, (x, r, charges) in (
        ("reference", _exact(case)),
        ("triton", (case.x, case.r, pf.Charges(case.charges, case.weights))),
    ):
        x, r = x.clone().requires_grad_(), r.clone().requires_grad_()
        with pf.use_backend(backend):
            out = function(x, r, charges, case.aug_dim)
            weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
            results.append(torch.autograd.grad((out * weight).sum(), (x, r)))
    for exact, got in zip(*results, strict=True):
        flat, flat_got = exact.view(len(exact), -1), got.double().view(len(exact), -1)
        assert ((flat_got - flat).norm(dim=1) <= 1e-4 * flat.norm(dim=1) + 1e-6 * flat.norm()).all()


@pytest.mark.parametrize("kind", ["small_n", "floats", "bytes"])
def test_bad_rows_become_nan_and_others_do_not(kind: str) -> None:
    dim = 3 if kind == "small_n" else 20
    y = torch.randint(0, 256, (30, dim), dtype=torch.uint8) if kind == "bytes" else torch.randn(30, dim)
    x, r = torch.randn(7, dim), torch.full((7,), 0.5)
    good = x.clone()
    x[1, 2], x[3, 0], x[5, 1], r[6] = math.nan, math.inf, -math.inf, math.nan
    charges = pf.Charges(y)
    query = charges.query(x, r, 1.0)
    well = charges.query(good, torch.full((7,), 0.5), 1.0)
    with pf.use_backend("triton"):
        field, lse = torch.ops.pfgm_fast.poisson_field(*query)
        expected, expected_lse = torch.ops.pfgm_fast.poisson_field(*well)
        for bad in (0.0, -1.0, math.inf):
            worse = well._replace(x=good[:1], r=torch.tensor([bad]))
            assert torch.ops.pfgm_fast.poisson_field(*worse)[0].isnan().all()
        score = torch.ops.pfgm_fast.score(*query)
    assert field[[1, 3, 5, 6]].isnan().all()
    assert lse[[1, 3, 5, 6]].isnan().all()
    assert all(out[[1, 3, 5, 6]].isnan().all() and not out[[0, 2, 4]].isnan().any() for out in score)
    assert torch.equal(field[[0, 2, 4]], expected[[0, 2, 4]])
    assert torch.equal(lse[[0, 2, 4]], expected_lse[[0, 2, 4]])


def test_zero_field_on_a_lone_charge() -> None:
    for y in (torch.randn(1, 6), torch.randn(1, 40), torch.randint(0, 256, (1, 40), dtype=torch.uint8)):
        with pf.use_backend("triton"):
            x = pf.Charges(y).values().clone()
            field, _ = pf.poisson_field(x, 1e-3, pf.Charges(y))
        assert torch.equal(field, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["bytes", "odd-sizes"])
def test_tiles_and_splits_change_rounding_only(name: str, short_support, monkeypatch) -> None:
    from pfgm_fast.backends.triton import configs, weighted_sum

    case = CASES[name]()
    charges = pf.Charges(case.charges)

    def served() -> tuple[Tensor, Tensor]:
        with pf.use_backend("triton"):
            return torch.ops.pfgm_fast.poisson_field(
                case.x, case.r, charges.flat, None, charges.center, charges.sq_norms,
                charges.divisor, charges.offset, case.aug_dim,
            )  # fmt: skip

    field, lse = served()
    assert all(torch.equal(a, b) for a, b in zip(served(), (field, lse), strict=True))
    other = {
        product: (configs.Tile(32, 64 if "sum" in product else configs.CHARGES, 32, 4, 1),)
        for product in configs.PRODUCTS
    }
    monkeypatch.setattr(configs, "INTERPRETER", replace(configs.INTERPRETER, **other))
    monkeypatch.setattr(weighted_sum, "splits_of", lambda *_: 3)
    changed, changed_lse = served()
    assert not torch.equal(changed, field)  # another order of sums did run
    assert direction_error(changed, field.double(), case.r) <= 1e-6
    assert (changed_lse - lse).abs().max() <= 1e-5


def test_long_rows_of_bytes_are_summed_in_parts(monkeypatch) -> None:
    from pfgm_fast.backends.triton import distance_gemm

    case = CASES["bytes-odd"]()
    charges = pf.Charges(case.charges)
    with pf.use_backend("triton"):
        whole, _ = pf.poisson_field(case.x, case.r, charges)
        monkeypatch.setattr(distance_gemm, "SEGMENT", 256)
        parts, _ = pf.poisson_field(case.x, case.r, charges)
    assert torch.equal(whole, parts)


def test_large_batches_are_cut(monkeypatch) -> None:
    from pfgm_fast.backends.triton import field

    x, y = torch.randn(21, 18), torch.randn(5, 18)
    cut = []
    rows = field.FieldCall.rows
    monkeypatch.setattr(field, "SCRATCH", 1)
    monkeypatch.setattr(field, "LEAST_ROWS", 8)
    monkeypatch.setattr(field.FieldCall, "rows", lambda call, part: cut.append(part) or rows(call, part))
    with pf.use_backend("triton"):
        got, _ = pf.poisson_field(x, 1.0, y)
    with pf.use_backend("reference"):
        expected, _ = pf.poisson_field(x.double(), 1.0, y.double())
    assert [part.stop - part.start for part in cut] == [8, 8, 8]
    assert direction_error(got, expected, torch.ones(21)) <= TOLERANCE


@pytest.mark.parametrize("name", ["bytes", "odd-sizes"])
def test_unprepared_charges(name: str) -> None:
    case = CASES[name]()
    charges = pf.Charges(case.charges)
    query = charges.query(case.x, case.r, 1.0)
    with pf.use_backend("reference"):
        expected, _ = pf.poisson_field(*_exact(case))
    with pf.use_backend("triton"):
        for center in (None, charges.center):
            got, _ = torch.ops.pfgm_fast.poisson_field(*query._replace(center=center, sq_norms=None))
            assert direction_error(got, expected, case.r) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_tiles_without_weight_are_not_read(dtype: torch.dtype) -> None:
    from pfgm_fast.backends.triton import configs, field
    from pfgm_fast.backends.triton.common import WEIGHT_UNIT
    from pfgm_fast.backends.triton.weighted_sum import launch_weighted_sum

    y = torch.randint(0, 256, (1100, 24), dtype=dtype) if dtype == torch.uint8 else torch.randn(1100, 24)
    call = field.FieldCall(
        "poisson_field", torch.zeros(2, 24), torch.ones(2), y, None, torch.zeros(24), None, 1.0, 0.0, 1.0
    )
    scratch = field.Scratch.of(call)
    weights = torch.full(
        (2, scratch.stride), math.nan
    )  # 8 tiles of 128 charges stay so, and the splits' ends among them
    weights[:, :128], weights[:, 1024:] = 0, 0
    weights[0, :128], weights[1, 1024:1100] = torch.rand(128), torch.rand(76)
    scratch.occupied.zero_()
    scratch.occupied[0, 0], scratch.occupied[1, 8] = 1, 1
    if scratch.terms is None:
        scratch.gaps.copy_(weights)
        y[128:1024] = math.nan
    else:
        unit = weights * WEIGHT_UNIT.value
        scratch.terms[0] = unit.half()
        scratch.terms[1] = (unit - unit.half().float()).half()
    scratch.dense_rows.copy_(torch.tensor([1, 0]))
    scratch.dense_count.fill_(2)
    partial = launch_weighted_sum(call, scratch, configs.INTERPRETER, 2)
    values = y.double() - (128 if dtype == torch.uint8 else 0)
    expected = torch.stack(
        [weights[1, 1024:1100].double() @ values[1024:], weights[0, :128].double() @ values[:128]]
    )
    assert partial.shape[0] > 1
    assert (partial.double().sum(0) - expected).abs().max() <= 2e-6 * values[
        [*range(128), *range(1024, 1100)]
    ].abs().max() * 64


@pytest.mark.parametrize("op", ["poisson_field", "log_density", "score"])
def test_opcheck(op: str) -> None:
    x, r = torch.randn(4, 6).requires_grad_(), (torch.rand(4) + 0.5).requires_grad_()
    query = (x, r, torch.randn(9, 6), None, None, None, 1.0, 0.0, 1.0)
    with pf.use_backend("triton"):
        torch.library.opcheck(getattr(torch.ops.pfgm_fast, op).default, query)


def test_refuses_what_it_does_not_serve() -> None:
    with pf.use_backend("triton"), pytest.raises(BackendError, match="serves float32 queries"):
        pf.poisson_field(torch.randn(2, 5).double(), 1.0, torch.randn(3, 5).double())
