"""Augmentation with labels and its exact targets; the average of the weights."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn import EMA, AugmentPipe, augmented_posterior_mean, ema_decay
from pfgm_fast.nn.augment import AUGMENT_DIM, Augmentation


def only(count: int = 1, **given: float) -> Augmentation:
    names = ("flip_x", "flip_y", "scale", "angle", "direction", "stretch", "shift_x", "shift_y")
    return Augmentation(**{name: torch.full((count,), float(given.get(name, 0.0))) for name in names})


def smooth(count: int, size: tuple[int, int]) -> torch.Tensor:
    """Images without fine detail, so that resampling twice loses little."""
    coarse = torch.randn(count, 1, 4, 4)
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_each_kind_does_what_it_says(size: tuple[int, int]) -> None:
    x = smooth(2, size)
    torch.testing.assert_close(only(2).apply(x), x)
    assert torch.equal(only(2, flip_x=1).apply(x), x.flip(3))
    assert torch.equal(only(2, flip_y=1).apply(x), x.flip(2))
    inside = (..., slice(4, -4), slice(4, -4))
    eighth = only(2, shift_x=4 * 8 / size[1]).apply(x)  # four pixels to the right
    torch.testing.assert_close(eighth[..., 4:], x[..., :-4], atol=0.05, rtol=0)
    half_turn = only(2, angle=math.pi).apply(x)
    torch.testing.assert_close(half_turn[inside], x.flip((2, 3))[inside], atol=0.05, rtol=0)
    back = only(2, scale=-1.5).apply(only(2, scale=1.5).apply(x))
    torch.testing.assert_close(back[inside], x[inside], atol=0.1, rtol=0)
    across = only(2, stretch=1, direction=math.pi / 2).apply(x)
    torch.testing.assert_close(across[inside], only(2, stretch=-1).apply(x)[inside], atol=1e-4, rtol=0)


def test_a_quarter_turn_is_a_rotation_in_pixels() -> None:
    """Not in coordinates scaled to the sides: an image that is not square keeps its content's shape."""
    x = torch.zeros(1, 1, 16, 24)
    x[0, 0, 7:9, 6:18] = 1  # a bar of 12 × 2 pixels about the centre
    turned = only(angle=math.pi / 2).apply(x)
    expected = torch.zeros(1, 1, 16, 24)
    expected[0, 0, 2:14, 11:13] = 1
    assert float((turned - expected).abs().mean()) < 0.02


def test_labels_are_the_papers_and_zero_for_no_change() -> None:
    drawn = AugmentPipe(0.5).draw(4000, torch.Generator().manual_seed(0))
    assert drawn.labels.shape == (4000, AUGMENT_DIM)
    assert torch.equal(only(3).labels, torch.zeros(3, 9))
    torch.testing.assert_close(
        only(angle=math.pi / 2, stretch=2, direction=math.pi).labels[0],
        torch.tensor([0, 0, 0, -1.0, 1.0, -2.0, 0, 0, 0]),
        atol=1e-6,
        rtol=0,
    )
    shares = [
        (value != 0).float().mean()
        for value in (drawn.flip_x, drawn.flip_y, drawn.scale, drawn.angle, drawn.stretch, drawn.shift_x)
    ]
    assert [float(share) for share in shares] == pytest.approx([0.5, 0.25, 0.5, 0.5, 0.5, 0.5], abs=0.03)
    never = AugmentPipe(0.0, flip_x=0.0).draw(50)
    assert torch.equal(never.labels, torch.zeros(50, 9))
    grouped = AugmentPipe(1.0).draw(10, group=4)
    assert torch.equal(grouped.labels[0], grouped.labels[3])
    assert not torch.equal(grouped.labels[3], grouped.labels[4])
    with pytest.raises(ArgumentError, match="probability must lie"):
        AugmentPipe(1.2)


@pytest.mark.parametrize("aug_dim", [128.0, math.inf])
def test_targets_are_over_the_charges_transformed_alike(aug_dim: float) -> None:
    """By the definition, image by image; and not what the charges as they are would say."""
    reference = smooth(40, (12, 12))
    drawn = AugmentPipe(0.2).draw(12, torch.Generator().manual_seed(1), group=2)
    assert 0 < int(drawn.lossless.sum()) < 12
    sigma = torch.linspace(0.2, 1.0, 12)
    x = drawn.apply(reference[:12]) + sigma.view(-1, 1, 1, 1) * torch.randn(12, 1, 12, 12)
    r = sigma * (1 if math.isinf(aug_dim) else aug_dim**0.5)
    got = augmented_posterior_mean(x, r, reference, drawn, aug_dim)
    for i in range(12):
        moved = drawn.rows(torch.full((40,), i)).apply(reference).double()
        with pf.use_backend("reference"):
            mean = pf.posterior_mean(x[i : i + 1].double(), float(r[i]), moved, aug_dim)
        torch.testing.assert_close(got[i : i + 1].double(), mean, rtol=1e-4, atol=1e-4)
    # No better target exists: of all functions of x and a, the conditional mean has the least squared error.
    plain = pf.posterior_mean(x, r, reference, aug_dim)
    error, wrong = ((t - drawn.apply(reference[:12])).square().mean() for t in (got, plain))
    assert float(error) < 0.5 * float(wrong)


def test_ema_has_its_half_life_and_ramp_up() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
    ema = EMA(net, half_life=1000, ramp_up=None)
    with torch.no_grad():
        net.weight.fill_(1.0)
    for _ in range(10):
        ema.update(net, 100)
    assert float(ema.module.weight.detach()) == pytest.approx(0.5)  # half of the change after the half-life
    assert int(ema.seen) == 1000
    assert ema_decay(100, 0, 1000, 0.05) == 0.0
    assert ema_decay(100, 2000, 1000, 0.05) == pytest.approx(0.5)  # half-life 5% of 2,000 images
    assert ema_decay(100, 10**6, 1000, 0.05) == pytest.approx(0.5**0.1)
    resumed = EMA(net, half_life=1000, ramp_up=None)
    resumed.load_state_dict(ema.state_dict())
    assert resumed.update(net, 100) == ema.update(net, 100)
    assert torch.equal(resumed.module.weight, ema.module.weight)
    assert not ema.module.weight.requires_grad
    with pytest.raises(ArgumentError, match="half_life"):
        EMA(net, half_life=0)


def test_ema_copies_buffers() -> None:
    net = torch.nn.BatchNorm1d(2)
    ema = EMA(net)
    net(torch.randn(8, 2) + 5)
    ema.update(net, 8)
    assert torch.equal(ema.module.running_mean, net.running_mean)
