"""The DDPM++ of runs of version 1, as commit 1564364 has it: what made the checkpoints that training/version_1.py reads."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.nn import UNetConfig

Resample = Literal["none", "up", "down"]
ALMOST_ZERO = 1e-10


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> None:
    """Uniform with variance scale/fan_avg, the initialisation of DDPM and its line."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    bound = math.sqrt(3 * scale / ((fan_in + fan_out) / 2))
    nn.init.uniform_(weight, -bound, bound)


def conv(channels: int, out: int, kernel: int, scale: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size, (B, channels, H, W) → (B, out, H, W), of variance `scale` and bias 0."""
    layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
    variance_scaling_(layer.weight, scale)
    nn.init.constant_(layer.get_parameter("bias"), 0.0)
    return layer


def linear(features: int, out: int) -> nn.Linear:
    """(B, features) → (B, out), of variance 1 and bias 0."""
    layer = nn.Linear(features, out)
    variance_scaling_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels."""
    return nn.GroupNorm(max(1, min(channels // 4, 32)), channels, eps=1e-6)


def positional_embedding(
    position: Tensor,  # (B,)
    features: int,
    longest: float = 10_000.0,
) -> Tensor:
    """[sin(position·f_k), cos(position·f_k)] (B, features), f_k from 1 down to 1/longest in equal ratios."""
    half = features // 2
    exponent = torch.arange(half, dtype=torch.float32, device=position.device) / max(1, half - 1)
    angle = position.float()[:, None] * torch.exp(-math.log(longest) * exponent)
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, features % 2))


class ResidualBlock(nn.Module):
    """BigGAN residual block: norm, activation, (re)sample, convolution, embedding, norm, activation, convolution, skip.

    (B, channels, H, W) → (B, out, H', W') with H' = H, 2H ("up", nearest) or H/2 ("down", mean). The skip is a 1×1 convolution
    where the shape changes, and the sum is divided by √2 (skip rescaling).
    """

    def __init__(
        self, channels: int, out: int, embedding: int, dropout: float = 0.0, resample: Resample = "none"
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm_in = group_norm(channels)
        self.conv_in = conv(channels, out, 3)
        self.embed = linear(embedding, out)
        self.norm_out = group_norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv(out, out, 3, ALMOST_ZERO)
        self.skip = conv(channels, out, 1) if channels != out or resample != "none" else None

    def _resampled(self, h: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(h, scale_factor=2, mode="nearest")
        return F.avg_pool2d(h, 2) if self.resample == "down" else h

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:
        """x (B, channels, H, W), activated_embedding (B, embedding) → (B, out, H', W')."""
        h = self.conv_in(self._resampled(F.silu(self.norm_in(x))))
        h = h + self.embed(activated_embedding)[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        x = self._resampled(x)
        if self.skip is not None:
            x = self.skip(x)
        return (x + h) * math.sqrt(0.5)


class Attention(nn.Module):
    """One head of self-attention over the pixels, skip-rescaled: (B, C, H, W) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, 1, 2.0)  # fan_avg is 2C here, C for each of the three
        self.out = conv(channels, channels, 1, ALMOST_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        h = F.scaled_dot_product_attention(query, key, value)
        h = self.out(h.transpose(1, 2).reshape(x.shape))
        return (x + h) * math.sqrt(0.5)


def levels(config: UNetConfig) -> list[tuple[int, int]]:
    """(features, resolution) from the full image down."""
    return [(config.width * m, config.size[0] >> i) for i, m in enumerate(config.multipliers)]


class OldDDPMpp(nn.Module):
    """net(x, z, labels=None) → (v_x, v_z): x (B, C, H, W), z (B,) → v_x (B, C, H, W), v_z (B,).

    v_z is the mean over the pixels of one more output channel. z enters by a positional embedding, as it is. labels (B,) int64
    in [0, classes) where the network is conditional; None there gives the embedding of no class.
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
        for level, (out, resolution) in enumerate(levels(config)):
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
        for level, (out, resolution) in reversed(list(enumerate(levels(config)))):
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

    def _embedding(self, z: Tensor, labels: Tensor | None) -> Tensor:
        features = positional_embedding(z, self.config.width).to(self.embed_in.weight.dtype)
        embedding = self.embed_out(F.silu(self.embed_in(features)))
        if labels is not None:
            assert self.classes is not None
            embedding = embedding + self.classes(labels)
        return F.silu(embedding)

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
        z: Tensor,  # (B,)
        labels: Tensor | None = None,  # (B,)
    ) -> tuple[Tensor, Tensor]:
        """v_x (B, C, H, W), v_z (B,), in the dtype of the last layer (bfloat16 under autocast)."""
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
