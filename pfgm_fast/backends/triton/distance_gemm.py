"""The first product: how far each charge is from each query, relative to the nearest charge of its tile.

u_ij = ‖y_j − μ‖² − 2 (x_i − μ)·(y_j − μ) is ‖x_i − y_j‖² up to a constant of the row, which later cancels. A tile of 128 charges
writes gaps[i][j] = u_ij − min u of the tile, in float32 (its error is relative to the gap), and that minimum in float64:
nothing of d² is ever rounded to float32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall, Scratch
from pfgm_fast.backends.triton.common import two_sum
from pfgm_fast.backends.triton.runtime import Choice, Launch, cdiv, dot, jit, tl

SEGMENT = 131_072 - 128
"""Elements whose products of signed bytes an int32 sum holds (128 · 128 · 131,072 = 2³¹ is one too many)."""


@jit
def store_tile(gap, charge, query, gaps, least, tile, B, M, stride, tiles):
    """gaps and the tile's minimum from u: gap (CHARGES, QUERIES) float64."""
    inside = (charge < M)[:, None] & (query < B)[None, :]
    gap = tl.where(inside, gap, float("inf"))
    lowest = tl.min(gap, 0)
    at = gaps + query.to(tl.int64)[None, :] * stride + charge[:, None]
    tl.store(at, (gap - lowest[None, :]).to(tl.float32), inside)
    tl.store(least + query.to(tl.int64) * tiles + tile, lowest, query < B)


