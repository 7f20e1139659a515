"""`group_norm_silu`: group norm with SiLU, scale and shift (`reference.group_norm_silu`), a group of one image a program.

x̂ = (x + add − mean) rstd, z = weight (1 + scale) x̂ + bias (1 + scale) + shift, out = z or z sigmoid(z). A group is read twice, in tiles
(PIXELS, CHANNELS): for each channel's sums of x − x_0 and their squares, which are joined by their means, so that a large mean loses nothing;
and for the map. The second time much of it is in cache. Bound by memory: about 12 operations an element against 6 bytes (bfloat16), 12
(float32). Computed in T: float32, or float64 for float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends.triton.runtime import Compilation, Launch, device_guard, jit, recorded, tl, triton

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
WARPS, REGISTERS = 4, 255
"""REGISTERS: what a thread may have. Said because ptxas else spills a few to memory, to fit more blocks."""
TILE = {4: 2048, 8: 1024}
"""Size of a number → elements of a tile, at most."""


@jit
def channel_numbers(pointer, at, real, T: tl.constexpr):
    """(CHANNELS,) in T; 0 of None."""
    values = tl.zeros_like(at).to(T)
    if pointer is not None:
        values = tl.load(pointer + at, mask=real, other=0.0).to(T)
    return values


@jit
def places(start, pixel, channel, channels, pixels, LAST: tl.constexpr):
    """(PIXELS, CHANNELS): where a tile's elements are; start: a group's first element."""
    if LAST:
        return start + pixel[:, None] * channels + channel[None, :]
    else:
        return start + channel[None, :] * pixels + pixel[:, None]


@jit
def group_start(image, group, each, channels, pixels, LAST: tl.constexpr):
    first = group * each
    if LAST:
        return image * channels * pixels + first
    else:
        return image * channels * pixels + first * pixels


@jit
def gain_and_offset(weight, bias, scale, shift, of_image, of_channel, real, T: tl.constexpr):
    """weight (1 + scale), bias (1 + scale) + shift: (CHANNELS,)."""
    factor = 1 + channel_numbers(scale, of_image, real, T)
    gain = channel_numbers(weight, of_channel, real, T) * factor
    return gain, channel_numbers(bias, of_channel, real, T) * factor + channel_numbers(
        shift, of_image, real, T
    )


@jit
def group_norm_kernel(
    x,  # (B, channels, pixels), or (B, pixels, channels) where LAST
    weight,  # (channels,) in T, as everything but x and out
    bias,  # (channels,)
    add,  # (B, channels), or None
    scale,  # the same
    shift,  # the same
    out,  # as x
    mean,  # (B, groups)
    rstd,  # (B, groups)
    groups: tl.int64,
    channels: tl.int64,
    pixels: tl.int64,
    eps: tl.float64,
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
    step = 1 if LAST else pixels
    first = tl.load(x + start + channel * step, mask=real, other=0.0).to(T)

    totals, squares = tl.zeros([PIXELS, CHANNELS], T), tl.zeros([PIXELS, CHANNELS], T)
    for begin in range(0, pixels, PIXELS):
        pixel = begin + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & real[None, :]
        at = places(start, pixel.to(tl.int64), channel, channels, pixels, LAST)
        value = tl.load(x + at, mask=inside, other=0.0, eviction_policy="evict_last").to(T)
        away = tl.where(inside, value - first[None, :], 0.0)
        totals += away
        squares += away * away
    count, size = tl.full([], pixels, T), tl.full([], each, T)
    total = tl.sum(totals, 0)
    added = channel_numbers(add, of_image, real, T)
    means = tl.where(real, first + added + total / count, 0.0)
    center = tl.sum(means, 0) / size
    beside = means - center
    about_center = tl.sum(squares, 0) - total * total / count + count * beside * beside
    variance = tl.sum(tl.where(real, about_center, 0.0), 0) / (count * size)
    root = (1 / tl.sqrt(tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL) + eps)).to(T)
    tl.store(mean + program, center)
    tl.store(rstd + program, root)

    gain, offset = gain_and_offset(weight, bias, scale, shift, of_image, of_channel, real, T)
    for begin in range(0, pixels, PIXELS):
        pixel = begin + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & real[None, :]
        at = places(start, pixel.to(tl.int64), channel, channels, pixels, LAST)
        value = tl.load(x + at, mask=inside, other=0.0, eviction_policy="evict_first").to(T)
        z = (value + (added - center)[None, :]) * root * gain[None, :] + offset[None, :]
        if SILU:
            z = z / (1 + tl.exp(-z))
        tl.store(out + at, z.to(out.dtype.element_ty), mask=inside)


def launch(
    kernel: Any, x: Tensor, weight: Tensor, groups: int, silu: bool, tile: dict[int, int], **arrays: Any
) -> None:
    """A program for each group of each image."""
    batch, channels = x.shape[:2]
    pixels = x[0, 0].numel() if batch else 0
    if x.numel() == 0:
        return
    wide = triton.next_power_of_2(channels // groups)
    high = max(1, min(triton.next_power_of_2(pixels), tile[weight.element_size()] // wide))
    numbers = {"groups": groups, "channels": channels, "pixels": pixels}
    constants = {"T": TYPES[weight.dtype], "SILU": silu, "LAST": not x.is_contiguous()}
    constants |= {"CHANNELS": wide, "PIXELS": high}
    arguments = {"x": x, "weight": weight, **arrays, **numbers}
    with device_guard(x):
        Launch(
            f"{kernel.__name__}-{high}x{wide}",
            kernel,
            lambda _: batch * groups,
            arguments,
            constants,
            WARPS,
            1,
            max_registers=REGISTERS,
        ).run()


def group_norm_silu(
    x: Tensor,  # (B, C, ...)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    groups: int,
    eps: float,
    silu: bool,
    add: Tensor | None,  # (B, C)
    scale: Tensor | None,  # (B, C)
    shift: Tensor | None,  # (B, C)
) -> tuple[Tensor, Tensor, Tensor]:
    """The result in x's layout; mean and rstd (B, groups)."""
    out = torch.empty_like(x)
    mean, rstd = (weight.new_empty((len(x), groups)) for _ in range(2))
    given = {"bias": bias, "add": add, "scale": scale, "shift": shift}
    launch(group_norm_kernel, x, weight, groups, silu, TILE, **given, out=out, mean=mean, rstd=rstd, eps=eps)
    return out, mean, rstd


