"""What the lanes of a warp or warpgroup do together, by the tables of the PTX ISA (section 'Warp-level matrix instructions',
'Asynchronous warpgroup-level matrix instructions'). Arrays are (warps, 32): one register of every lane of every warp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LANE = np.arange(32)


def bytes_of(registers: list[Array], signed: bool) -> Array:
    """(warps, 32, 4 · registers) int32: the bytes of each lane's registers, lowest first."""
    words = np.stack([r.astype(np.uint32) for r in registers], -1)
    raw = words[..., None] >> (8 * np.arange(4, dtype=np.uint32)) & np.uint32(255)
    raw = raw.reshape(*words.shape[:-1], -1).astype(np.int64)
    return (raw ^ 128) - 128 if signed else raw


def a_m16n8k32(a: list[Array], signed: bool) -> Array:
    """A (warps, 16, 32). ISA figure 'MMA .m16n8k32 fragment layout for matrix A with .u8/.s8': lane = 4 g + t;
    row = g for elements 0–3 and 8–11, g + 8 for the others; column = 4 t + (i & 3), and 16 more for elements 8–15."""
    elements = bytes_of(a, signed)
    out = np.zeros((len(elements), 16, 32), np.int64)
    group, thread = LANE >> 2, LANE & 3
    for i in range(16):
        row = group + (0 if i < 4 or 8 <= i < 12 else 8)
        column = 4 * thread + (i & 3) + (16 if i >= 8 else 0)
        out[:, row, column] = elements[:, LANE, i]
    return out


def b_m16n8k32(b: list[Array], signed: bool) -> Array:
    """B (warps, 32, 8): row = 4 t + (i & 3), and 16 more for elements 4–7; column = g."""
    elements = bytes_of(b, signed)
    out = np.zeros((len(elements), 32, 8), np.int64)
    for i in range(8):
        out[:, 4 * (LANE & 3) + (i & 3) + (16 if i >= 4 else 0), LANE >> 2] = elements[:, LANE, i]
    return out


def c_positions() -> tuple[Array, Array]:
    """Row (32, 4) and column (32, 4) of a lane's four sums: row = g, or g + 8 for the last two; column = 2 t + (i & 1)."""
    i = np.arange(4)
    row = (LANE >> 2)[:, None] + np.where(i < 2, 0, 8)
    column = 2 * (LANE & 3)[:, None] + (i & 1)
    return row, column


def mma_m16n8k32(
    a: list[Array], b: list[Array], c: list[Array], kinds: tuple[str, str], saturate: bool
) -> list[Array]:
    """D = A B + C of bytes with int32 sums. Without saturation an overflow is an error here."""
    product = a_m16n8k32(a, kinds[0] == "s8") @ b_m16n8k32(b, kinds[1] == "s8")
    row, column = c_positions()
    sums = np.stack([r.view(np.int32) for r in c], -1).astype(np.int64) + product[:, row, column]
    limits = np.iinfo(np.int32)
    if saturate:
        sums = sums.clip(limits.min, limits.max)
    elif (sums != sums.astype(np.int32)).any():
        raise OverflowError("a tensor core's int32 sum overflows")
    return [sums[..., i].astype(np.int32).view(np.uint32) for i in range(4)]


def ldmatrix(rows: Array, count: int, transposed: bool) -> list[Array]:
    """rows (warps, 32, 16) bytes: what each lane's address holds. Lane 8 m + i gives row i of matrix m; every lane gets elements
    2 t and 2 t + 1 (16 bits each) of row g of each matrix, or of its transpose."""
    halves = np.ascontiguousarray(rows).view(np.uint16)  # (warps, 32, 8)
    out = []
    for m in range(count):
        matrix = halves[:, 8 * m : 8 * m + 8]
        if transposed:
            matrix = matrix.transpose(0, 2, 1)
        pair = matrix[:, (LANE >> 2)[:, None], 2 * (LANE & 3)[:, None] + np.arange(2)]
        out.append(pair[..., 0].astype(np.uint32) | pair[..., 1].astype(np.uint32) << np.uint32(16))
    return out


def shuffle(mode: str, value: Array, operand: Array, clamp: Array) -> tuple[Array, Array]:
    """shfl.sync: the value of another lane, and whether that lane was in range (else its own value). All 32 lanes take part."""
    lane = np.broadcast_to(LANE, value.shape)
    operand, limit, mask = (
        operand.astype(np.int64),
        clamp.astype(np.int64) & 31,
        clamp.astype(np.int64) >> 8 & 31,
    )
    top = lane & mask | limit & ~mask
    bottom = lane & mask
    if mode == "up":
        source = lane - operand
        valid = source >= top
    elif mode == "down":
        source = lane + operand
        valid = source <= top
    elif mode == "bfly":
        source = lane ^ operand
        valid = source <= top
    elif mode == "idx":
        source = bottom | operand & ~mask & 31
        valid = source <= top
    else:
        raise NotImplementedError(f"shfl.sync.{mode}")
    source = np.where(valid, source, lane)
    return np.take_along_axis(value, source, 1), valid