@jit(do_not_specialize=["B", "M", "tiles"])
def distance_gemm_bytes_kernel(
    charges,  # (M, N) uint8
    digits,  # (3, B, digit_stride) int8
    scale,  # (B,) float64
    sq_norms,  # (M,) float64: ‖y − μ‖²
    gaps,  # (B, stride) float32
    least,  # (B, tiles) float64
    B,
    M,
    N,
    digit_stride,
    stride,
    tiles,
    divisor,
    LONG: tl.constexpr,  # N > SEGMENT
    SEGMENT: tl.constexpr,
    CHARGES: tl.constexpr,
    QUERIES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Byte charges on integer tensor cores: bytes less 128 against three signed digits of the query, exact in int32; the digits
    meet in int64, and only then a float64 is formed. So the result depends on no tiling; it errs as if x had been
    rounded to 2⁻²⁴ of its row's largest element.

    Cost: 6 integer operations a pair and element on tensor cores; charges are read ⌈B/QUERIES⌉ times (neighbouring programs
    share them, so mostly from L2), digits ⌈M/CHARGES⌉ times; writes 4 bytes a pair. One launch. Defined by
    `reference.row` (its squares).
    """
    query_tiles = tl.cdiv(B, QUERIES)
    tile = tl.program_id(0) // query_tiles
    query = tl.program_id(0) % query_tiles * QUERIES + tl.arange(0, QUERIES)
    charge = tile * CHARGES + tl.arange(0, CHARGES)
    # Rows outside are read as the last row inside: nothing of them is written.
    charge_rows = charges + tl.minimum(charge, M - 1).to(tl.int64)[:, None] * N
    query_rows = digits + tl.minimum(query, B - 1).to(tl.int64)[None, :] * digit_stride
    pitch = tl.cast(B, tl.int64) * digit_stride
    depth = tl.arange(0, DEPTH)
    total = tl.zeros([CHARGES, QUERIES], tl.int64)
    first = tl.zeros([CHARGES, QUERIES], tl.int32)
    second = tl.zeros([CHARGES, QUERIES], tl.int32)
    third = tl.zeros([CHARGES, QUERIES], tl.int32)
    for start in range(0, N if LONG else 1, SEGMENT):
        if LONG:
            first = tl.zeros([CHARGES, QUERIES], tl.int32)
            second = tl.zeros([CHARGES, QUERIES], tl.int32)
            third = tl.zeros([CHARGES, QUERIES], tl.int32)
        for k in range(start, tl.minimum(N, start + SEGMENT) if LONG else N, DEPTH):
            inside = k + depth < N
            # 128 stands for 0 once it is taken off; a flipped top bit takes it off.
            raw = tl.load(charge_rows + (k + depth)[None, :], inside[None, :], 128)
            signed = (raw ^ 128).to(tl.int8, bitcast=True)
            at = query_rows + (k + depth)[:, None]
            first = dot(signed, tl.load(at, inside[:, None], 0), first, "ieee")
            second = dot(signed, tl.load(at + pitch, inside[:, None], 0), second, "ieee")
            third = dot(signed, tl.load(at + 2 * pitch, inside[:, None], 0), third, "ieee")
        if LONG:
            total += (first.to(tl.int64) * 256 + second) * 256 + third
    if not LONG:
        total = (first.to(tl.int64) * 256 + second) * 256 + third
    norm = tl.load(sq_norms + charge, charge < M, 0.0)
    unit = tl.cast(divisor, tl.float64)
    factor = tl.load(scale + query, query < B, 0.0) * 2 / (unit * unit)
    gap = norm[:, None] - total.to(tl.float64) * factor[None, :]
    store_tile(gap, charge, query, gaps, least, tile, B, M, stride, tiles)


@jit(do_not_specialize=["B", "M", "tiles"])
def distance_gemm_floats_kernel(
    charges,  # (M, N) float32
    x,  # (B, N) float32
    center,  # (N,) float32
    sq_norms,  # (M,) float64: ‖y − μ‖²
    gaps,  # (B, stride) float32
    least,  # (B, tiles) float64
    dense_count,  # (1,) int32: set to 0 for `weights.weights_kernel`
    B,
    M,
    N,
    stride,
    tiles,
    PRECISION: tl.constexpr,
    CHARGES: tl.constexpr,
    QUERIES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Float charges: (x − μ)·(y − μ) with float32 operands split as PRECISION says; DEPTH products at a time are summed by the
    tensor cores, and those sums added with what each addition rounds away.

    Cost: 12 bfloat16 operations a pair and element (bf16x6) on tensor cores, 6 float32 additions a pair for each DEPTH; reads as
    the byte product, 4 bytes an element; writes 4 bytes a pair. One launch. Defined by `reference.row` (its squares).
    """
    query_tiles = tl.cdiv(B, QUERIES)
    tile = tl.program_id(0) // query_tiles
    query = tl.program_id(0) % query_tiles * QUERIES + tl.arange(0, QUERIES)
    charge = tile * CHARGES + tl.arange(0, CHARGES)
    charge_rows = charges + tl.minimum(charge, M - 1).to(tl.int64)[:, None] * N
    query_rows = x + tl.minimum(query, B - 1).to(tl.int64)[None, :] * N
    depth = tl.arange(0, DEPTH)
    total = tl.zeros([CHARGES, QUERIES], tl.float32)
    error = tl.zeros([CHARGES, QUERIES], tl.float32)
    for k in range(0, N, DEPTH):
        inside = k + depth < N
        middle = tl.load(center + k + depth, inside, 0.0)
        y = tl.load(charge_rows + (k + depth)[None, :], inside[None, :], 0.0) - middle[None, :]
        q = tl.load(query_rows + (k + depth)[:, None], inside[:, None], 0.0) - middle[:, None]
        part = dot(y, q, tl.zeros([CHARGES, QUERIES], tl.float32), PRECISION)
        total, error = two_sum(total, error, part)
    norm = tl.load(sq_norms + charge, charge < M, 0.0)
    gap = norm[:, None] - 2 * (total.to(tl.float64) + error.to(tl.float64))
    store_tile(gap, charge, query, gaps, least, tile, B, M, stride, tiles)
    if tl.program_id(0) == 0:
        tl.store(dense_count, 0)


def _launch(
    name: str, kernel: Any, call: FieldCall, scratch: Scratch, more: dict[str, Any], constexprs: dict[str, Any],
    tiles: tuple[configs.Tile, ...], processors: int,
) -> None:  # fmt: skip
    batch, count, dim = call.sizes
    if dim % 16:
        tiles = tuple(tile.ragged() for tile in tiles)
        name += "_ragged"
    constants = [
        {"CHARGES": tile.columns, "QUERIES": tile.rows, "DEPTH": tile.depth} for tile in tiles
    ]  # fmt: skip
    tile = configs.pick(tiles, batch, scratch.tiles, processors)
    shared = {
        "charges": call.charges,
        "sq_norms": call.sq_norms,
        "gaps": scratch.gaps,
        "least": scratch.least,
        "B": batch,
        "M": count,
        "N": dim,
        "stride": scratch.stride,
        "tiles": scratch.tiles,
    }
    Launch(
        f"{name}-{tile.rows}",
        kernel,
        lambda chosen: scratch.tiles * cdiv(batch, chosen["QUERIES"]),
        shared | more,
        constexprs | constants[tiles.index(tile)],
        tile.warps,
        tile.stages,
        True,
        choices=tuple(
            Choice(tuple(constant.items()), tile.warps, tile.stages)
            for constant, tile in zip(constants, tiles, strict=True)
        ),
    ).run()


def launch_distance_gemm_bytes(
    call: FieldCall,
    scratch: Scratch,
    queries: tuple[Tensor, Tensor],  # digits, scale
    table: configs.Table,
    processors: int,
) -> None:
    digits, scale = queries
    more = {"digits": digits, "scale": scale, "digit_stride": digits.shape[2], "divisor": call.divisor}
    long = call.sizes[2] > SEGMENT
    tiles = table.distance_gemm_long_bytes if long else table.distance_gemm_bytes
    constexprs = {"LONG": long, "SEGMENT": SEGMENT}
    name = "distance_gemm_long_bytes" if long else "distance_gemm_bytes"
    _launch(name, distance_gemm_bytes_kernel, call, scratch, more, constexprs, tiles, processors)


def launch_distance_gemm_floats(
    call: FieldCall, scratch: Scratch, table: configs.Table, processors: int
) -> None:
    more = {"x": call.x, "center": call.center, "dense_count": scratch.dense_count}
    constexprs = {"PRECISION": table.precision}
    _launch(
        "distance_gemm_floats",
        distance_gemm_floats_kernel,
        call,
        scratch,
        more,
        constexprs,
        table.distance_gemm_floats,
        processors,
    )
