"""`group_norm_silu_backward`: a group of one image a program, as `group_norm` has them (`reference.group_norm_silu_backward`).

x and dy are read twice: for each channel's Σ dz, Σ dz x̂ and Σ x̂ over the pixels, and for dx = rstd (g dz − P − x̂ Q), P and Q the group's
means of g dz and g dz x̂. About 40 operations an element against 10 bytes (bfloat16), 20 (float32).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast.backends.triton.group_norm import (
    channel_numbers,
    examples,
    for_lanes,
    gain_and_offset,
    group_start,
    launch,
    places,
)
from pfgm_fast.backends.triton.runtime import Compilation, jit, recorded, tl

TILE = {4: 1024, 8: 512}
"""As `group_norm.TILE`: three sums and two arrays are in registers at a time."""


@jit
def before(dy, normed, gain, offset, SILU: tl.constexpr):
    """dz of dy, at x̂."""
    if SILU:
        z = normed * gain[None, :] + offset[None, :]
        s = 1 / (1 + tl.exp(-z))
        dy = dy * s * (1 + z * (1 - s))
    return dy


@jit
def group_norm_backward_kernel(
    dy,  # as x
    x,  # (B, channels, pixels), or (B, pixels, channels) where LAST
    weight,  # (channels,) in T, as everything but dy, x and dx
    bias,  # (channels,)
    mean,  # (B, groups)
    rstd,  # (B, groups)
    add,  # (B, channels), or None
    scale,  # the same
    shift,  # the same
    dx,  # as x
    sums,  # (B, 3, channels): Σ dz, Σ dz x̂, Σ dx
    groups: tl.int64,
    channels: tl.int64,
    pixels: tl.int64,
    T: tl.constexpr,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    CHANNELS: tl.constexpr,  # ≥ channels of a group
    PIXELS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image, group, each = program // groups, program % groups, channels // groups
    channel = tl.arange(0, CHANNELS).to(tl.int64)
    real = channel < each
    of_channel = group * each + channel
    of_image = image * channels + of_channel
    start = group_start(image, group, each, channels, pixels, LAST)
    root = tl.load(rstd + program)
    move = channel_numbers(add, of_image, real, T) - tl.load(mean + program)
    gain, offset = gain_and_offset(weight, bias, scale, shift, of_image, of_channel, real, T)

    plain, along, normals = (
        tl.zeros([PIXELS, CHANNELS], T),
        tl.zeros([PIXELS, CHANNELS], T),
        tl.zeros([PIXELS, CHANNELS], T),
    )
    for begin in range(0, pixels, PIXELS):
        pixel = begin + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & real[None, :]
        at = places(start, pixel.to(tl.int64), channel, channels, pixels, LAST)
        value = tl.load(x + at, mask=inside, other=0.0, eviction_policy="evict_last").to(T)
        normed = tl.where(inside, (value + move[None, :]) * root, 0.0)
        want = tl.load(dy + at, mask=inside, other=0.0, eviction_policy="evict_last").to(T)
        dz = before(want, normed, gain, offset, SILU)
        plain += dz
        along += dz * normed
        normals += normed
    by_z, by_gain, normal = tl.sum(plain, 0), tl.sum(along, 0), tl.sum(normals, 0)
    count, size = tl.full([], pixels, T), tl.full([], each, T)
    share = root / (count * size)
    first, second = share * tl.sum(gain * by_z, 0), share * tl.sum(gain * by_gain, 0)
    row = sums + 3 * image * channels + of_channel
    tl.store(row, by_z, mask=real)
    tl.store(row + channels, by_gain, mask=real)
    tl.store(row + 2 * channels, root * gain * by_z - (first * count + second * normal), mask=real)

    for begin in range(0, pixels, PIXELS):
        pixel = begin + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & real[None, :]
        at = places(start, pixel.to(tl.int64), channel, channels, pixels, LAST)
        value = tl.load(x + at, mask=inside, other=0.0, eviction_policy="evict_first").to(T)
        normed = (value + move[None, :]) * root
        want = tl.load(dy + at, mask=inside, other=0.0, eviction_policy="evict_first").to(T)
        dz = before(want, normed, gain, offset, SILU)
        change = root * gain[None, :] * dz - (first + second * normed)
        tl.store(dx + at, change.to(dx.dtype.element_ty), mask=inside)


def group_norm_silu_backward(
    dy: Tensor,  # (B, C, ...), dtype and layout of x
    x: Tensor,  # (B, C, ...)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    mean: Tensor,  # (B, groups)
    rstd: Tensor,  # (B, groups)
    groups: int,
    silu: bool,
    add: Tensor | None,  # (B, C)
    scale: Tensor | None,  # (B, C)
    shift: Tensor | None,  # (B, C)
) -> tuple[Tensor, Tensor]:
    """dx in x's layout, and the sums (B, 3, C)."""
    dx, sums = torch.empty_like(x), weight.new_empty((len(x), 3, x.shape[1]))
    given = {"dy": dy, "bias": bias, "mean": mean, "rstd": rstd, "add": add, "scale": scale, "shift": shift}
    launch(group_norm_backward_kernel, x, weight, groups, silu, TILE, **given, dx=dx, sums=sums)
    return dx, sums


def ahead_of_time(arch: str) -> list[Compilation]:
    """Every tile and dtype of `group_norm.examples`."""
    with recorded() as found:
        for example in examples():
            x, groups = example["x"], example["groups"]
            row = example["weight"].new_empty((len(x), groups))
            group_norm_silu_backward(x, mean=row, rstd=row, **example)
    return for_lanes(found, arch)
