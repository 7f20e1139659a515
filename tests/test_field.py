"""Every backend that runs here against the reference in float64, over the one table of cases."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.ops.dispatch import status
from tests.cases import CASES, TOLERANCE, Case, direction_error

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]


def _exact(case: Case) -> tuple[torch.Tensor, pf.Charges]:
    """Queries in float64 and charges whose float64 values are the ones that float32 kernels see."""
    return case.x.double(), pf.Charges(pf.Charges(case.charges).values().double(), case.weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_field_and_mean(backend: str, name: str) -> None:
    case = CASES[name]()
    charges = pf.Charges(case.charges, case.weights)
    with pf.use_backend("reference"):
        exact_x, exact_charges = _exact(case)
        field, _ = pf.poisson_field(exact_x, case.r.double(), exact_charges, case.aug_dim)
        mean = pf.posterior_mean(exact_x, case.r.double(), exact_charges, case.aug_dim)
        density = pf.log_density(exact_x, case.r.double(), exact_charges, case.aug_dim)
    with pf.use_backend(backend):
        got, er = pf.poisson_field(case.x, case.r, charges, case.aug_dim)
        got_mean = pf.posterior_mean(case.x, case.r, charges, case.aug_dim)
        got_density = pf.log_density(case.x, case.r, charges, case.aug_dim)
    assert torch.equal(er, case.r)
    assert direction_error(got, field, case.r) <= TOLERANCE
    scale = charges.values().double().norm(dim=1).max() + field.norm(dim=1)
    assert ((got_mean - mean).norm(dim=1) / scale).max() <= TOLERANCE
    assert (got_density - density).abs().max() <= 3e-5 * (1 + density.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plane", "odd-sizes", "bytes", "D=inf", "weights", "D=128"])
def test_score_and_divergence(backend: str, name: str) -> None:
    case = CASES[name]()
    charges = pf.Charges(case.charges, case.weights)
    with pf.use_backend("reference"):
        exact_x, exact_charges = _exact(case)
        score = pf.score(exact_x, case.r.double(), exact_charges, case.aug_dim)
        divergence = pf.field_divergence(exact_x, case.r.double(), exact_charges, case.aug_dim)
    with pf.use_backend(backend):
        got = pf.score(case.x, case.r, charges, case.aug_dim)
        got_divergence = pf.field_divergence(case.x, case.r, charges, case.aug_dim)
    assert ((got - score).norm(dim=1) / (score.norm(dim=1) + 1e-6 / case.r)).max() <= 5e-5
    assert (got_divergence - divergence).abs().max() <= 1e-3 * charges.dim


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_is_float64(backend: str) -> None:
    case = CASES["odd-sizes"]()
    exact_x, exact_charges = _exact(case)
    with pf.use_backend("reference"):
        expected, _ = pf.poisson_field(exact_x, case.r.double(), exact_charges)
    with pf.use_backend(backend):
        got, _ = pf.poisson_field(exact_x, case.r.double(), exact_charges)
    assert direction_error(got, expected, case.r) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_field_on_a_lone_charge(backend: str) -> None:
    y = torch.randn(1, 6)
    with pf.use_backend(backend):
        field, _ = pf.poisson_field(y.clone(), 1e-3, y)
    assert torch.equal(field, torch.zeros_like(y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_rows_become_nan_and_others_do_not(backend: str) -> None:
    y, x = torch.randn(30, 20), torch.randn(5, 20)
    good = x.clone()
    x[1, 3], x[3, 0] = math.nan, math.inf
    with pf.use_backend(backend):
        field, _ = pf.poisson_field(x, 0.5, y)
        expected, _ = pf.poisson_field(good, 0.5, y)
    assert field[[1, 3]].isnan().all()
    torch.testing.assert_close(field[[0, 2, 4]], expected[[0, 2, 4]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_see_only_their_class(backend: str) -> None:
    y, labels = torch.randn(40, 9), torch.arange(40) % 3
    x, wanted = torch.randn(7, 9), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    with pf.use_backend(backend):
        charges = pf.Charges(y, labels=labels)
        got = pf.posterior_mean(x, 0.7, charges, labels=wanted)
        density = pf.log_density(x, 0.7, charges, labels=wanted)
        for i in range(7):
            own = y[labels == wanted[i]]
            torch.testing.assert_close(got[i : i + 1], pf.posterior_mean(x[i : i + 1], 0.7, own))
            torch.testing.assert_close(density[i : i + 1], pf.log_density(x[i : i + 1], 0.7, own))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("aug_dim", [1.0, 3.0, math.inf])
def test_log_density_integrates_to_one(backend: str, dim: int, aug_dim: float) -> None:
    """Substituting x = tan(u) maps R to an interval, so that even the Cauchy tails of D = 1 are inside."""
    y = torch.randn(5, dim, dtype=torch.float64)
    steps = 2001 if dim == 1 else 161
    u = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps * math.pi - math.pi / 2
    axis, measure = u.tan(), (1 / u.cos().square()) * math.pi / steps
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    weight = measure if dim == 1 else (measure[:, None] * measure[None]).flatten()
    with pf.use_backend(backend):
        density = pf.log_density(grid, 0.7, y, aug_dim).exp()
    assert abs(float((density * weight).sum()) - 1) <= 5e-3


@pytest.mark.data
@pytest.mark.parametrize("backend", BACKENDS)
def test_target_of_the_shared_fixture(backend: str, shared) -> None:
    import numpy as np

    fixture = np.load(shared / "fixtures" / "poisson_flow_tiny.npz")
    expected = torch.from_numpy(fixture["field_target_float64"])
    charges = pf.Charges(torch.from_numpy(fixture["field_charges_uint8"]))
    x = torch.from_numpy(fixture["field_x"]).view(-1, *charges.shape)
    with pf.use_backend(backend):
        vx, vz = pf.pfgm_target(x, torch.from_numpy(fixture["field_z"]), charges, gamma=5.0)
    got = torch.cat([vx.flatten(1), vz[:, None]], 1).double()
    assert ((got - expected).norm(dim=1)).max() <= 1e-5 * math.sqrt(3072)
