"""UNetConfig: what a network is, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pfgm_fast.errors import ArgumentError

CHOICES = {
    "architecture": ("ncsnpp", "adm"),
    "embedding": ("positional", "fourier"),
    "encoder": ("standard", "skip", "residual"),
    "decoder": ("standard", "skip"),
    "label_embedding": ("early", "late"),
}


NAMES: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "architecture": "ncsnpp", "embedding": "positional", "encoder": "standard", "decoder": "standard",
        "noise_multiplier": 1, "resample_filter": (1, 1),
    },
    "ncsnpp": {
        "architecture": "ncsnpp", "embedding": "fourier", "encoder": "residual", "decoder": "standard",
        "noise_multiplier": 2, "resample_filter": (1, 3, 3, 1),
    },
    "adm": {"architecture": "adm"},
}  # fmt: skip
"""What the field's names of networks say of a UNetConfig."""


@dataclass(frozen=True)
class UNetConfig:
    """A UNet of the score-SDE line (architecture "ncsnpp": DDPM++ by default, NCSN++ by its options) or ADM ("adm").

    channels: of the image. image_size: height and width, one number or two, each divisible by 2^(levels − 1); a network takes images of
    other such sizes too, with attention at the same levels. width: features at full resolution (a multiple of 4).
    multipliers: features of each level over width. blocks: residual blocks a level (up: one more). attention: heights that get attention.
    classes: number of labels, 0 for an unconditional network; label_dropout: share of training images whose label is withheld.
    augment_dim: augmentation labels (9 of EDM's pipe, 0: none).
    embedding: of the noise level. encoder, decoder: how the image goes into and comes out of the lower levels besides the features.
    noise_multiplier: embedded features of the noise over width. embedding_multiplier: conditioning features over width.
    resample_filter: of up- and down-sampling, (1, 1) or the FIR filter (1, 3, 3, 1). label_embedding: classes are added to the
    noise level's features ("early") or to what the embedding makes of them ("late": networks of runs of version 1).
    ADM has none of these but embedding_multiplier.

    NCSN++ is embedding="fourier", encoder="residual", noise_multiplier=2, resample_filter=(1, 3, 3, 1) (`ncsnpp`).
    Raises: ArgumentError for sizes < 1, image_size that cannot be halved so often, and unknown names.
    """

    named_groups: ClassVar[dict[str, dict[str, Any]]] = NAMES
    """`--set network=NAME` gives these."""

    channels: int = 3
    image_size: int | tuple[int, int] = 32
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    classes: int = 0
    label_dropout: float = 0.0
    augment_dim: int = 0
    architecture: str = "ncsnpp"
    embedding: str = "positional"
    encoder: str = "standard"
    decoder: str = "standard"
    noise_multiplier: int = 1
    embedding_multiplier: int = 4
    resample_filter: tuple[float, ...] = (1, 1)
    label_embedding: str = "early"

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention", "resample_filter"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.image_size, int):
            height, width = self.image_size
            object.__setattr__(self, "image_size", height if height == width else (height, width))
        sizes = (self.channels, *self.size, self.width, self.blocks, *self.multipliers)
        if min(*sizes, self.noise_multiplier, self.embedding_multiplier) < 1:
            raise ArgumentError(f"every size of a network must be ≥ 1; got {self}")
        if not self.multipliers or self.width % 4:
            raise ArgumentError(f"multipliers must not be empty and width be a multiple of 4; got {self}")
        if any(side % self.shrink for side in self.size):
            raise ArgumentError(
                f"image_size {self.image_size} cannot be halved {len(self.multipliers) - 1} times: "
                f"it must be a multiple of {self.shrink}"
            )
        if not 0 <= self.dropout < 1 or not 0 <= self.label_dropout <= 1:
            raise ArgumentError(
                f"dropout must lie in [0, 1), label_dropout in [0, 1]; got {self.dropout}, {self.label_dropout}"
            )
        if self.classes < 0 or self.augment_dim < 0:
            raise ArgumentError(
                f"classes and augment_dim must be ≥ 0; got {self.classes}, {self.augment_dim}"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ArgumentError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        taps = self.resample_filter
        if len(taps) < 2 or len(taps) % 2 or not math.isfinite(sum(taps)) or sum(taps) <= 0:
            raise ArgumentError(
                f"resample_filter must have an even number of taps of sum > 0; got {self.resample_filter}"
            )

    @classmethod
    def ncsnpp(cls, *args: Any, **given: Any) -> UNetConfig:
        """NCSN++ (arXiv 2011.13456, appendix H): Fourier embedding, residual input, FIR filter."""
        return cls.named("ncsnpp", *args, **given)

    @classmethod
    def named(cls, name: str, *args: Any, **given: Any) -> UNetConfig:
        """By the field's name, one of NAMES; whatever is `given` stands."""
        if name not in NAMES:
            raise ArgumentError(f"a network is named {', '.join(NAMES)}; got {name!r}")
        return cls(*args, **{**NAMES[name], **given})

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    @property
    def shrink(self) -> int:
        """2^(levels − 1): what an image's height and width must be multiples of."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def levels(self) -> list[tuple[int, tuple[int, int]]]:
        """(features, (height, width)) from the full image down."""
        height, width = self.size
        return [(self.width * m, (height >> i, width >> i)) for i, m in enumerate(self.multipliers)]

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON can hold them; UNetConfig(**values) is the inverse."""
        return asdict(self)
