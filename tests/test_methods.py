"""PFGM: its rules, perturbation, prior and drift against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import pfgm_fast as pf
from pfgm_fast.methods import PFGM, from_dict
from pfgm_fast.methods.base import poisson_prior


def test_rules_reproduce_the_papers_cifar10_settings() -> None:
    """σ = .01, τ = .03, pixels spread evenly over [−1, 1] (‖y‖² = N/3): M_exp = 291, z_max ≈ 40, upper_norm ≈ 3000."""
    assert PFGM.m_exp_rule(3072 / 3, 3072, 0.01, 0.03) == 291
    spread = 0.01 * 1.03**291
    assert math.sqrt(2 / math.pi) * spread == pytest.approx(43, abs=1)
    assert math.sqrt(3072) * spread == pytest.approx(3000, rel=0.02)


def test_from_data_takes_the_mean_square_norm() -> None:
    data = torch.zeros(5, 4, 4)
    data[3] = 2.0
    method = PFGM.from_data(pf.Charges(data))
    assert method.m_exp == math.floor(0.75 * math.log(64 / 5 / (2 * 4 * 1e-4)) / math.log(1.03)) + 1
    assert method.z_max == pytest.approx(math.sqrt(2 / math.pi) * 0.01 * 1.03**method.m_exp)
    assert method.upper_norm == pytest.approx(4 * 0.01 * 1.03**method.m_exp)
    assert PFGM.from_data(pf.Charges(data), z_max=7.0).z_max == 7.0


def test_perturbation_has_the_papers_distribution() -> None:
    """Of the paper's algorithm 2, with m known from z and |ε_z|: here through moments and a Kolmogorov test."""
    method = PFGM(near=0.0)
    generator = torch.Generator().manual_seed(0)
    x, z = method.perturb(torch.zeros(40_000, 3, 4, dtype=torch.float64), generator)
    radius = x.flatten(1).norm(dim=1)
    # log z = log|ε_z| + m log(1 + τ): the sum of a half-normal's logarithm and a uniform, simulated by scipy.
    rng = stats.uniform(0, 291 * math.log(1.03)).rvs(40_000, random_state=1)
    expected_z = (
        rng + torch.log(torch.from_numpy(stats.halfnorm(scale=0.01).rvs(40_000, random_state=2))).numpy()
    )
    expected_radius = (
        rng + 0.5 * torch.log(torch.from_numpy(stats.chi2(12).rvs(40_000, random_state=3))).numpy()
    )
    assert stats.ks_2samp(z.log().numpy(), expected_z).pvalue > 1e-3
    assert stats.ks_2samp(radius.log().numpy(), expected_radius + math.log(0.01)).pvalue > 1e-3
    direction = x.flatten(1) / radius[:, None]
    assert direction.mean(0).abs().max() < 0.01  # uniform on the sphere: mean 0, covariance 1/N
    assert (direction.T @ direction / len(direction) - torch.eye(12) / 12).abs().max() < 0.01


def test_near_queries_are_held_close() -> None:
    """restrict_M: |ε_z| < .005 draws m from [0, 0.7 M_exp]; so z stays below .005 (1 + τ)^(0.7 M_exp) for those."""
    _, z = PFGM(near=10.0).perturb(torch.zeros(20_000, 5), torch.Generator().manual_seed(0))
    assert float(z.max()) < 0.06 * 1.03 ** (0.7 * 291)
    free = PFGM(near=0.0).perturb(torch.zeros(20_000, 5), torch.Generator().manual_seed(0))[1]
    assert float(free.max()) > 0.06 * 1.03 ** (0.7 * 291)


@pytest.mark.parametrize(("dim", "aug_dim"), [(3, 1.0), (7, 1.0), (12, 16.0)])
def test_prior_radius_is_beta(dim: int, aug_dim: float) -> None:
    x = poisson_prior(
        (20_000, dim),
        3.0,
        aug_dim,
        (0.0, math.inf),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    ratio = (x.norm(dim=1) / 3).square()
    b = (ratio / (1 + ratio)).numpy()
    assert stats.kstest(b, stats.beta(dim / 2, aug_dim / 2).cdf).pvalue > 1e-3


def test_prior_is_held_within_its_limits() -> None:
    norms = PFGM(z_max=2.0, upper_norm=5.0).prior((5000, 6)).norm(dim=1)
    assert float(norms.min()) >= 1 - 1e-5
    assert float(norms.max()) <= 5 * (1 + 1e-5)
    assert float(norms.max()) > 4.99


def test_the_flow_of_one_charge_is_the_closed_form() -> None:
    """dx/dz = x/z for a charge at the origin: x shrinks with z, x(z) = x(z_max) z/z_max; Euler is exact there."""
    y = torch.zeros(1, 7, dtype=torch.float64)
    x0 = torch.randn(4, 7, dtype=torch.float64) * 50
    for solver, steps in (("euler", 3), ("heun", 5), ("rk45", 1)):
        out = pf.sample(pf.Charges(y), (4, 7), solver, steps, z_max=40.0, z_min=0.5, x0=x0)
        torch.testing.assert_close(out.x, x0 * 0.5 / 40, rtol=1e-3 if solver == "rk45" else 1e-10, atol=0)


def test_the_network_flow_of_one_charge_is_the_closed_form() -> None:
    """A 'network' that knows the target of one charge, through v and the fused steps; without the substitution of v_z."""
    y = pf.Charges(torch.zeros(1, 7, dtype=torch.float64))
    x0 = torch.randn(4, 7, dtype=torch.float64) * 50

    def net(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pf.pfgm_target(x, z, y)

    for solver in ("euler", "heun", "rk45"):
        method = PFGM(z_max=40.0, z_min=0.01, z_exp=0.0)
        tight = {"rtol": 1e-6, "atol": 1e-6} if solver == "rk45" else {}
        out = pf.sample(net, (4, 7), solver, 40, x0=x0, method=method, **tight)
        torch.testing.assert_close(out.x, x0 * 0.01 / 40, rtol=1e-3 if solver == "rk45" else 1e-7, atol=1e-8)


def test_drift_equals_the_true_fields_above_and_below_z_exp() -> None:
    y, x = torch.randn(20, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    """Above z_exp exactly; below, v_z is what ‖v_x‖ implies where z is small against ‖x − m‖: exact as z → 0."""
    for z, tolerance in ((9.0, 1e-12), (0.2, 2e-2), (1e-3, 1e-6)):
        vx, vz = pf.pfgm_target(x, z, y)
        field, _ = pf.poisson_field(x, z, y)
        torch.testing.assert_close(pf.drift(vx, vz, z), field / z, rtol=tolerance, atol=0)


def test_loss_is_zero_for_the_true_field_and_positive_else() -> None:
    charges = pf.Charges(torch.randn(30, 1, 4, 4))
    images, index = charges.values(slice(0, 8)), torch.arange(8)
    method = PFGM()

    def exact(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pf.pfgm_target(x, z, charges)

    def wrong(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(x), torch.zeros_like(z)

    loss = method.loss(exact, images, index, charges, torch.Generator().manual_seed(0))
    assert loss.shape == (8,)
    assert float(loss.max()) < 1e-9
    wrong_loss = method.loss(wrong, images, index, charges, torch.Generator().manual_seed(0))
    assert float(wrong_loss.min()) > 100 * float(loss.max())
    assert float(wrong_loss.max()) > 0.1


def test_to_dict_and_back() -> None:
    method = PFGM(m_exp=200, z_max=12.0)
    assert from_dict(method.to_dict()) == method
