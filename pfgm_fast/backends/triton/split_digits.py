"""Queries as fixed-point digits: X = δ(x − μ) = s Q, Q whole numbers of 24 bits in three signed digits of 8.

Serves byte charges (`distance_gemm.distance_gemm_bytes_kernel`): δ²‖x − y‖² = const(x) + δ²‖y − μ‖² − 2 X·b with b the charge's bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall, Scratch
from pfgm_fast.backends.triton.runtime import Launch, cdiv, jit, tl

LARGEST = tl.constexpr(127.0 * 65536 + 127 * 256 + 127)
"""What three signed digits hold with the first at most 127."""


@jit(do_not_specialize=["B"])
def split_digits_kernel(
    x,  # (B, N) float32
    center,  # (N,) float32
    digits,  # (3, B, stride) int8, the most significant first
    scale,  # (B,) float64: s, NaN where x is not finite
    residual,  # (B,) float32: ‖X − s Q‖/δ, what the digits leave out
    dense_count,  # (1,) int32: set to 0 for `weights.weights_kernel`
    B,
    N,
    stride,  # of a row of digits: N rounded up to 16
    divisor,
    BLOCK: tl.constexpr,
):
    """One program a query, two sweeps over it.

    Cost: reads 8 bytes an element (the second time from L2) and writes 3; about 20 float64 operations an element; one
    launch. Defined by `reference.decode`, whose bytes these digits meet.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float64)
    unit = tl.cast(divisor, tl.float64)
    bad = tl.zeros([BLOCK], tl.int32)
    for k in range(0, N, BLOCK):
        inside = k + columns < N
        value = tl.load(x + row * N + k + columns, inside, 0.0).to(tl.float64)
        shifted = tl.abs((value - tl.load(center + k + columns, inside, 0.0).to(tl.float64)) * unit)
        bad = bad | (shifted < float("inf")).to(tl.int32) ^ 1
        largest = tl.maximum(largest, shifted)
    top = tl.max(largest, 0)
    good = tl.max(bad, 0) == 0
    step = tl.where(good & (top > 0), top / LARGEST, 1.0)
    left = tl.zeros([BLOCK], tl.float64)
    pitch = tl.cast(B, tl.int64) * stride
    for k in range(0, N, BLOCK):
        inside = k + columns < N
        value = tl.load(x + row * N + k + columns, inside, 0.0).to(tl.float64)
        shifted = (value - tl.load(center + k + columns, inside, 0.0).to(tl.float64)) * unit
        wanted = tl.where(good, shifted / step, 0.0)
        number = tl.floor(wanted + 0.5).to(tl.int32)
        rest = wanted - number.to(tl.float64)
        left += rest * rest
        low = ((number & 255) ^ 128) - 128
        number = (number - low) >> 8
        middle = ((number & 255) ^ 128) - 128
        high = (number - middle) >> 8
        at = digits + row * stride + k + columns
        tl.store(at, high.to(tl.int8), inside)
        tl.store(at + pitch, middle.to(tl.int8), inside)
        tl.store(at + 2 * pitch, low.to(tl.int8), inside)
    tl.store(scale + row, tl.where(good, step, float("nan")))
    tl.store(residual + row, (tl.sqrt(tl.sum(left, 0)) * step / unit).to(tl.float32))
    if row == 0:
        tl.store(dense_count, 0)


def launch_split_digits(call: FieldCall, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """digits and scale, as `split_digits_kernel` writes them."""
    batch, _, dim = call.sizes
    stride = cdiv(dim, 16) * 16
    digits = torch.empty((3, batch, stride), dtype=torch.int8, device=call.x.device)
    scale = torch.empty(batch, dtype=torch.float64, device=call.x.device)
    Launch(
        "split_digits",
        split_digits_kernel,
        lambda _: batch,
        {
            "x": call.x,
            "center": call.center,
            "digits": digits,
            "scale": scale,
            "residual": scratch.residual,
            "dense_count": scratch.dense_count,
            "B": batch,
            "N": dim,
            "stride": stride,
            "divisor": call.divisor,
        },
        {"BLOCK": configs.SPLIT_DIGITS_BLOCK},
        configs.SPLIT_DIGITS_WARPS,
        1,
    ).run()
    return digits, scale
