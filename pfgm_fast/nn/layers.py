"""The layers that the networks share: embeddings of the noise level, resampling convolutions, the residual block with attention.

Names of parameters and buffers (`conv0`, `affine`, `qkv`, `resample_filter`, …) are those of the files of EDM and PFGM++
(arXiv 2206.00364, 2302.04265), so that their weights are loaded by name.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.ops import front
from pfgm_fast.ops.dispatch import full_precision

Resample = Literal["none", "up", "down"]
ALMOST_ZERO = 1e-10
"""Variance scale of layers that begin at zero; not zero itself, so that no gradient is exactly zero."""


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> None:
    """Uniform with variance scale/fan_avg, the initialisation of DDPM and its line."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    bound = math.sqrt(3 * scale / ((fan_in + fan_out) / 2))
    nn.init.uniform_(weight, -bound, bound)


def init_ddpm_(net: nn.Module) -> None:
    """DDPM's initialisation (arXiv 2006.11239; score-SDE, appendix H) of all convolutions and linear layers within.

    Variance 1/fan_avg and bias 0; a block's last layer and the head almost zero; attention's q, k, v of variance 0.1/C (fan_avg is
    2C for the three together).
    """
    scales = {"conv1": ALMOST_ZERO, "proj": ALMOST_ZERO, "aux_conv": ALMOST_ZERO, "qkv": 0.2}
    for name, module in net.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, (nn.Linear, nn.Conv2d, ResampleConv)) and weight is not None:
            last = name.rpartition(".")[2]
            variance_scaling_(weight, next((v for k, v in scales.items() if last.endswith(k)), 1.0))
            if bias is not None:
                nn.init.zeros_(bias)


def conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, (B, channels, H, W) → (B, out, H, W)."""
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2)


class GroupNormSiLU(nn.GroupNorm):
    """SiLU(norm(x + add) (1 + scale) + shift), x (B, C, H, W), in one operator (`ops.schema`); silu = False: without SiLU.

    add, scale, shift: (B, C) or None, numbers of each image's channels. Sums and parameters are float32 (float64 for float64) whatever
    x's dtype, which is the result's; so is its layout, contiguous or channels last.
    """

    def __init__(self, groups: int, channels: int, eps: float, silu: bool = True) -> None:
        super().__init__(groups, channels, eps=eps)
        self.silu = silu

    def forward(
        self,
        input: Tensor,  # (B, C, H, W)
        add: Tensor | None = None,  # (B, C)
        scale: Tensor | None = None,  # (B, C)
        shift: Tensor | None = None,  # (B, C)
    ) -> Tensor:
        x = input
        if not (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
            x = x.contiguous()
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        rows = (None if n is None else n.to(kind).contiguous() for n in (add, scale, shift))
        weight, bias = self.weight.to(kind), self.bias.to(kind)
        arguments = (x, weight, bias, self.num_groups, self.eps, self.silu, *rows)
        return front.group_norm_silu(*arguments)[0]  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, silu={self.silu}"


def group_norm(channels: int, eps: float = 1e-6, silu: bool = True) -> GroupNormSiLU:
    """At most 32 groups of at least 4 channels, then SiLU."""
    return GroupNormSiLU(max(1, min(channels // 4, 32)), channels, eps, silu)


def output_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """The last convolution, in its parameters' dtype whatever autocast says: n = ‖v_x‖/√N off by 0.6% costs PFGM's ‖E‖ 37%."""
    with full_precision(x.device.type):
        return layer(x.to(layer.get_parameter("weight").dtype))  # type: ignore[no-any-return]


def _wide(position: Tensor) -> Tensor:
    """At least float32: an angle of half precision would be noise."""
    return position.to(torch.promote_types(position.dtype, torch.float32))


def positional_embedding(
    position: Tensor,  # (B,)
    features: int,
    longest: float = 10_000.0,
    endpoint: bool = True,
) -> Tensor:
    """[sin(position·f_k), cos(position·f_k)] (B, features), f_k from 1 in equal ratios down to 1/longest, which is
    the last one with `endpoint` (score-SDE) and the one after it without (ADM)."""
    half = features // 2
    steps = max(1, half - 1) if endpoint else half
    position = _wide(position)
    exponent = torch.arange(half, dtype=position.dtype, device=position.device) / steps
    angle = position[:, None] * torch.exp(-math.log(longest) * exponent)
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, features % 2))


class FourierEmbedding(nn.Module):
    """[sin(2π f_k s), cos(2π f_k s)] (B, features) of s (B,), f_k ~ N(0, scale²) drawn once, not trained (score-SDE, appendix H)."""

    freqs: Tensor

    def __init__(self, features: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(features // 2))

    def forward(self, position: Tensor) -> Tensor:
        position = _wide(position)
        angle = torch.outer(position, 2 * math.pi * self.freqs.to(position.dtype))
        return torch.cat([angle.sin(), angle.cos()], 1)


class ResampleConv(nn.Module):
    """Up- or down-sampling by two with a separable filter, and a convolution: (B, channels, H, W) → (B, out, 2H or H/2, …).

    kernel: of the convolution after it; 0: none, out = channels. fused: the convolution goes first where the image shrinks, at
    full resolution (score-SDE's residual input, appendix H; StyleGAN-2). filter: an even number of taps; (1, 1) is the mean
    of 2 × 2 pixels, or each pixel four times.
    """

    resample_filter: Tensor

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        resample: Resample,
        filter: tuple[float, ...] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.resample, self.fused = channels, resample, fused
        like = conv(channels, out, kernel) if kernel else None
        self.weight: nn.Parameter | None = None if like is None else like.get_parameter("weight")
        self.bias: nn.Parameter | None = None if like is None else like.get_parameter("bias")
        taps = torch.tensor(filter, dtype=torch.float32)
        self.box = len(filter) == 2 and filter[0] == filter[1]
        self.register_buffer("resample_filter", (torch.outer(taps, taps) / taps.sum() ** 2)[None, None])

    def _fir(self, x: Tensor, padding: int) -> Tensor:
        """The filter and every second pixel, or the filter between pixels: up-sampling keeps the image's mean by the factor 4."""
        channels = x.shape[1]
        kernel = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.resample == "up":
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        reach = (self.resample_filter.shape[-1] - 1) // 2
        around = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.fused and self.resample == "down" and self.weight is not None:
            # The bias commutes with a filter of sum 1.
            return self._fir(F.conv2d(x, self.weight, self.bias, padding=around + reach), 0)
        if not self.box:
            x = self._fir(x, reach)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.avg_pool2d(x, 2)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=around)


