"""Likelihood: known densities, quadrature, exact against estimated divergence, any shape and dimension."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate, stats

import pfgm_fast as pf
from pfgm_fast.likelihood import bits_per_dim, log_likelihood
from pfgm_fast.methods import PFGM, VESDE, VPSDE, PFGMpp, SubVPSDE
from pfgm_fast.methods.base import poisson_prior_log_density
from pfgm_fast.methods.sde import SDE
from pfgm_fast.nn import DDPMpp, UNetConfig

SETTINGS = {"rtol": 1e-7, "atol": 1e-7}
RING = torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(6) * math.pi / 3]).double()
WEIGHTS = torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, 1.0]).double()  # opposite ones alike: the mean is 0


def mixture() -> pf.Charges:
    """Six weighted points on a circle, whose centre is their mean, as a far prior assumes it."""
    return pf.Charges(RING, WEIGHTS)


def near_data(count: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Points about the mixture's."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 6, (count,), generator=generator)
    return RING[rows] + spread * torch.randn(count, 2, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("dim", "aug_dim"), [(1, 1.0), (2, 1.0), (3, 1.0), (3, 7.5), (5, 2.0)])
def test_prior_is_the_multivariate_t(dim: int, aug_dim: float) -> None:
    """scipy's t distribution with D degrees of freedom and shape matrix r²/D."""
    x = 5 * torch.randn(6, dim, dtype=torch.float64)
    expected = stats.multivariate_t(shape=9.0 / aug_dim * torch.eye(dim).numpy(), df=aug_dim).logpdf(
        x.numpy()
    )
    got = poisson_prior_log_density(x, 3.0, aug_dim)
    torch.testing.assert_close(got, torch.as_tensor(expected).reshape(6), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dim", [1, 2, 63, 3072, 196_608])
def test_prior_is_one_charge_far_away(dim: int) -> None:
    """The field of one charge at the origin leaves exactly this density on z = z_max, in every dimension."""
    x = 40 * torch.randn(2, dim, dtype=torch.float64)
    lone = pf.Charges(torch.zeros(1, dim, dtype=torch.float64))
    torch.testing.assert_close(PFGM().prior_log_density(x), pf.log_density(x, 40.0, lone), rtol=1e-11, atol=0)


@pytest.mark.parametrize("dim", [1, 3, 4])
def test_one_charge_has_its_closed_form(dim: int) -> None:
    """dx/dz = x/z: the prior shrunk by z_min/z_max, itself the density of the perturbed charge. Even, odd and one dimension."""
    x = 0.5 * torch.randn(5, dim, dtype=torch.float64)
    lone = pf.Charges(torch.zeros(1, dim, dtype=torch.float64))
    method = PFGM(z_min=0.1)
    found = log_likelihood(lone, x, method, **SETTINGS)
    torch.testing.assert_close(found.log_density, pf.log_density(x, 0.1, lone), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.latents, x * 400, rtol=1e-5, atol=0)
    assert float((found.change - dim * math.log(400)).abs().max()) < 1e-5


METHODS = [
    PFGM(z_max=60.0, z_min=0.05),
    PFGMpp(aug_dim=4.0, sigma_min=0.1),
    PFGMpp(aug_dim=math.inf, sigma_min=0.1),
    VESDE(sigma_min=0.05, sigma_max=60.0),
    VPSDE(t_min=0.01),
    SubVPSDE(t_min=0.05),
]


def density_at_the_end(method, x: torch.Tensor) -> torch.Tensor:
    """Closed form: the data perturbed to where the flow ends."""
    if isinstance(method, SDE):
        scale, deviation = map(float, method.marginal_prob(method.t_min))
        inner = pf.log_density(x / scale, deviation / scale, mixture(), math.inf)
        return inner - x.shape[1] * math.log(scale)
    if isinstance(method, PFGMpp):
        return pf.log_density(x, method.sigma_min * method.radius_scale, mixture(), method.aug_dim)
    return pf.log_density(x, method.z_min, mixture())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'aug_dim', '')}")
def test_closed_form_flow_of_a_mixture_within_a_hundredth_of_a_nat(method) -> None:
    """Exact divergence; what is left is the prior's distance from the perturbed data at its far end."""
    x = near_data(24, 0.1)
    found = log_likelihood(mixture(), x, method, **SETTINGS)
    assert float((found.log_density - density_at_the_end(method, x)).abs().max()) <= 0.01


