"""DDPM++: the UNet of the score-SDE line (arXiv 2011.13456, appendix H; PFGM, arXiv 2209.11178, appendix D), small to large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn.layers import (
    ALMOST_ZERO,
    Attention,
    ResidualBlock,
    conv,
    group_norm,
    linear,
    positional_embedding,
)


@dataclass(frozen=True)
class UNetConfig:
    """What a DDPM++ network is.

    channels: of the image. image_size: height and width, divisible by 2^(levels − 1). width: features at full resolution
    (a multiple of 4). multipliers: features of each level over width. blocks: residual blocks a level (up: one more).
    attention: resolutions that get attention. classes: number of labels, 0 for an unconditional network.
    """

    channels: int = 3
    image_size: int = 32
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        object.__setattr__(self, "attention", tuple(self.attention))
        if min(self.channels, self.image_size, self.width, self.blocks, *self.multipliers, 1) < 1:
            raise ArgumentError(f"every size of a network must be ≥ 1; got {self}")
        if not self.multipliers or self.width % 4:
            raise ArgumentError(f"multipliers must not be empty and width be a multiple of 4; got {self}")
        shrink = 2 ** (len(self.multipliers) - 1)
        if self.image_size % shrink:
            raise ArgumentError(
                f"image_size {self.image_size} cannot be halved {len(self.multipliers) - 1} times: "
                f"it must be a multiple of {shrink}"
            )
        if not 0 <= self.dropout < 1 or self.classes < 0:
            raise ArgumentError(
                f"dropout must lie in [0, 1), classes be ≥ 0; got {self.dropout}, {self.classes}"
            )

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(features, resolution) from the full image down."""
        return [(self.width * m, self.image_size >> i) for i, m in enumerate(self.multipliers)]

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON can hold them; UNetConfig(**values) is the inverse."""
        return asdict(self)


class DDPMpp(nn.Module):
    """net(x, z, labels=None) → (v_x, v_z): x (B, C, H, W), z (B,) → v_x (B, C, H, W), v_z (B,).

    v_z is the mean over the pixels of one more output channel. z enters by a positional embedding, as it is. labels (B,) int64
    in [0, classes) where the network is conditional; None there gives the embedding of no class.
    `blocks_in_order()` walks the layers in the order in which the score-SDE line lists them.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, 4 * config.width
        self.embed_in, self.embed_out = linear(width, embedding), linear(embedding, embedding)
        self.stem = conv(config.channels, width, 3)

        def block(features: int, out: int, **more: Any) -> ResidualBlock:
            return ResidualBlock(features, out, embedding, config.dropout, **more)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        features, skips = width, [width]
        for level, (out, resolution) in enumerate(config.levels):
            if level:
                self.down.append(block(features, features, resample="down"))
                skips.append(features)
            for _ in range(config.blocks):
                self.down.append(block(features, out))
                features = out
                if resolution in config.attention:
                    self.down.append(Attention(out))
                skips.append(out)
        self.middle = nn.ModuleList(
            [block(features, features), Attention(features), block(features, features)]
        )
        for level, (out, resolution) in reversed(list(enumerate(config.levels))):
            for _ in range(config.blocks + 1):
                self.up.append(block(features + skips.pop(), out))
                features = out
            if resolution in config.attention:
                self.up.append(Attention(out))
            if level:
                self.up.append(block(out, out, resample="up"))
        self.norm = group_norm(features)
        self.head = conv(features, config.channels + 1, 3, ALMOST_ZERO)
        self.classes = nn.Embedding(config.classes, embedding) if config.classes else None

    def blocks_in_order(self) -> Iterator[nn.Module]:
        """Embedding, first convolution, down, middle, up, last norm, last convolution."""
        yield from (self.embed_in, self.embed_out, self.stem, *self.down, *self.middle, *self.up)
        yield from (self.norm, self.head)

    def _embedding(self, z: Tensor, labels: Tensor | None) -> Tensor:
        features = positional_embedding(z, self.config.width).to(self.embed_in.weight.dtype)
        embedding = self.embed_out(F.silu(self.embed_in(features)))
        if labels is not None:
            if self.classes is None:
                raise ArgumentError("labels were given to a network without classes (UNetConfig.classes = 0)")
            embedding = embedding + self.classes(labels)
        return F.silu(embedding)

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
        z: Tensor,  # (B,)
        labels: Tensor | None = None,  # (B,)
    ) -> tuple[Tensor, Tensor]:
        """v_x (B, C, H, W), v_z (B,), in the dtype of the last layer (bfloat16 under autocast).

        Raises: ArgumentError for images of another shape, or labels where the network has no classes.
        """
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if tuple(x.shape[1:]) != expected:
            raise ArgumentError(
                f"the network expects images of shape {expected}; x has shape {tuple(x.shape)}"
            )
        embedding = self._embedding(z.expand(len(x)), labels)
        h = self.stem(x)
        skips = [h]
        for layer in self.down:
            if isinstance(layer, ResidualBlock):
                h = layer(h, embedding)
                skips.append(h)
            else:  # attention follows its block: its result is the block's skip
                skips[-1] = h = layer(h)
        first, attention, last = self.middle
        h = last(attention(first(h, embedding)), embedding)
        for layer in self.up:
            if isinstance(layer, Attention):
                h = layer(h)
            elif layer.resample == "up":
                h = layer(h, embedding)
            else:
                h = layer(torch.cat([h, skips.pop()], 1), embedding)
        out = self.head(F.silu(self.norm(h)))
        return out[:, :-1], out[:, -1].mean((1, 2))
