"""Networks: shapes, sizes, conditioning, precision; preconditionings by the paper's table."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn import PRECONDITIONINGS, DDPMpp, Guided, UNetConfig, denoiser, unet
from pfgm_fast.nn.layers import positional_embedding


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(1, 8, 8, (1,), 1, ()),
        UNetConfig(1, 28, 8, (1, 2, 2), 1, (7,)),
        UNetConfig(3, 32, 8, (1, 2), 2, (32, 16)),
        UNetConfig(3, 64, 4, (1, 1, 2, 2), 1, (16,), classes=3),
    ],
    ids=str,
)
def test_shapes_and_gradients(config: UNetConfig) -> None:
    net = DDPMpp(config)
    x = torch.randn(2, config.channels, config.image_size, config.image_size)
    labels = torch.tensor([0, 2]) if config.classes else None
    vx, vz = net(x, torch.tensor([0.1, 30.0]), labels)
    assert vx.shape == x.shape
    assert vz.shape == (2,)
    (vx.square().sum() + vz.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_256_colour_is_built_without_being_run() -> None:
    with torch.device("meta"):
        net = DDPMpp(UNetConfig(3, 256, 128, (1, 1, 2, 2, 4, 4), 2, (16,)))
        vx, vz = net(torch.empty(2, 3, 256, 256), torch.empty(2))
    assert vx.shape == (2, 3, 256, 256)
    assert vz.shape == (2,)


def test_paper_size() -> None:
    with torch.device("meta"):
        net = DDPMpp(UNetConfig())
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(61.8e6, rel=2e-3)


def test_z_and_labels_matter() -> None:
    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(1, 8, 8, (1, 2), 1, (4,), classes=4)).eval()
    with torch.no_grad():
        for p in net.parameters():  # layers that begin at zero would hide it
            p.add_(0.05 * torch.randn_like(p))
        x, z = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 1.0])
        base = net(x, z)[0]
        assert not torch.allclose(base, net(x, 2 * z)[0])
        assert not torch.allclose(net(x, z, torch.tensor([0, 1]))[0], net(x, z, torch.tensor([2, 1]))[0])


def test_autocast_stays_close() -> None:
    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(1, 8, 16, (1, 2), 1, (4,), dropout=0.0)).eval()
    x, z = torch.randn(4, 1, 8, 8), torch.rand(4) * 10
    with torch.no_grad():
        exact = net(x, z)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(x, z)[0]
    assert rough.dtype == torch.float32  # the output layer's; what comes before is bfloat16
    assert (rough.float() - exact).norm() / exact.norm().clamp(min=1e-3) < 0.1


def test_positional_embedding_is_the_papers() -> None:
    got = positional_embedding(torch.tensor([2.0]), 6)
    frequencies = torch.tensor([1.0, 0.01, 0.0001])
    torch.testing.assert_close(got[0], torch.cat([(2 * frequencies).sin(), (2 * frequencies).cos()]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 6}, "multiple of 4"),
        ({"image_size": 6, "multipliers": (1, 1, 1)}, "halved 2 times"),
        ({"channels": 0}, "must be ≥ 1"),
        ({"multipliers": ()}, "must not be empty"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
    ],
)
def test_bad_configs(change: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        UNetConfig(**change)


def test_wrong_image_shape_and_missing_classes() -> None:
    net = DDPMpp(UNetConfig(1, 8, 8, (1,), 1, ()))
    with pytest.raises(ArgumentError, match="expects images of shape"):
        net(torch.randn(1, 3, 8, 8), torch.ones(1))
    with pytest.raises(ArgumentError, match="without classes"):
        net(torch.randn(1, 1, 8, 8), torch.ones(1), torch.tensor([0]))


KINDS = {
    "DDPM++": UNetConfig(2, (8, 12), 8, (1, 2, 2), 1, (4, 2), classes=3, augment_dim=9),
    "NCSN++": UNetConfig.ncsnpp(2, (8, 12), 8, (1, 2, 2), 1, (4,), classes=3, augment_dim=9),
    "skip": UNetConfig(
        2, (8, 12), 8, (1, 2, 2), 1, (), encoder="skip", decoder="skip", classes=3, augment_dim=9
    ),
    "ADM": UNetConfig(2, (8, 12), 32, (1, 2, 2), 1, (4, 2), architecture="adm", classes=3, augment_dim=9),
}


def stirred(net: torch.nn.Module) -> torch.nn.Module:
    """Layers that begin at zero would hide what they are given."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize("name", KINDS)