def test_mixture_against_quadrature() -> None:
    """Cross entropy of the closed-form flow over the mixture by two-dimensional quadrature: ≤ 0.01 nats from its entropy; and the
    flow's density integrates to one."""
    method, half, count = PFGM(z_max=60.0, z_min=0.3), 12.0, 121
    axis = torch.linspace(-1, 1, count, dtype=torch.float64)
    axis = half * axis.sign() * axis.abs() ** 2  # dense where the charges are
    grid = torch.cartesian_prod(axis, axis)
    flow = log_likelihood(mixture(), grid, method, rtol=1e-5, atol=1e-5).log_density.view(count, count)
    true = pf.log_density(grid, method.z_min, mixture()).view(count, count)

    def quadrature(values: torch.Tensor) -> float:
        inner = integrate.simpson(values.numpy(), x=axis.numpy(), axis=1)
        return float(integrate.simpson(inner, x=axis.numpy()))

    mass = quadrature(true.exp())
    assert 0.95 < mass < 1  # a Cauchy tail lies outside
    assert quadrature(flow.exp()) == pytest.approx(mass, abs=2e-3)
    entropy, cross = quadrature(-true.exp() * true), quadrature(-true.exp() * flow)
    assert abs(cross - entropy) <= 0.01


@pytest.mark.parametrize(("noise", "each", "mean"), [("rademacher", 0.6, 0.25), ("gaussian", 3.0, 0.8)])
def test_hutchinson_is_unbiased(noise: str, each: float, mean: float) -> None:
    """100 probes of the true field's flow, by its derivative, against its exact divergence. Of 11 nats, a Gaussian probe errs by
    √2 of it, a Rademacher probe by nothing where the Jacobian is a multiple of the identity."""
    x, method = near_data(16, 0.3), PFGM(z_max=60.0, z_min=0.2)
    settings = {"solver": "heun", "steps": 12, "generator": torch.Generator().manual_seed(0)}
    exact = log_likelihood(mixture(), x, method, **settings)
    rough = log_likelihood(mixture(), x, method, probes=100, noise=noise, exact=False, **settings)
    error = rough.log_density - exact.log_density
    assert float(error.abs().max()) < each
    assert abs(float(error.mean())) < mean
    torch.testing.assert_close(rough.latents, exact.latents)


def test_all_signs_give_the_trace_itself() -> None:
    """The mean over all 2^N Rademacher probes is the trace: the estimate equals N exact products."""
    from pfgm_fast.likelihood import _Change, _every_direction

    charges, x = pf.Charges(torch.randn(9, 3, dtype=torch.float64)), torch.randn(4, 3, dtype=torch.float64)
    flow = PFGM().flow(lambda x, z: pf.pfgm_target(x, z, charges))
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    probes = signs[:, None].expand(8, 4, 3)
    for z in (9.0, 0.5):  # above and below z_exp
        found = [_Change(flow, x, p)._estimate(x, z) for p in (probes, _every_direction(x))]
        torch.testing.assert_close(found[0][1], found[1][1])
        by_hand = torch.stack(
            [
                torch.autograd.functional.jacobian(
                    lambda row, z=z: flow.derivative(row[None], flow.evaluate(row[None], z), z)[0], row
                ).trace()
                for row in x
            ]
        )
        torch.testing.assert_close(found[1][1], by_hand)


