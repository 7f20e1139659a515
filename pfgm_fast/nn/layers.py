"""The blocks of DDPM++ (Song et al. 2021, arXiv 2011.13456, appendix H): residual block, attention, embedding."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resample = Literal["none", "up", "down"]
ALMOST_ZERO = 1e-10
"""Variance scale of layers that begin at zero; not zero itself, so that no gradient is exactly zero."""


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