def test_every_network_takes_images_that_are_not_square(name: str) -> None:
    """H and W multiples of 2^(levels − 1), also others than it was made for; a message for the rest; JSON holds it all."""
    config = KINDS[name]
    assert UNetConfig(**config.to_dict()) == config
    net = stirred(unet(config))
    noise = torch.tensor([0.3, 2.0])
    for size in ((8, 12), (16, 4), (4, 20)):
        x = torch.randn(2, 2, *size)
        assert net(x, noise).shape == x.shape
    turned = net(torch.randn(2, 2, 8, 12).to(memory_format=torch.channels_last), noise)
    assert turned.shape == (2, 2, 8, 12)
    for bad in ((2, 2, 8, 10), (2, 2, 6, 12), (2, 1, 8, 12), (2, 8, 12)):
        with pytest.raises(ArgumentError, match="H and W multiples of 4"):
            net(torch.randn(bad), noise)
    x = torch.randn(2, 2, 8, 12)
    net(x, noise, torch.tensor([0, 2]), torch.randn(2, 9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_labels_by_class_or_one_hot_and_their_dropout(name: str) -> None:
    config = KINDS[name]
    net = stirred(denoiser(config))
    x, sigma, classes = torch.randn(2, 2, 8, 12), torch.tensor([0.5, 3.0]), torch.tensor([2, 0])
    hot = torch.nn.functional.one_hot(classes, 3)
    with torch.no_grad():
        given = net(x, sigma, classes)
        for other in (hot, hot.double(), hot.bool()):
            torch.testing.assert_close(net(x, sigma, other), given)
        without = net(x, sigma)
        assert not torch.allclose(without, given, atol=1e-4)
        torch.testing.assert_close(net(x, sigma, torch.zeros(2, 3)), without)
        assert not torch.allclose(net(x, sigma, classes, augment_labels=torch.ones(2, 9)), given, atol=1e-4)
        torch.testing.assert_close(net(x, sigma, classes, augment_labels=torch.zeros(2, 9)), given)
    always = denoiser(UNetConfig(**{**config.to_dict(), "label_dropout": 1.0, "dropout": 0.0}))
    always.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            always.eval()(x, sigma, classes), given
        )  # no label is withheld but in training
        torch.testing.assert_close(always.train()(x, sigma, classes), without)
    for bad, message in (
        (torch.tensor([0, 3]), r"must lie in \[0, 3\)"),
        (torch.zeros(2, 4), "one-hot"),
        ([0, 1], "one-hot"),
    ):
        with pytest.raises(ArgumentError, match=message):
            net(x, sigma, bad)
    with pytest.raises(ArgumentError, match="without classes"):
        denoiser(UNetConfig(2, 8, 8, (1,), 1, ()))(torch.randn(2, 2, 8, 8), 1.0, classes)


def test_attention_begins_with_a_tenth_of_the_variance() -> None:
    """q, k and v of variance 0.1/C, as the authors' NIN with init_scale 0.1."""
    net = unet(UNetConfig(3, 16, 64, (1, 2), 1, (8,)))
    weight = net.enc["8x8_block0"].qkv.weight.detach()
    assert float(weight.var()) == pytest.approx(0.1 / 128, rel=0.03)
    assert float(net.enc["8x8_block0"].proj.weight.detach().abs().max()) < 1e-5


@pytest.mark.parametrize("kind", PRECONDITIONINGS)
def test_sigma_of_any_shape_and_precision(kind: str) -> None:
    net = stirred(denoiser(UNetConfig(1, 8, 8, (1, 2), 1, (4,)), kind))
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 40.0])
    with torch.no_grad():
        given = net(x, sigma)
        for shape in ((3, 1), (3, 1, 1, 1)):
            torch.testing.assert_close(net(x, sigma.view(shape)), given)
        one = net(x, 1.0)
        for other in (
            torch.tensor(1.0),
            torch.tensor([1]),
            torch.ones(1, 1, 1, 1),
            torch.ones(3, dtype=torch.float64),
        ):
            torch.testing.assert_close(net(x, other), one)
        torch.testing.assert_close(one[1], given[1])
        double = net(x.double(), sigma)
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), given, rtol=1e-4, atol=1e-5)
        for dtype in (torch.float16, torch.bfloat16):
            rough = net(x.to(dtype), sigma)
            assert rough.dtype == dtype
            torch.testing.assert_close(rough.float(), given, rtol=0.05, atol=0.3)
        net.half_precision = "bfloat16"
        half = net(x, sigma)
        assert half.dtype == torch.float32
        assert 0 < float((half - given).norm() / given.norm()) < 0.1
        assert torch.equal(net(x, sigma, force_fp32=True), given)
    rounded = net.round_sigma(torch.tensor([0.5]))
    assert float(rounded) == pytest.approx(0.5, rel=0.02 if kind == "iddpm" else 0)
    for bad in (0.0, -1.0, torch.ones(2), math.nan):
        with pytest.raises(ArgumentError, match="sigma"):
            net(x, bad)


