"""pf.IdealDenoiser: the exact posterior mean in a network's place."""

import itertools
import math

import pytest
import torch

import pfgm_fast as pf


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (40, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("aug_dim", [1.0, 128.0, math.inf])
def test_is_the_posterior_mean_at_r_of_sigma(images, x, aug_dim):
    ideal = pf.IdealDenoiser(images, aug_dim)
    radius = 0.7 * (1 if math.isinf(aug_dim) else math.sqrt(aug_dim))
    expected = pf.posterior_mean(x, radius, pf.Charges(images), aug_dim)
    for sigma in (
        0.7,
        torch.tensor(0.7),
        torch.full((6,), 0.7),
        torch.full((6, 1, 1, 1), 0.7, dtype=torch.float64),
    ):
        assert torch.equal(ideal(x, sigma), expected)


def test_half_precision_in_and_out_is_computed_in_float32(images, x):
    ideal = pf.IdealDenoiser(images).half()
    half = x.half()
    assert ideal(half, 0.5).dtype == torch.float16
    assert torch.equal(ideal(half, 0.5), pf.IdealDenoiser(images)(half.float(), 0.5).half())


def test_float_charges_take_queries_of_the_other_dtype(x):
    data = torch.randn(20, 2, 4, 4)
    wide = pf.IdealDenoiser(data.double())(x, 0.5)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(pf.IdealDenoiser(data)(x.double(), 0.5).float(), wide, rtol=1e-5, atol=1e-6)


def test_classes_as_indices_as_one_hot_and_none(images, x):
    labels = torch.arange(40) % 3
    charges = pf.Charges(images, labels=labels)
    ideal = pf.IdealDenoiser(charges)
    wanted = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = pf.posterior_mean(x, 0.8, charges, math.inf, labels=wanted)
    assert ideal.label_dim == 3
    torch.testing.assert_close(ideal(x, 0.8, wanted), expected, rtol=0, atol=1e-6)
    hot = torch.nn.functional.one_hot(wanted, 3).float()
    torch.testing.assert_close(ideal(x, 0.8, hot), expected, rtol=0, atol=1e-6)
    hot[1] = 0  # EDM's row without a class: all charges
    mixed = ideal(x, 0.8, hot)
    torch.testing.assert_close(mixed[1:2], ideal(x[1:2], 0.8), rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed[2:], expected[2:], rtol=0, atol=1e-6)


def test_is_a_module_that_edm_and_k_diffusion_can_call(images, x):
    ideal = pf.IdealDenoiser(images).eval().requires_grad_(False)
    assert (ideal.sigma_min, ideal.sigma_max) == (0.0, math.inf)
    assert (ideal.img_channels, ideal.img_resolution) == (2, 4)
    assert float(ideal.round_sigma(0.3)) == pytest.approx(0.3)
    assert not list(ideal.parameters()) and not ideal.state_dict()
    # k-diffusion's Euler, by its published formula: d = (x − D)/σ
    sigmas = torch.tensor([20.0, 5.0, 1.0, 0.2, 0.01])
    state = 20 * x
    for sigma, after in itertools.pairwise(sigmas):
        state = state + (state - ideal(state, sigma * state.new_ones(len(x)))) / sigma * (after - sigma)
    values = pf.Charges(images).values().flatten(1)
    assert float(torch.cdist(state.flatten(1), values).min(1).values.max()) < 0.2


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "dpm_2", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde"]
)
def test_the_samplers_of_k_diffusion_end_on_the_data(images, x, sampler):
    """k-diffusion's own, where it is installed (0.1.1 was tried); a new version of it may ask for more than a module."""
    samplers = pytest.importorskip("k_diffusion.sampling", reason="k-diffusion is not installed")
    sigmas = samplers.get_sigmas_karras(30, 0.002, 80.0)
    drawn = getattr(samplers, f"sample_{sampler}")(pf.IdealDenoiser(images), 80 * x, sigmas, disable=True)
    values = pf.Charges(images).values().flatten(1)
    apart = (drawn.flatten(1)[:, None].double() - values.double()).norm(dim=2)
    assert float(apart.amin(1).max()) <= 1e-5


def test_gradients_pass_through(images, x):
    sigma = torch.full((6,), 0.9, requires_grad=True)
    x = x.clone().requires_grad_()
    pf.IdealDenoiser(images)(x, sigma).square().sum().backward()
    assert float(x.grad.norm()) > 0 and float(sigma.grad.norm()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": torch.ones(5)}, "sigma must be one number, or one for each of the 6 images"),
        ({"sigma": torch.ones(1, 2, 4, 4)}, "sigma must be one number"),
        ({"sigma": 1.0, "labels": torch.ones(6, 3)}, "one-hot"),
        ({"sigma": 1.0, "labels": torch.zeros(5, dtype=torch.int64)}, "labels must be classes"),
        ({"sigma": 1.0, "labels": torch.zeros(6, dtype=torch.int64)}, "no labels"),
    ],
)
def test_bad_arguments_are_named(images, x, arguments, message):
    with pytest.raises(pf.ArgumentError, match=message):
        pf.IdealDenoiser(images)(x, **arguments)
