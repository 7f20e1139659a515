"""The second product, for dense rows only: partial[split][slot] = Σ_j w_j (y_j − c), over a part of the charges.

The shift c keeps the sum small: 128 for bytes (then every operand is a whole number that bfloat16 holds), μ for floats. What
the sum still loses, close to a cluster of charges far from c, `finish` notices and computes directly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall, Scratch
from pfgm_fast.backends.triton.common import two_sum
from pfgm_fast.backends.triton.runtime import Choice, Launch, cdiv, dot, jit, tl


@jit
def occupied_tiles(weight_rows, mine, begin, end, found, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Lists in `found` the tiles (of DEPTH charges, from begin to end) where any of these rows has weight; their number."""
    count = tl.full([], 0, tl.int32)
    for start in range(begin, end, DEPTH):
        weight = tl.load(weight_rows + start + tl.arange(0, DEPTH)[None, :], mine[:, None], 0.0)
        if tl.max(tl.max(weight, 1), 0) > 0:
            tl.store(found + count, start)
            count += 1
    tl.debug_barrier()
    return count


@jit(do_not_specialize=["B", "M", "splits"])
def weighted_sum_kernel(
    charges,  # (M, N) uint8 or float32
    weights,  # (B, stride) float32, zeros behind M
    center,  # (N,) float32, for float charges
    dense_rows,  # (B,) int32
    dense_count,  # (1,) int32
    occupied,  # (row tiles, splits, tiles of a split) int32: scratch
    partial,  # (splits, B, N) float32: of a dense row's slot
    B,
    M,
    N,
    stride,
    part,  # charges of a split, a multiple of DEPTH
    splits,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A program has ROWS dense rows, COLUMNS elements and a part of the charges; tiles of charges where none of its rows has
    weight are neither read nor multiplied. Weights are split in three bfloat16 terms against whole numbers (bytes), or both
    operands as PRECISION says; DEPTH charges at a time are summed by the tensor cores, then added with what each addition
    rounds away. Splits are merged in order by `finish`.

    Cost: for every dense row, charge of an occupied tile and element 6 bfloat16 operations on tensor cores (bf16x6: 12); reads
    the charges ⌈dense/ROWS⌉ times, 4 bytes of weight ⌈N/COLUMNS⌉ + 1 times, writes 4 bytes an element, row and split. One
    launch. Defined by `reference.weighted_difference`.
    """
    row_tiles = tl.cdiv(B, ROWS)
    row_tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles % splits
    columns = tl.program_id(0) // (row_tiles * splits) * COLUMNS + tl.arange(0, COLUMNS)
    dense = tl.load(dense_count)
    slots = row_tile * ROWS + tl.arange(0, ROWS)
    if row_tile * ROWS < dense:
        mine = slots < dense
        rows = tl.load(dense_rows + slots, mine, 0).to(tl.int64)
        weight_rows = weights + rows[:, None] * stride
        begin = split * part
        # Every program of this row tile and split writes the same list to the same place.
        found = occupied + (tl.cast(row_tile, tl.int64) * splits + split) * (part // DEPTH)
        count = occupied_tiles(weight_rows, mine, begin, tl.minimum(begin + part, M), found, ROWS, DEPTH)
        inside = columns < N
        depth = tl.arange(0, DEPTH)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        error = tl.zeros([ROWS, COLUMNS], tl.float32)
        for at in range(0, count):
            charge = tl.load(found + at) + depth
            weight = tl.load(weight_rows + charge[None, :], mine[:, None], 0.0)
            source = charges + tl.minimum(charge, M - 1).to(tl.int64)[:, None] * N + columns[None, :]
            zero = tl.zeros([ROWS, COLUMNS], tl.float32)
            if charges.dtype.element_ty == tl.uint8:
                signed = (tl.load(source, inside[None, :], 128) ^ 128).to(tl.int8, bitcast=True)
                value = signed.to(tl.float32).to(tl.bfloat16)
                high = weight.to(tl.bfloat16)
                rest = weight - high.to(tl.float32)
                middle = rest.to(tl.bfloat16)
                low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
                part_sum = dot(low, value, zero, PRECISION)
                part_sum = dot(middle, value, part_sum, PRECISION)
                part_sum = dot(high, value, part_sum, PRECISION)
            else:
                shift = tl.load(center + columns, inside, 0.0)
                value = tl.load(source, inside[None, :], 0.0) - shift[None, :]
                part_sum = dot(weight, value, zero, PRECISION)
            total, error = two_sum(total, error, part_sum)
        place = partial + (tl.cast(split, tl.int64) * B + slots)[:, None] * N + columns[None, :]
        tl.store(place, total + error, mine[:, None] & inside[None, :])


def splits_of(call: FieldCall, tile: configs.Tile, processors: int) -> int:
    """Parts of the charges, so that the programs of a third of the rows (as many are dense on training queries, about) fill
    the device twice; a part has at least 512 charges."""
    batch, count, dim = call.sizes
    programs = cdiv(cdiv(batch, 3), tile.rows) * cdiv(dim, tile.columns)
    return max(1, min(32, cdiv(2 * processors, programs), count // 512))


def launch_weighted_sum(call: FieldCall, scratch: Scratch, table: configs.Table, processors: int) -> Tensor:
    """partial (splits, B, N), as `weighted_sum_kernel` writes it."""
    batch, count, dim = call.sizes
    tiles = table.weighted_sum_bytes if call.bytes else table.weighted_sum_floats
    if dim % 16:
        tiles = tuple(tile.ragged() for tile in tiles)
    tile = next((t for t in tiles if batch > t.rows // 2), tiles[-1])
    splits = splits_of(call, tile, processors)
    depth = max(t.depth for t in tiles)
    part = cdiv(cdiv(count, splits), depth) * depth
    found = cdiv(batch, min(t.rows for t in tiles)) * splits * (part // min(t.depth for t in tiles))
    partial = torch.empty((splits, batch, dim), dtype=torch.float32, device=call.x.device)
    constants = [
        {"ROWS": t.rows, "COLUMNS": t.columns, "DEPTH": t.depth} for t in tiles
    ]  # fmt: skip
    Launch(
        f"{'byte' if call.bytes else 'float'}_spread{'_ragged' if dim % 16 else ''}-{tile.rows}",
        weighted_sum_kernel,
        lambda chosen: splits * cdiv(batch, chosen["ROWS"]) * cdiv(dim, chosen["COLUMNS"]),
        {
            "charges": call.charges,
            "weights": scratch.gaps,
            "center": call.center,
            "dense_rows": scratch.dense_rows,
            "dense_count": scratch.dense_count,
            "occupied": torch.empty(found, dtype=torch.int32, device=call.x.device),
            "partial": partial,
            "B": batch,
            "M": count,
            "N": dim,
            "stride": scratch.stride,
            "part": part,
            "splits": splits,
        },
        {"PRECISION": table.precision} | constants[tiles.index(tile)],
        tile.warps,
        tile.stages,
        True,
        choices=tuple(
            Choice(tuple(c.items()), t.warps, t.stages) for c, t in zip(constants, tiles, strict=True)
        ),
    ).run()
    return partial
