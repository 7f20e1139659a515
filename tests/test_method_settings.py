"""What the papers and their code set: grids' ends, reductions, preconditioning, limits of t; names of old runs."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import presets
from pfgm_fast.methods import METHODS, from_dict

CHARGES = pf.Charges(torch.randn(30, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_every_method_has_the_protocol(kind) -> None:
    """from_data takes what is given, perturb gives (x, condition), both ways of a dict; JSON without infinities."""
    method = kind.from_data(CHARGES, loss_reduction="half_sum")
    assert isinstance(method, kind)
    assert method.loss_reduction == "half_sum"
    x, condition = method.perturb(CHARGES.values(slice(0, 5)), torch.Generator().manual_seed(0))
    assert x.shape == (5, 3, 4)
    assert condition.shape == (5,)
    assert bool((condition > 0).all())
    values = method.to_dict()
    assert from_dict(values) == method
    assert math.inf not in values.values()
    with pytest.raises(pf.ArgumentError, match="loss_reduction must be one of mean, half_sum, sum"):
        kind(loss_reduction="median")


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_reductions_are_factors(kind) -> None:
    """Half the sum is (N + 1)/2 means for PFGM, whose field has N + 1 components, N/2 for the others."""

    def loss(reduction: str) -> torch.Tensor:
        def net(x, condition):
            return torch.sin(3 * x), 0 * condition

        images = CHARGES.values(slice(0, 6))
        generator = torch.Generator().manual_seed(0)
        method = kind(loss_reduction=reduction)
        return method.loss(net, images, torch.arange(6), CHARGES, generator).double()

    elements = 13 if kind is pf.PFGM else 12
    torch.testing.assert_close(loss("sum"), elements * loss("mean"), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss("half_sum"), elements / 2 * loss("mean"), rtol=1e-6, atol=0)


def test_presets_take_the_released_reduction() -> None:
    """configs/default_*_configs.py of the authors: reduce_mean is False for CIFAR-10 and CelebA, True for LSUN's bedrooms."""
    found = {name: (presets.preset(name).method or {}).get("loss_reduction") for name in presets.PRESETS}
    assert found["cifar10"] == found["celeba64"] == "half_sum"
    assert found["lsun256"] == "mean"


def test_ve_is_for_the_range_of_its_data() -> None:
    """0.01 … 50 of CIFAR-10 in [0, 1] is 0.02 … 100 in [−1, 1]: the defaults; `from_data` finds both ends."""
    assert (pf.VESDE().sigma_min, pf.VESDE().sigma_max) == (0.02, 100.0)
    unit = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    unit[0, 0], unit[1, 0] = 0.0, 1.0
    small, large = (pf.VESDE.from_data(pf.Charges(points)) for points in (unit, 2 * unit - 1))
    assert small.sigma_min == pytest.approx(0.01)
    assert large.sigma_min == pytest.approx(0.02)
    assert large.sigma_max == pytest.approx(2 * small.sigma_max)
    assert small.sigma_max == pytest.approx(float(torch.cdist(unit, unit).max()))
    images = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    assert pf.VESDE.from_data(pf.Charges(images)).sigma_min == pytest.approx(0.02)
    assert pf.VESDE.from_data(pf.Charges(images), sigma_min=0.5).sigma_min == 0.5
    with pytest.raises(pf.ArgumentError, match="sigma_min"):
        pf.VESDE.from_data(pf.Charges(torch.ones(4, 3)))


def test_edm_scales_with_its_data() -> None:
    method = pf.PFGMpp.from_data(CHARGES, aug_dim=64.0)
    deviation = float(CHARGES.values().double().std(correction=0))
    assert method.sigma_data == pytest.approx(deviation)
    assert method.sigma_max == pytest.approx(160 * deviation)
    assert method.sigma_min == pytest.approx(0.004 * deviation)
    assert method.P_mean == pytest.approx(-1.2 + math.log(2 * deviation))
    assert pf.EDM.from_data(CHARGES, sigma_data=0.5) == pf.EDM()


