"""The second product, for dense rows only: partial[split][slot] = Σ_j w_j (y_j − c), over a part of the charges.

The shift c keeps the sum small: 128 for bytes (then an operand is a whole number that float16 holds), μ for floats. What
the sum still loses, close to a cluster of charges far from c, `finish` notices and computes directly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall, Scratch
from pfgm_fast.backends.triton.common import WEIGHT_UNIT
from pfgm_fast.backends.triton.runtime import Choice, Launch, cdiv, dot, jit, tl


@jit
def less_128(raw, PTX: tl.constexpr):
    """Bytes less 128 in float16, exactly: the bits of 1024 + byte are 0x6400 | byte. PTX: four bytes in four instructions, of which
    the compiler makes some sixteen."""
    if PTX:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, shift;
            mov.b32 shift, 0xE480E480;
            prmt.b32 a, $2, 0x64646464, 0x4140;
            prmt.b32 b, $2, 0x64646464, 0x4342;
            add.f16x2 $0, a, shift;
            add.f16x2 $1, b, shift;
            }""",
            "=r,=r,r",
            [raw],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    else:
        return (raw.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - tl.full([], 1152, tl.float16)


@jit
def occupied_tiles(occupied, rows, mine, begin, end, tiles, found, TILES: tl.constexpr):
    """Lists in `found` the tiles of charges, from begin to end, where any of these rows has weight; their number."""
    count = tl.full([], 0, tl.int32)
    for start in range(begin, end, TILES):
        tile = start + tl.arange(0, TILES)
        inside = mine[:, None] & (tile < end)[None, :]
        flags = tl.load(occupied + rows[:, None] * tiles + tile[None, :], inside, 0)
        some = tl.max(flags.to(tl.int32), 0)
        tl.store(found + count + tl.cumsum(some, 0) - 1, tile.to(tl.int32), some > 0)
        count += tl.sum(some, 0)
    tl.debug_barrier()
    return count


@jit(do_not_specialize=["B", "M", "tiles", "part", "splits"])
def weighted_sum_kernel(
    charges,  # (M, N) uint8 or float32
    weights,  # (B, stride) float32, or for uint8 charges (2, B, stride) float16: WEIGHT_UNIT w = high + low; 0 behind M
    occupied,  # (B, tiles) int8: whether a dense row has weight in a tile of charges
    center,  # (N,) float32, for float charges
    dense_rows,  # (B,) int32
    dense_count,  # (1,) int32
    found,  # (row tiles, splits, part) int32: scratch
    partial,  # (splits, B, N) float32: of a dense row's slot
    B,
    M,
    N,
    stride,
    tiles,
    part,  # tiles of a split
    splits,
    PRECISION: tl.constexpr,
    PTX: tl.constexpr,  # see `less_128`
    CHARGES: tl.constexpr,  # of a tile
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,  # divides CHARGES
):
    """A program has ROWS dense rows, COLUMNS elements and a part of the charges; tiles of charges where none of its rows has
    weight are neither read nor multiplied. Bytes: whole numbers, which float16 holds, against the weights' two terms; floats: both
    operands as PRECISION says. DEPTH charges at a time are summed by the tensor cores, then added; what an addition rounds
    away goes into the next sum (Kahan). Splits are merged in order by `finish`.

    Cost: for every dense row, charge of an occupied tile and element 4 float16 operations on tensor cores (bf16x6: 12 bfloat16);
    reads the charges ⌈dense/ROWS⌉ times, 4 bytes of weight ⌈N/COLUMNS⌉ times, writes 4 bytes an element, row and split. One
    launch. Defined by `reference.weighted_difference`.
    """
    row_tiles = tl.cdiv(B, ROWS)
    row_tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles % splits
    column_tile = tl.program_id(0) // (row_tiles * splits)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    dense = tl.load(dense_count)
    slots = row_tile * ROWS + tl.arange(0, ROWS)
    if row_tile * ROWS < dense:
        mine = slots < dense
        rows = tl.load(dense_rows + slots, mine, 0).to(tl.int64)
        begin = tl.cast(split, tl.int64) * part
        # Every program of this row tile and split writes the same list to the same place.
        found += (tl.cast(row_tile, tl.int64) * splits + split) * part
        count = occupied_tiles(occupied, rows, mine, begin, tl.minimum(begin + part, tiles), tiles, found, 64)
        inside = columns < N
        depth = tl.arange(0, DEPTH)
        weight_rows = weights + rows[:, None] * stride
        pitch = tl.cast(B, tl.int64) * stride
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        left = tl.zeros([ROWS, COLUMNS], tl.float32)
        STEPS: tl.constexpr = CHARGES // DEPTH
        # The next tile is asked for a round ahead: charges whose address waits for memory are not fetched early.
        tile = tl.load(found, count > 0, 0)
        for at in range(0, count * STEPS):
            charge = tile * CHARGES + at % STEPS * DEPTH + depth
            source = charges + tl.minimum(charge, M - 1).to(tl.int64)[:, None] * N + columns[None, :]
            tile = tl.load(found + tl.minimum((at + 1) // STEPS, count - 1))
            if charges.dtype.element_ty == tl.uint8:
                high = tl.load(weight_rows + charge[None, :], mine[:, None], 0.0)
                low = tl.load(weight_rows + pitch + charge[None, :], mine[:, None], 0.0)
                value = less_128(tl.load(source, inside[None, :], 0), PTX)
                part_sum = dot(low, value, left, PRECISION)
                part_sum = dot(high, value, part_sum, PRECISION)
            else:
                weight = tl.load(weight_rows + charge[None, :], mine[:, None], 0.0)
                shift = tl.load(center + columns, inside, 0.0)
                value = tl.load(source, inside[None, :], 0.0) - shift[None, :]
                part_sum = dot(weight, value, left, PRECISION)
            new = total + part_sum
            left = part_sum - (new - total)
            total = new
        # Formed anew, of what the loop leaves (0): kept through the loop, they cost registers that it needs.
        nothing = tl.minimum(tile, 0)
        slots = (row_tile + nothing) * ROWS + tl.arange(0, ROWS)
        columns = (column_tile + nothing) * COLUMNS + tl.arange(0, COLUMNS)
        place = partial + (tl.cast(split, tl.int64) * B + slots)[:, None] * N + columns[None, :]
        if charges.dtype.element_ty == tl.uint8:
            total *= 1 / WEIGHT_UNIT
            left *= 1 / WEIGHT_UNIT
        tl.store(place, total + left, (slots < dense)[:, None] & (columns < N)[None, :])


def splits_of(call: FieldCall, tile: configs.Tile, processors: int) -> int:
    """Parts of the charges, so that the programs of a third of the rows (as many are dense on training queries, about) fill
    the device, two on a multiprocessor: once, or where they are many four times, because then the last are few against all. A part
    has at least 512 charges."""
    batch, count, dim = call.sizes
    programs, places = cdiv(cdiv(batch, 3), tile.rows) * cdiv(dim, tile.columns), 2 * processors
    splits = places // programs if 4 * programs <= places else cdiv(4 * places, programs)
    return max(1, min(32, splits, count // 512))


def launch_weighted_sum(call: FieldCall, scratch: Scratch, table: configs.Table, processors: int) -> Tensor:
    """partial (splits, B, N), as `weighted_sum_kernel` writes it."""
    batch, count, dim = call.sizes
    tiles = table.weighted_sum_bytes if call.bytes else table.weighted_sum_floats
    if dim % 16:
        tiles = tuple(tile.ragged() for tile in tiles)
    tile = next((t for t in tiles if batch > t.rows // 2), tiles[-1])
    splits = splits_of(call, tile, processors)
    part = cdiv(scratch.tiles, splits)
    found = cdiv(batch, min(t.rows for t in tiles)) * splits * part
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
            "weights": scratch.gaps if scratch.terms is None else scratch.terms,
            "occupied": scratch.occupied,
            "center": call.center,
            "dense_rows": scratch.dense_rows,
            "dense_count": scratch.dense_count,
            "found": torch.empty(found, dtype=torch.int32, device=call.x.device),
            "partial": partial,
            "B": batch,
            "M": count,
            "N": dim,
            "stride": scratch.stride,
            "tiles": scratch.tiles,
            "part": part,
            "splits": splits,
        },
        {"PRECISION": table.precision, "PTX": table.ptx, "CHARGES": configs.CHARGES}
        | constants[tiles.index(tile)],
        tile.warps,
        tile.stages,
        True,
        max_registers=255,  # said because ptxas else spills a few, to fit more blocks than `splits_of` has in mind
        choices=tuple(
            Choice(tuple(c.items()), t.warps, t.stages) for c, t in zip(constants, tiles, strict=True)
        ),
    ).run()
    return partial