def test_coefficients_are_table_1() -> None:
    """Karras et al. 2022, table 1, in Python's numbers."""
    config, sigma = UNetConfig(1, 8, 8, (1,), 1, ()), 0.7
    total = sigma**2 + 0.25
    time = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
    expected = {
        "edm": (0.25 / total, sigma * 0.5 / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4),
        "vp": (1.0, -sigma, 1 / math.sqrt(sigma**2 + 1), 999 * time),
        "ve": (1.0, sigma, 1.0, math.log(sigma / 2)),
    }
    for kind, values in expected.items():
        found = denoiser(config, kind).coefficients(torch.tensor([sigma], dtype=torch.float64))
        assert [float(value) for value in found] == pytest.approx(values, rel=1e-12)
    vp = denoiser(config, "vp")
    assert (vp.sigma_min, vp.sigma_max) == pytest.approx(
        (math.sqrt(math.expm1(1e-6 + 9.95e-10)), math.sqrt(math.expm1(10.05)))
    )
    ddpm = denoiser(config, "iddpm")
    assert ddpm.u.shape == (1001,)
    assert bool((ddpm.u.diff() < 0).all())
    bars = [math.sin(0.5 * math.pi * j / 1000 / 1.008) ** 2 for j in (600, 1000)]
    ratio = (float(ddpm.u[600]) ** 2 + 1) / (float(ddpm.u[1000]) ** 2 + 1)
    assert ratio == pytest.approx(bars[1] / bars[0], rel=1e-4)  # σ² + 1 = 1/ᾱ, where C₁ does not clip
    assert float(ddpm.coefficients(ddpm.u[600:601])[3]) == 999 - 600


def test_guidance() -> None:
    """D_without + w (D_with − D_without); w = 1 is the network itself, and asks it once."""
    net = stirred(denoiser(UNetConfig(1, 8, 8, (1,), 1, (), classes=2)))
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    with torch.no_grad():
        with_labels, without = net(x, 1.0, labels), net(x, 1.0)
        torch.testing.assert_close(Guided(net, 1.0)(x, 1.0, labels), with_labels)
        torch.testing.assert_close(Guided(net, 2.5)(x, 1.0, labels), without + 2.5 * (with_labels - without))
        assert Guided(net, 2.0).label_dim == 2
    with pytest.raises(ArgumentError, match="guidance needs"):
        Guided(denoiser(UNetConfig(1, 8, 8, (1,), 1, ())), 2.0)
    with pytest.raises(ArgumentError, match="preconditioning must be one of"):
        denoiser(UNetConfig(), "ddim")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "residue"}, "encoder must be one of"),
        ({"architecture": "dit"}, "architecture must be one of"),
        ({"image_size": (32, 28), "multipliers": (1, 1, 1, 1)}, "halved 3 times"),
        ({"resample_filter": (1, 2, 1)}, "even number of taps"),
        ({"label_dropout": 2.0}, "label_dropout"),
        ({"augment_dim": -1}, "augment_dim"),
    ],
)
def test_bad_options(change: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        UNetConfig(**change)


@pytest.mark.parametrize("architecture", ["ncsnpp", "adm"])
def test_a_noise_level_that_all_images_share_is_embedded_once(architecture: str) -> None:
    torch.manual_seed(0)
    net = DDPMpp(
        UNetConfig(1, 8, 16, (1, 2), 1, (4,), dropout=0.0, architecture=architecture, classes=3)
    ).eval()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    rows: list[int] = []
    net.unet.map_layer0.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    x, z = torch.randn(4, 1, 8, 8), torch.tensor(2.0)
    with torch.no_grad():
        shared, each = net(x, z.expand(4)), net(x, torch.full((4,), 2.0))
        net(x, z.expand(4), torch.tensor([0, 1, 2, 0]))
        pf.sample(net, x.shape, steps=2)
    assert rows == [1, 4, 4, 1, 1]
    for one, other in zip(shared, each, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
