"""Presets: whole runs by name; and the run that fits a data set, where none is named.

CIFAR-10, CelebA-64 and LSUN-256 are PFGM's (arXiv 2209.11178, appendices B and D) with the numbers of the configurations that
its authors released with their DDPM++ checkpoints: M_exp, z_max, upper_norm, z_exp, batch, learning rate, averages, updates. What differs
is the field: over the whole data set, not over a second batch of 4,096, 512 or 32 images; LSUN's, which do not fit in memory, over a
reservoir of 4,096.

PFGM++'s and EDM's (arXiv 2302.04265, arXiv 2206.00364 appendix F.2 and table 7) are the configurations of their released runs: the
networks, preconditioning, augmentation with labels, batches, rates, dropout and averages by half-life. Their targets are the images
themselves, as published. Exact ones, over a reference batch or the whole set, are `--set method.stable=yes`, with `train.field_charges`
and `train.augment_group` where there is augmentation (`nn.augment` says what that costs), or without it: `train.augment=0
network.augment_dim=0 train.flip=yes`. Of `lsun256-pfgmpp` the factor of σ is the authors'; D, batch and rate are not published.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pfgm_fast.data import ImageSet, ImageStream
from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn import UNetConfig
from pfgm_fast.nn.augment import AUGMENT_DIM
from pfgm_fast.training.config import RunConfig, Size, TrainConfig, image_shape


def _pfgm(
    m_exp: int, z_max: float, upper_norm: float, z_exp: float, loss_reduction: str = "half_sum"
) -> dict[str, Any]:
    """What differs between data sets; σ = .01, τ = .03, γ = 5 and z_min = 1e-3 are everywhere the same. loss_reduction: as released,
    half the sum for CIFAR-10 and CelebA (so that clipping at 1 scales nearly every update), the mean for LSUN."""
    ends = {"z_max": z_max, "upper_norm": upper_norm, "z_exp": z_exp}
    return {"name": "pfgm", "m_exp": m_exp, **ends, "loss_reduction": loss_reduction}


def _training(steps: int, batch: int, lr: float) -> TrainConfig:
    """Adam with 5,000 updates of warm-up, gradients clipped at 1, one average, mirror images, a snapshot every 50,000 updates."""
    return TrainConfig(
        steps=steps,
        batch=batch,
        lr=lr,
        warmup=5000,
        clip=1.0,
        ema=(0.9999,),
        flip=True,
        precision="bfloat16",
        checkpoint_every=10_000,
        snapshot_every=50_000,
    )


def _edm(
    data: str,
    method: dict[str, Any],
    network: UNetConfig,
    *,
    images: float,
    batch: int,
    lr: float,
    augment: float,
    ema_half_life: float = 500_000,
    reservoir: int | None = None,
    size: int | None = None,
) -> RunConfig:
    """EDM's recipe. images: of the whole training. The rate is reached over 10 million images; gradients are not clipped; the loss is the
    sum over an image's elements."""
    name = {"name": "pfgmpp" if "aug_dim" in method else "edm", "stable": False, "loss_reduction": "sum"}
    train = TrainConfig(
        steps=round(images / batch),
        batch=batch,
        lr=lr,
        warmup=round(10e6 / batch),
        clip=0.0,
        ema_half_life=(ema_half_life,),
        flip=False,
        augment=augment,
        reservoir=reservoir,
        conditional=network.classes > 0,
        precision="bfloat16",
        skip_nonfinite=10,
        checkpoint_every=10_000,
        snapshot_every=50_000,
    )
    network = replace(network, augment_dim=AUGMENT_DIM if augment else 0)
    return RunConfig(
        data,
        method={**name, **EDM_SETTINGS, **method},
        network=network,
        preconditioning="edm",
        train=train,
        size=size,
    )


EDM_SETTINGS = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "P_mean": -1.2, "P_std": 1.2}
"""EDM's, for images in [−1, 1]; PFGM++ takes them over for every D (r = σ√D, section 4)."""
LSUN_NOISE = 4.75
"""What σ is multiplied by for 256² pixels: 380, VE's σ_max there, over EDM's 80."""


def _cifar10(method: dict[str, Any], name: str, classes: int = 0) -> RunConfig:
    network = UNetConfig.named(name, 3, 32, 128, (2, 2, 2), 4, (16,), dropout=0.13, classes=classes)
    return _edm("cifar10", method, network, images=200e6, batch=512, lr=1e-3, augment=0.12)


