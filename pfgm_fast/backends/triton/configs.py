"""The configurations: block sizes, warps and stages of each kernel, by architecture and shape. Nothing is searched at run time.

How they were chosen: by reasoning from registers, shared memory and the shape of the matrix instructions, and by what the
compiler then reports (tests/test_triton_compile.py asserts it). No GPU has timed them. `PFGM_FAST_TRITON_TUNE=1` has Triton
measure, for each new shape, every tile of the table and keep the fastest on disk (Triton's own cache).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

CHARGES = 128
"""Charges of a tile of the first product: one for all configurations, because the rows' kernel reads the tiles' minima."""

LONGEST_SUPPORT = 64
"""Charges in the support of a sparse row at most: such a row is served by direct differences, a dense one by the second product."""

SPLIT_DIGITS_BLOCK, SPLIT_DIGITS_WARPS = 1024, 4
SMALL_N_QUERIES, SMALL_N_CHARGES, SMALL_N_WARPS = 16, 128, 4


@dataclass(frozen=True)
class Tile:
    """One configuration of a product: `rows` queries (first product) or dense rows (second) by `columns` charges (first)
    or elements (second), `depth` of the contracted dimension a step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def ragged(self) -> Tile:
        """For rows that start anywhere, N not divisible by 16: they are read byte by byte, and a shallower tile keeps the
        addresses in registers."""
        return replace(self, depth=min(32, self.depth // 2), warps=8, stages=2)


LONG_ROW = 16_384
"""Elements. Longer rows are read in longer blocks, whose sums take more registers."""


@dataclass(frozen=True)
class Rows:
    """How the rows' kernels (weights, finish) go through a row. Each round of their loops waits for memory once, so a round is large:
    16 elements a thread, or 4 gaps."""

    tiles: int = 16  # of charges at a time
    elements: int = 8192  # of a row's support at a time: `block` elements of some charges
    warps: int = 16
    registers: int = 128
    """What a thread may have. Said because ptxas else spills a few, to fit more blocks than there are rows."""

    def constants(self, dim: int, more: bool = False) -> dict[str, int]:
        """SUPPORT charges by BLOCK elements of rows of length dim: the longer the rows, the fewer charges beside them. Half as
        many where they take more registers: `more`, or rows that start anywhere."""
        block = self.elements // (32 if dim <= 256 else 8 if dim <= LONG_ROW else 2)
        return {"SUPPORT": self.elements // block // (2 if more or dim % 16 else 1), "BLOCK": block}


@dataclass(frozen=True)
class Table:
    """Tiles of each product, the largest first."""

    distance_gemm_bytes: tuple[Tile, ...]
    distance_gemm_long_bytes: tuple[Tile, ...]  # N > 131,072: sums of parts are kept in int64 besides
    distance_gemm_floats: tuple[Tile, ...]
    weighted_sum_bytes: tuple[Tile, ...]
    weighted_sum_floats: tuple[Tile, ...]
    precision: str
    """How a product of float32 is split. bf16x6: three bfloat16 terms a side, the six products that reach 2⁻²⁴: as many
    tensor-core passes as tf32x3 at half their price, a bit more accurate, and known to NVIDIA and AMD. `ieee` runs on plain
    cores, at a fifth to a third of that rate."""
    rows: Rows = Rows()
    ptx: bool = True
    """Whether kernels may hold NVIDIA's instructions."""


PRODUCTS = ("distance_gemm_bytes", "distance_gemm_floats", "weighted_sum_bytes", "weighted_sum_floats")
"""The fields of a `Table` that every path takes one of (long rows of bytes have tiles of their own)."""


def _tiles(columns: int, depth: int, stages: int, *rows_and_warps: tuple[int, int]) -> tuple[Tile, ...]:
    return tuple(Tile(rows, columns, depth, warps, stages) for rows, warps in rows_and_warps)


_AMPERE = Table(  # within the 99 KiB of shared memory of sm_86 and sm_89
    distance_gemm_bytes=_tiles(CHARGES, 64, 3, (64, 8), (32, 4), (16, 4)),
    distance_gemm_long_bytes=_tiles(CHARGES, 64, 3, (16, 4)),
    distance_gemm_floats=_tiles(CHARGES, 32, 2, (64, 8), (32, 8), (16, 4)),
    weighted_sum_bytes=_tiles(64, 64, 3, (32, 4), (16, 4)),
    weighted_sum_floats=_tiles(64, 32, 3, (32, 4), (16, 4)),
    precision="bf16x6",
)
_HOPPER = Table(
    distance_gemm_bytes=_tiles(CHARGES, 128, 3, (64, 8), (32, 4), (16, 4)),
    distance_gemm_long_bytes=_tiles(CHARGES, 128, 3, (16, 4)),
    distance_gemm_floats=_tiles(CHARGES, 32, 3, (64, 8), (32, 8), (16, 4)),
    weighted_sum_bytes=_tiles(128, 64, 3, (64, 4), (16, 4)),
    weighted_sum_floats=_tiles(64, 32, 3, (64, 4), (16, 4)),
    precision="bf16x6",
)
_CDNA3 = Table(  # 64 KiB of shared memory
    distance_gemm_bytes=_tiles(CHARGES, 64, 2, (64, 8), (32, 4), (16, 4)),
    distance_gemm_long_bytes=_tiles(CHARGES, 64, 2, (16, 4)),
    distance_gemm_floats=_tiles(CHARGES, 32, 2, (64, 8), (32, 4), (16, 4)),
    weighted_sum_bytes=_tiles(64, 64, 2, (32, 4), (16, 4)),
    weighted_sum_floats=_tiles(64, 32, 2, (32, 8), (16, 4)),
    precision="bf16x6",
    rows=Rows(8, 4096, 8),  # warps of 64 lanes
    ptx=False,
)
TABLES = {"sm_80": _AMPERE, "sm_90": _HOPPER, "sm_100": _HOPPER, "gfx942": _CDNA3}
"""Compiled ahead of time by the tests. Other devices take the nearest: 8.x and 12.x sm_80, whose tiles fit their 99
KiB; 10.x sm_100; AMD's CDNA gfx942. `refuses` says which take none."""

INTERPRETER = Table(  # large enough to be quick there, small enough to have edges
    distance_gemm_bytes=_tiles(CHARGES, 128, 1, (16, 4)),
    distance_gemm_long_bytes=_tiles(CHARGES, 128, 1, (16, 4)),
    distance_gemm_floats=_tiles(CHARGES, 128, 1, (16, 4)),
    weighted_sum_bytes=_tiles(128, 64, 1, (16, 4)),
    weighted_sum_floats=_tiles(128, 64, 1, (16, 4)),
    precision="ieee",
    rows=Rows(tiles=2, elements=4096),
    ptx=False,
)


OLDEST = (8, 0)
"""Compute capability below which the field's kernels do not compile, or spill: Ampere."""


@cache
def refuses(index: int) -> str | None:
    """Why no table is for this GPU's field operators, or None."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        name = properties.gcnArchName.split(":")[0]
        if not name.startswith(("gfx90a", "gfx94", "gfx95")):
            return f"the field's kernels are made for AMD's CDNA 2 and later (gfx90a, gfx94x, gfx95x); this GPU is {name}"
    elif (properties.major, properties.minor) < OLDEST:
        return f"the field's kernels need compute capability 8.0 or later; this GPU has {properties.major}.{properties.minor}"
    return None


@cache
def _of_device(index: int) -> tuple[Table, int]:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return TABLES["gfx942"], properties.multi_processor_count
    name = {8: "sm_80", 9: "sm_90"}.get(properties.major, "sm_80" if properties.major > 10 else "sm_100")
    return TABLES[name], properties.multi_processor_count


def of_device(device: torch.device) -> tuple[Table, int]:
    """The table for a device and its number of multiprocessors (the interpreter's stand-ins for the CPU)."""
    if device.type != "cuda":
        return INTERPRETER, 2
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


def pick(tiles: tuple[Tile, ...], rows: int, others: int, processors: int) -> Tile:
    """The largest tile that gives every multiprocessor one (`others`: tiles of the other dimension) and is not
    half empty; else the smallest."""
    for tile in tiles:
        if -(-rows // tile.rows) * others >= processors and 2 * rows > tile.rows:
            return tile
    return tiles[-1]
