"""VE, VP, sub-VP and PFGM++: marginals, coefficients, exact scores, solvers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import pfgm_fast as pf
from pfgm_fast.methods import METHODS, VESDE, VPSDE, PFGMpp, SubVPSDE, from_dict
from pfgm_fast.methods.sde import SDE, TIME_SCALE
from pfgm_fast.solvers import STOCHASTIC

SDES = [VESDE(sigma_max=20.0), VPSDE(), SubVPSDE()]


@pytest.mark.parametrize("method", SDES, ids=lambda m: m.name)
def test_marginal_solves_the_sdes_moments(method: SDE) -> None:
    """da/dt = f a and ds²/dt = 2 f s² + g² (arXiv 2011.13456, appendix B), by finite differences."""
    h = 1e-5
    for t in (0.1, 0.5, 0.9):
        (a0, s0), (a1, s1) = (
            map(float, method.marginal_prob(torch.tensor(t + d, dtype=torch.float64))) for d in (-h, h)
        )
        a, s = method.marginal_prob(t)
        linear, square = method.coefficients(t)
        assert (a1 - a0) / (2 * h) == pytest.approx(linear * a, rel=1e-5, abs=1e-9)
        assert (s1**2 - s0**2) / (2 * h) == pytest.approx(2 * linear * s**2 + square, rel=1e-5)


@pytest.mark.parametrize("method", SDES, ids=lambda m: m.name)
def test_discretized_steps_follow_the_marginal(method: SDE) -> None:
    """A thousand forward steps from a point reach the marginal at t = 1."""
    mean, variance = 1.0, float(method.marginal_prob(1e-3)[1]) ** 2
    grid = torch.linspace(1e-3, 1, 1001, dtype=torch.float64).tolist()
    for t, t_next in zip(grid[1:], grid[:-1], strict=True):
        scale, square = method.transition(t, t_next)
        mean, variance = scale * mean, scale**2 * variance + square
    a, s = method.marginal_prob(1.0)
    assert mean == pytest.approx(a, abs=2e-3)
    assert variance == pytest.approx(s**2, rel=2e-2)


@pytest.mark.parametrize("method", SDES, ids=lambda m: m.name)
def test_exact_network_is_the_gaussian_mixtures_score(method: SDE) -> None:
    """By automatic differentiation of Σ_j N(x; a y_j, s²), written out."""
    y, t = torch.randn(9, 4, dtype=torch.float64), 0.4
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    a, s = method.marginal_prob(t)
    log_density = torch.logsumexp(-(x[:, None] - a * y).square().sum(2) / (2 * s**2), 1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    vx, _ = method.exact(pf.Charges(y))(x.detach(), torch.full((5,), TIME_SCALE * t, dtype=torch.float64))
    torch.testing.assert_close(vx / s, score, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", SDES, ids=lambda m: m.name)
def test_loss_is_least_for_the_exact_network(method: SDE) -> None:
    charges = pf.Charges(torch.randn(6, 3))
    images = charges.values().repeat(200, 1)
    index = torch.arange(len(images)) % 6

    def loss(net) -> float:
        return float(method.loss(net, images, index, charges, torch.Generator().manual_seed(0)).mean())

    exact = method.exact(charges)
    best = loss(exact)
    assert best < loss(lambda x, c: (1.1 * exact(x, c)[0], c))
    assert best < loss(lambda x, c: (0.9 * exact(x, c)[0], c))


@pytest.mark.parametrize("solver", ["euler", "heun", "rk45", *STOCHASTIC])
@pytest.mark.parametrize("method", SDES, ids=lambda m: m.name)
def test_every_solver_draws_the_data(method: SDE, solver: str) -> None:
    """From the exact score of forty points: samples lie on points, each about as often as another."""
    y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) / 2
    steps = 1 if solver == "rk45" else 150
    out = pf.sample(
        pf.Charges(y), (400, 6), solver, steps, method=method, generator=torch.Generator().manual_seed(1)
    )
    nearest = torch.cdist(out.x, y).min(1)
    assert float(nearest.values.max()) < 0.15
    assert len(nearest.indices.unique()) >= 36


def test_stochastic_solvers_are_the_generators(capsys) -> None:
    charges = pf.Charges(torch.randn(10, 3))
    draws = [
        pf.sample(
            charges, (4, 3), "euler_maruyama", 20, method=VPSDE(), generator=torch.Generator().manual_seed(s)
        ).x
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(pf.ArgumentError, match="needs a stochastic method"):
        pf.sample(charges, (4, 3), "euler_maruyama", 20)
    with pytest.raises(pf.ArgumentError, match="do not belong to the method 'vp'"):
        pf.sample(charges, (4, 3), method=VPSDE(), z_max=3.0)


@pytest.mark.parametrize("aug_dim", [2.0, 64.0, math.inf])
def test_pfgmpp_perturbation_and_sampling(aug_dim: float) -> None:
    method = PFGMpp(aug_dim=aug_dim)
    x, sigma = method.perturb(torch.zeros(20_000, 5, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert stats.kstest(((sigma.log() + 1.2) / 1.2).numpy(), "norm").pvalue > 1e-3
    ratio = (x.norm(dim=1) / (sigma * method.radius_scale)).square().numpy()
    expected = stats.chi2(5) if math.isinf(aug_dim) else stats.betaprime(2.5, aug_dim / 2)
    assert stats.kstest(ratio, expected.cdf).pvalue > 1e-3
    y = torch.randn(20, 5)
    out = pf.sample(
        pf.Charges(y), (100, 5), "heun", 30, method=method, generator=torch.Generator().manual_seed(0)
    )
    assert float(torch.cdist(out.x, y).min(1).values.median()) < 0.02


def test_pfgmpp_denoiser_of_the_exact_network_is_the_posterior_mean() -> None:
    """With the target through the preconditioning backwards as network, the flow is the true field's."""
    method, charges = PFGMpp(aug_dim=16.0), pf.Charges(torch.randn(12, 4, dtype=torch.float64))

    def net(x_in, condition):
        sigma = (4 * condition).exp()[:, None]
        total = sigma.square() + 0.25
        x = x_in * total.sqrt()
        mean = pf.posterior_mean(x, sigma[:, 0] * 4, charges, 16.0)
        return (mean - 0.25 / total * x) * total.sqrt() / (0.5 * sigma), condition

    x0 = method.prior((6, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [pf.sample(n, (6, 4), "heun", 25, method=method, x0=x0).x for n in (net, charges)]
    torch.testing.assert_close(ends[0], ends[1])
    loss = method.loss(net, charges.values(), torch.arange(12), charges, torch.Generator().manual_seed(0))
    assert float(loss.max()) < 1e-12


def test_every_method_goes_through_its_dict() -> None:
    for kind in METHODS.values():
        assert from_dict(kind().to_dict()) == kind()
    assert VESDE.from_data(pf.Charges(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))).sigma_max == pytest.approx(5.0)