def _faces64(data: str, dropout: float) -> RunConfig:
    """FFHQ and AFHQv2 at 64², PFGM++ with D = 128; EDM's is method.name=edm with the rest alike."""
    network = UNetConfig.named("ddpmpp", 3, 64, 128, (1, 2, 2, 2), 4, (16,), dropout=dropout)
    method = {"aug_dim": 128.0}
    return _edm(data, method, network, images=200e6, batch=256, lr=2e-4, augment=0.15, size=64)


PRESETS: dict[str, RunConfig] = {
    "digits": RunConfig(
        data="digits",
        network=UNetConfig(1, 8, 32, (1, 2), 2, (4,), dropout=0.0),
        train=TrainConfig(
            steps=900,
            batch=128,
            lr=1e-3,
            warmup=100,
            decay=0.4,
            ema=(0.995,),
            flip=False,
            precision="auto",
            log_every=10,
            sample_every=0,
            checkpoint_every=300,
        ),
    ),
    "mnist": RunConfig(
        data="mnist",
        network=UNetConfig(1, 28, 32, (1, 2, 2), 1, (7,), dropout=0.0),
        train=TrainConfig(
            steps=6000,
            batch=64,
            lr=1e-3,
            warmup=200,
            decay=0.4,
            ema=(0.999,),
            flip=False,
            precision="auto",
            sample_every=1000,
            checkpoint_every=500,
        ),
    ),
    "cifar10": RunConfig(
        data="cifar10",
        method=_pfgm(291, 40.0, 3000.0, z_exp=5.0),
        network=UNetConfig(3, 32, 128, (1, 2, 2, 2), 4, (16,), dropout=0.1),
        train=_training(1_300_000, batch=128, lr=2e-4),
    ),
    "celeba64": RunConfig(
        data="celeba",
        size=64,
        crop=140,
        method=_pfgm(291, 60.0, 6000.0, z_exp=1.0),
        network=UNetConfig(3, 64, 128, (1, 2, 2, 2), 4, (16,), dropout=0.1),
        train=_training(1_300_000, batch=128, lr=2e-4),
    ),
    "lsun256": RunConfig(
        data="lsun",
        size=256,
        method=_pfgm(356, 100.0, 30_000.0, z_exp=0.1, loss_reduction="mean"),
        network=UNetConfig(3, 256, 128, (1, 1, 2, 2, 4, 4), 2, (16,), dropout=0.0),
        train=replace(_training(2_400_000, batch=32, lr=2e-5), reservoir=4096),
    ),
    "cifar10-pfgmpp-128": _cifar10({"aug_dim": 128.0}, "ncsnpp"),
    "cifar10-pfgmpp-2048": _cifar10({"aug_dim": 2048.0}, "ncsnpp"),
    "cifar10-edm": _cifar10({}, "ddpmpp"),
    "cifar10-pfgmpp-128-conditional": _cifar10({"aug_dim": 128.0}, "ncsnpp", 10),
    "cifar10-pfgmpp-2048-conditional": _cifar10({"aug_dim": 2048.0}, "ncsnpp", 10),
    "cifar10-edm-conditional": _cifar10({}, "ddpmpp", 10),
    "ffhq64": _faces64("ffhq", dropout=0.05),
    "afhq64": _faces64("afhqv2", dropout=0.25),
    "imagenet64": _edm(
        "imagenet",
        {},
        UNetConfig.named("adm", 3, 64, 192, (1, 2, 3, 4), 3, (32, 16, 8), dropout=0.1, classes=1000),
        images=2500e6,
        batch=4096,
        lr=1e-4,
        augment=0.0,
        ema_half_life=50e6,
        size=64,
    ),
    "lsun256-pfgmpp": _edm(
        "lsun",
        {"aug_dim": 2048.0, "sigma_max": 80.0 * LSUN_NOISE, "P_mean": -1.2 + math.log(LSUN_NOISE)},
        UNetConfig.named("ncsnpp", 3, 256, 128, (1, 1, 2, 2, 4, 4), 2, (16,), dropout=0.0),
        images=200e6,
        batch=256,
        lr=2e-4,
        augment=0.0,
        reservoir=4096,
        size=256,
    ),
}
"""name → a run; `--data` names the files where the preset is not digits."""