def test_network_flow_below_z_exp_is_differentiated_as_it_is() -> None:
    """The substituted v_z depends on ‖v_x‖; central differences of the drift see it, and so must the divergence."""
    from pfgm_fast.likelihood import _Change, _every_direction

    torch.manual_seed(0)
    mix = torch.randn(5, 5, dtype=torch.float64) / 3

    def net(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -0.4 * torch.tanh(x @ mix), -0.1 - 0.0 * z

    flow, x, h = PFGM().flow(net), torch.randn(3, 5, dtype=torch.float64), 1e-6
    _, got = _Change(flow, x, _every_direction(x))._estimate(x, 0.7)
    expected = torch.zeros(3, dtype=torch.float64)
    for k in range(5):
        step = h * torch.eye(5, dtype=torch.float64)[k]
        ends = [flow.derivative(x + s, flow.evaluate(x + s, 0.7), 0.7)[:, k] for s in (step, -step)]
        expected += (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_network_flow_of_one_charge_through_the_substitution() -> None:
    """With z_exp = 0 the 'network' of one charge has its density; the substitution, which is an approximation, keeps within a few
    hundredths of a nat a dimension."""
    lone = pf.Charges(torch.zeros(1, 3, dtype=torch.float64))
    x = 0.4 * torch.randn(6, 3, dtype=torch.float64)
    expected = pf.log_density(x, 0.1, lone)
    plain, substituted = (
        log_likelihood(
            lambda x, z: pf.pfgm_target(x, z, lone), x, PFGM(z_min=0.1, z_exp=z_exp), exact=True, **SETTINGS
        ).log_density
        for z_exp in (0.0, 5.0)
    )
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-4)
    assert float((substituted - expected).abs().max()) > 1e-3  # it is there, and it is differentiated


def test_denoiser_and_score_networks() -> None:
    """The same densities through a network's calling convention, by exact products, as from the charges themselves."""
    x = near_data(5, 0.1)
    for method in (VESDE(sigma_min=0.05, sigma_max=60.0), VPSDE(t_min=0.01)):
        net = method.exact(mixture())
        found = log_likelihood(net, x, method, exact=True, **SETTINGS)
        assert float((found.log_density - density_at_the_end(method, x)).abs().max()) <= 0.01


@pytest.mark.parametrize(
    ("solver", "steps", "bar"), [("heun", 60, 0.04), ("heun", 240, 0.0025), ("euler", 2000, 0.05)]
)
def test_fixed_grids_converge(solver: str, steps: int, bar: float) -> None:
    x, method = near_data(8, 0.3), PFGM(z_max=60.0, z_min=0.2)
    fine = log_likelihood(mixture(), x, method, **SETTINGS)
    coarse = log_likelihood(mixture(), x, method, solver=solver, steps=steps)
    assert float((coarse.log_density - fine.log_density).abs().max()) < bar
    assert coarse.nfe == steps * (2 if solver == "heun" else 1)


def test_network_of_images_in_float32_and_any_channels() -> None:
    """A DDPM++ of one channel, odd size: Hutchinson's mean over probes agrees with the exact trace; modes and gradients stay."""
    net = DDPMpp(UNetConfig(1, 5, 8, (1,), 1, (), dropout=0.5)).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    x, method = torch.rand(2, 1, 5, 5) * 2 - 1, PFGM(z_max=10.0, z_min=0.5)
    settings = {"solver": "heun", "steps": 6}
    exact = log_likelihood(net, x, method, exact=True, **settings)
    rough = log_likelihood(net, x, method, probes=64, generator=torch.Generator().manual_seed(0), **settings)
    assert exact.log_density.dtype == torch.float64
    assert exact.latents.shape == x.shape
    torch.testing.assert_close(rough.log_density, exact.log_density, rtol=0.1, atol=1.0)
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_labels_choose_the_class() -> None:
    y = torch.cat([torch.randn(20, 2) - 10, torch.randn(20, 2) + 10]).double()
    charges = pf.Charges(y, labels=torch.arange(40) // 20)
    x, labels = y[[0, 1, 20]], torch.tensor([0, 1, 1])
    found = log_likelihood(charges, x, PFGM(z_max=500.0, z_min=0.5), labels=labels).log_density
    expected = pf.log_density(x, 0.5, charges, labels=labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)  # a class's mean is 10√2 off the prior's
    assert float(found[1]) < float(found[0]) - 5


def test_bits_per_dim_of_a_uniform_distribution() -> None:
    """Of charges on every byte of one pixel, all images are alike: 8 bits, however the cell of a byte is drawn."""
    every = pf.Charges(torch.arange(256, dtype=torch.uint8)[:, None])
    method = PFGM(z_max=60.0, z_min=2 / 255)
    inner = torch.arange(64, 192, 8, dtype=torch.uint8)[:, None]
    found = bits_per_dim(every, inner, method, draws=2, generator=torch.Generator().manual_seed(0))
    assert found.bits.shape == (16,)
    assert found.mean == pytest.approx(8.0, abs=0.02)


def test_bits_per_dim_depends_on_no_scale() -> None:
    """The same bytes with another range, in a model scaled with it, cost the same bits."""
    data = torch.randint(0, 256, (30, 2, 3), dtype=torch.uint8)
    bits = [
        bits_per_dim(
            pf.Charges(data, value_range=(-scale, scale)),
            data[:4],
            PFGM(z_max=60.0 * scale, z_min=0.05 * scale),
            value_range=(-scale, scale),
            generator=torch.Generator().manual_seed(0),
        ).bits
        for scale in (1.0, 4.0)
    ]
    torch.testing.assert_close(bits[0], bits[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": 0}, "probes must be an integer ≥ 1"),
        ({"noise": "uniform"}, "noise must be one of rademacher, gaussian"),
        ({"solver": "euler_maruyama"}, "is stochastic"),
        ({"solver": "runge"}, "solver must be one of"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    def net(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -x / (1 + x.norm()), -torch.ones_like(z)

    with pytest.raises(pf.ArgumentError, match=message):
        log_likelihood(net, torch.zeros(1, 2), **change)
    with pytest.raises(pf.ArgumentError, match="images must be uint8"):
        bits_per_dim(net, torch.zeros(1, 2))
    with pytest.raises(pf.ArgumentError, match="draws must be"):
        bits_per_dim(net, torch.zeros(1, 2, dtype=torch.uint8), draws=0)