def examples() -> Iterator[dict[str, Any]]:
    """Arguments without memory: the groups of the networks at each level, ragged ones, every dtype, both layouts."""
    bfloat16, float32 = torch.bfloat16, torch.float32
    yield _example(256, 32, 16, bfloat16, True, "add")
    yield _example(256, 32, 16, float32, False, "add")
    yield _example(32, 8, 28, float32, True, "add")
    yield _example(512, 32, 8, bfloat16, True, "scale")
    yield _example(1024, 32, 64, float32, True, None)
    yield _example(1024, 32, 64, bfloat16, False, None)
    yield _example(37, 1, 32, float32, True, "scale")
    yield _example(37, 1, 32, torch.float64, False, "scale")
    yield _example(192, 32, 32, torch.float16, False, "scale")
    yield _example(12, 3, 1, bfloat16, True, "add")


def _example(
    channels: int, groups: int, side: int, dtype: torch.dtype, last: bool, with_: str | None
) -> dict[str, Any]:
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.empty((2, channels, side, side), dtype=dtype, device="meta").to(memory_format=layout)
    kind = torch.promote_types(dtype, torch.float32)
    rows = torch.empty((2, channels), dtype=kind, device="meta")
    more = {"add": rows} if with_ == "add" else {"scale": rows, "shift": rows} if with_ == "scale" else {}
    given = {"add": None, "scale": None, "shift": None} | more
    return {"x": x, "weight": rows[0], "bias": rows[0], "groups": groups, "silu": with_ != "scale", **given}


def ahead_of_time(arch: str) -> list[Compilation]:
    """Every tile and dtype of `examples`."""
    with recorded() as found:
        for example in examples():
            group_norm_silu(eps=1e-6, **example)
    return for_lanes(found, arch)


def for_lanes(found: list[Compilation], arch: str) -> list[Compilation]:
    """As many threads where a warp has 64."""
    once = {repr(c): c for c in found}.values()
    return [replace(c, num_warps=c.num_warps // 2) for c in once] if arch.startswith("gfx") else list(once)