@pytest.mark.parametrize("kind", [pf.VPSDE, pf.SubVPSDE])
def test_vp_trains_to_1e_5_and_samples_to_1e_3(kind) -> None:
    method = kind()
    assert (method.t_min, method.sampling_eps) == (1e-5, 1e-3)
    _, t = method.perturb(torch.zeros(200_000, 2), torch.Generator().manual_seed(0))
    assert 1e-5 <= float(t.min()) < 1e-4
    path = pf.sample(CHARGES, (2, 3, 4), "ancestral", 9, method=method, seed=0, record=True).path
    assert [path[-2][0], path[-1][0]] == [1e-3, 0.0]
    assert method.flow(CHARGES).likelihood_end == 1e-5
    coarse = kind(t_min=0.05)  # nothing is asked of a network below where it was trained
    assert coarse.flow(CHARGES).grid(3)[-1] == 0.05


def test_likelihoods_end_at_t_min() -> None:
    """A Gaussian's density to the noise that is left at 1e-5, not at sampling's 1e-3: that would be off by ln 10 an element."""
    method, x = pf.VPSDE(), 0.01 * torch.randn(4, 3, dtype=torch.float64)
    lone = pf.Charges(torch.zeros(1, 3, dtype=torch.float64))
    found = pf.log_likelihood(lone, x * 0.1, method, rtol=1e-6, atol=1e-6)
    deviation = method.marginal_prob(1e-5)[1]
    normal = torch.distributions.Normal(0.0, deviation)
    torch.testing.assert_close(found.log_density, normal.log_prob(x * 0.1).sum(1), rtol=0, atol=0.02)


def test_one_extra_dimension_is_pfgm() -> None:
    """D = 1: the denoiser of PFGM++ is x − z v_x/v_z of PFGM's target, r = σ; and the flows are one."""
    x = torch.randn(9, 3, 4, dtype=torch.float64) * torch.logspace(-1, 2, 9).double()[:, None, None]
    for z in (0.01, 1.0, 30.0):
        vx, vz = pf.pfgm_target(x, z, CHARGES)
        mean = pf.posterior_mean(x, z, CHARGES, 1.0)
        torch.testing.assert_close(x - z * vx / vz[:, None, None], mean, rtol=1e-7, atol=1e-7)
    one, other = pf.PFGMpp(1.0).flow(CHARGES), pf.PFGM().flow(CHARGES)
    for t in (0.01, 1.0, 30.0):
        slopes = [flow.derivative(x, flow.evaluate(x, t), t) for flow in (one, other)]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=0)


def test_a_million_dimensions_are_diffusion() -> None:
    """D = 10⁶ against ∞ to 1e-3: perturbation kernel, denoiser, prior density up to its tail, samples of the same start."""
    million, limit = pf.PFGMpp(1e6), pf.EDM()
    x0 = limit.prior((20, 3, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = CHARGES.values(slice(0, 20)) + x0 / 100
    for sigma in (0.1, 1.0, 10.0):
        means = [pf.posterior_mean(x, sigma * m.radius_scale, CHARGES, m.aug_dim) for m in (million, limit)]
        torch.testing.assert_close(means[0], means[1], rtol=1e-3, atol=1e-3)
    ends = [
        pf.sample(CHARGES, (20, 3, 4), "heun", 18, method=m, x0=x0, denoise=False).x for m in (million, limit)
    ]
    assert float((ends[0] - ends[1]).abs().max()) < 1e-3
    densities = [m.prior_log_density(x0) for m in (million, limit)]
    torch.testing.assert_close(densities[0], densities[1], rtol=0, atol=1e-3)


def test_runs_of_old_names_are_read() -> None:
    """As the first version wrote them: their networks go on being given 250 ln σ."""
    old = {
        "name": "pfgmpp",
        "aug_dim": 128.0,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "data_std": 0.4,
        "log_mean": -1.0,
        "log_std": 1.1,
        "rho": 7.0,
        "stable": True,
    }
    method = from_dict(old)
    assert method == pf.PFGMpp(128.0, sigma_data=0.4, P_mean=-1.0, P_std=1.1, c_noise_scale=250.0)
    assert from_dict(method.to_dict()) == method
    assert from_dict({"name": "pfgmpp", "aug_dim": "inf"}).aug_dim == math.inf
    assert from_dict({"name": "vp", "beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-3}).t_min == 1e-3
    with pytest.raises(pf.ArgumentError, match="edm is D = inf"):
        from_dict({"name": "edm", "aug_dim": 5.0})
    with pytest.raises(pf.ArgumentError, match="unexpected keyword argument 'sigma'"):
        from_dict({"name": "edm", "sigma": 5.0})
