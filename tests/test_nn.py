"""DDPM++: shapes, sizes, conditioning, precision."""

from __future__ import annotations

import pytest
import torch

from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn import DDPMpp, UNetConfig
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
    assert rough.dtype == torch.bfloat16
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