def preset(name: str) -> RunConfig:
    """Raises: ArgumentError for an unknown name."""
    if name not in PRESETS:
        raise ArgumentError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


OF_THE_DATA = ("m_exp", "z_max", "upper_norm")
"""Hyper-parameters of a preset's method that belong to its images' dimension and norm, for which `from_data` has rules."""


def adapted(base: RunConfig, images: ImageSet | ImageStream) -> RunConfig:
    """A recipe for images of another shape or other classes.

    The recipe fixes width, blocks, multipliers as far as the edges can be halved, the levels with attention, dropout, training, and of
    the method what is no rule of the data. The data decide channels, height and width, the number of classes where the training is
    conditional, and M_exp, z_max, upper_norm unless the shape is the recipe's own, for which they stand as published.

    Raises: ArgumentError where the edges cannot be halved as often as their length asks for, with sizes that can.
    """
    network, method = base.network, base.method
    channels, height, width = images.shape
    if images.shape != image_shape(network):
        levels = min(len(network.multipliers), _levels(height, width))
        at = {
            min(i, levels - 1) for i, (_, (edge, _)) in enumerate(network.levels) if edge in network.attention
        }
        network = replace(
            network,
            channels=channels,
            image_size=(height, width),
            multipliers=network.multipliers[:levels],
            attention=tuple(height >> i for i in sorted(at)),
        )
        if method is not None:
            method = {key: value for key, value in method.items() if key not in OF_THE_DATA}
    classes = images.num_classes if base.train.conditional else network.classes
    return replace(base, network=replace(network, classes=classes), method=method)


MULTIPLIERS = ((1,), (1, 2), (1, 2, 2), (1, 2, 2, 2), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4))
"""Of a network of one to six levels."""
SMALLEST = 4
"""Edge of the lowest level, at least."""
ATTENTION = 16
"""Attention goes to the highest level whose longer edge is at most this."""


def for_data(images: ImageSet | ImageStream, data: str, size: Size = None) -> RunConfig:
    """The run for images of any shape: network by their size, classes by their labels, method by its rules for the data.

    Levels: halved while both edges stay even and at least 4, up to four times below 128 pixels and six above. Width: 32 up to
    16 pixels, 64 up to 64, 128 above (the longer edge). The mirror images are not used: a letter has none.

    Raises: ArgumentError where the edges cannot be halved as often as their length asks for, with sizes that can.
    """
    channels, height, width = images.shape
    levels = _levels(height, width)
    longer = max(height, width)
    features = 32 if longer <= 16 else 64 if longer <= 64 else 128
    attention = next(height >> i for i in range(levels) if longer >> i <= ATTENTION or i == levels - 1)
    classes = images.num_classes if images.num_classes > 1 else 0
    edges: Any = height if height == width else (height, width)
    network = UNetConfig(
        channels, edges, features, MULTIPLIERS[levels - 1], 2, (attention,), dropout=0.1, classes=classes
    )
    train = TrainConfig(
        steps=50_000,
        batch=128,
        lr=5e-4,
        warmup=500,
        decay=0.4,
        ema=(0.999,),
        flip=False,
        precision="auto",
        conditional=classes > 0,
        sample_every=1000,
        checkpoint_every=1000,
    )
    return RunConfig(data, size=size, network=network, train=train)


def takes(height: int, width: int) -> bool:
    """Whether images of this size can be halved as often as their length asks for."""
    try:
        _levels(height, width)
    except ArgumentError:
        return False
    return True


def _levels(height: int, width: int) -> int:
    shorter, most = min(height, width), 4 if max(height, width) < 128 else 6
    levels = 1
    while (
        levels < most
        and not (height >> (levels - 1)) % 2
        and not (width >> (levels - 1)) % 2
        and shorter >> levels >= SMALLEST
    ):
        levels += 1
    if shorter >> (levels - 1) > 2 * ATTENTION:
        step = 1
        while shorter // step > ATTENTION:
            step *= 2
        near = [max(step, round(edge / step) * step) for edge in (height, width)]
        raise ArgumentError(
            f"images of {height}×{width} cannot be halved often enough for a network of several levels: "
            f"give --size {near[0]}x{near[1]}, or another size whose edges are multiples of {step}"
        )
    return levels