class UNetBlock(nn.Module):
    """Residual block: norm, activation, (re)sampling, convolution, embedding, norm, activation, convolution, skip; then attention.

    x (B, channels, H, W), activated embedding (B, embedding) → (B, out, H', W') with H' = H, 2H ("up") or H/2 ("down").

    heads: of self-attention over the pixels, 0 for none. skip_scale: factor on every sum, √½ in the score-SDE line
    (arXiv 2011.13456, appendix H), 1 in ADM (arXiv 2105.05233). adaptive: the embedding scales and shifts after the second norm
    instead of being added before it. project: the skip of a resampled image has a 1×1 convolution though its width stays.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        embedding: int,
        *,
        resample: Resample = "none",
        heads: int = 0,
        dropout: float = 0.0,
        filter: tuple[float, ...] = (1, 1),
        skip_scale: float = math.sqrt(0.5),
        adaptive: bool = False,
        project: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.channels, self.out, self.resample, self.heads = channels, out, resample, heads
        self.skip_scale, self.adaptive = skip_scale, adaptive

        def layer(kernel: int) -> nn.Module:
            if resample == "none":
                return conv(channels, out, kernel)
            return ResampleConv(channels, out, kernel, resample, filter)

        self.norm0, self.conv0 = group_norm(channels, eps), layer(3)
        self.affine = nn.Linear(embedding, 2 * out if adaptive else out)
        self.norm1, self.conv1 = group_norm(out, eps), conv(out, out, 3)
        self.dropout = nn.Dropout(dropout)
        self.skip: nn.Module | None = None
        if channels != out or resample != "none":
            self.skip = layer(1 if project or channels != out else 0)
        if heads:
            self.norm2 = group_norm(out, eps, silu=False)
            self.qkv, self.proj = conv(out, 3 * out, 1), conv(out, out, 1)

    def forward(
        self,
        x: Tensor,  # (B, channels, H, W)
        embedding: Tensor,  # (B, embedding), or (1, embedding) for all images
    ) -> Tensor:
        h = self.conv0(self.norm0(x))
        condition = self.affine(embedding).expand(len(x), -1)
        if self.adaptive:
            scale, shift = condition.chunk(2, 1)
            h = self.norm1(h, scale=scale, shift=shift)
        else:
            h = self.norm1(h, add=condition)
        x = self._sum(self.conv1(self.dropout(h)), x if self.skip is None else self.skip(x))
        return self._sum(self._attention(self.norm2(x)), x) if self.heads else x

    def _sum(self, h: Tensor, x: Tensor) -> Tensor:
        """(h + x) skip_scale."""
        total = h + x
        return total if self.skip_scale == 1 else total.mul_(self.skip_scale)

    def _attention(self, x: Tensor) -> Tensor:
        """Over the pixels. Channels of qkv are head, feature, then q, k, v side by side: its weight's rows change places so that q, k and
        v are views, in channels last, of what one product gives."""
        heads, features = self.heads, self.out // self.heads
        weight = self.qkv.weight.view(heads, features, 3, self.out).permute(2, 0, 1, 3)
        bias = self.qkv.get_parameter("bias").view(heads, features, 3).permute(2, 0, 1)
        pixels = x.flatten(2).transpose(1, 2)  # (B, pixels, out)
        qkv = F.linear(pixels, weight.reshape(-1, self.out), bias.reshape(-1))
        query, key, value = qkv.unflatten(2, (3, heads, features)).permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(query, key, value)  # (B, heads, pixels, features)
        h = F.linear(h.transpose(1, 2).flatten(2), self.proj.weight.view(self.out, -1), self.proj.bias)
        return h.transpose(1, 2).unflatten(2, x.shape[2:])
