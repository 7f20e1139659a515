"""Hopper's own instructions: barriers that count bytes, tensor-map loads, products of a warpgroup. PTX ISA 8.x, sections 'mbarrier',
'cp.async.bulk.tensor', 'Tensor swizzling modes', 'Asynchronous warpgroup level matrix instructions'.

Strict, as tests/cuda_host/hopper.h is: a load's target is poison until it happens, at the last moment that is allowed (when somebody
waits for its barrier, all have arrived and all announced bytes are on their way); a product reads shared memory and gives its sums back
only when it is waited for, and until then its registers are poison.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tests.ptx import matrix
from tests.ptx.common import PARAMETER_WINDOW, WARP, Array, PtxError

if TYPE_CHECKING:
    from tests.ptx.machine import Block
    from tests.ptx.program import Instruction

WARPGROUP = 4 * WARP
TENSOR_MAP = 128
"""Bytes of a tensor map in a kernel's parameters. Here its first 32 hold what the host's make_tensor_map was told (`struct TensorMap` of
tests/cuda_host/hopper.h): base, rows, width in bytes, the tile's rows and width."""
ROW = 128
"""Bytes of a tile's row: an atom of the 128-byte swizzle."""


def swizzled(address: Array, atom: int = 128) -> Array:
    """The swizzle of rows of `atom` bytes, of addresses in shared memory. 128: bits 4 to 6 are crossed with bits 7 to 9; 64: bits 4 and
    5 with bits 7 and 8; 32: bit 4 with bit 7."""
    return address ^ (address >> 7 & (atom // 16 - 1)) << 4


def loaded_to(begin: int, size: int) -> Array:
    """Where the bytes of a tile lie, row by row, that a tensor map with this swizzle writes from `begin` on."""
    return swizzled(begin + np.arange(size))


@dataclass
class Load:
    """A tensor-map load on its way: where to, the tile's bytes (rows, 128)."""

    to: int
    tile: Array


@dataclass
class Barrier:
    arrivals: int
    missing: int
    announced: int = 0
    phase: int = 0
    loads: list[Load] = field(default_factory=list)


class Barriers:
    """The barriers of a block, by address in shared memory."""

    def __init__(self, shared: Array) -> None:
        self.shared = shared
        self.all: dict[int, Barrier] = {}

    def init(self, address: int, arrivals: int) -> None:
        if address % 8 or not 0 < arrivals < 1 << 20:
            raise PtxError("a barrier needs 8 aligned bytes and 1 to 2^20 - 1 arrivals")
        self.all[address] = Barrier(arrivals, arrivals)

    def at(self, address: int) -> Barrier:
        if address not in self.all:
            raise PtxError("a barrier is used before it is initialised")
        return self.all[address]

    def arrive(self, address: int, announced: int = 0) -> None:
        barrier = self.at(address)
        if barrier.missing == 0:
            raise PtxError("more arrive at a barrier than it waits for")
        barrier.missing -= 1
        barrier.announced += announced
        if barrier.announced == 0 and not barrier.loads:
            self._advance(barrier)

    def ended(self, address: int, parity: int) -> bool:
        """Whether the phase of this parity has ended: the current one has the other. Loads happen here, if that ends it."""
        barrier = self.at(address)
        if barrier.phase & 1 == parity:
            self._advance(barrier)
        return barrier.phase & 1 != parity

    def _advance(self, barrier: Barrier) -> None:
        if barrier.missing:
            return
        arrived = sum(load.tile.size for load in barrier.loads)
        if arrived > barrier.announced:
            raise PtxError("a barrier's phase gets more bytes than were announced")
        if arrived < barrier.announced:
            return
        for load in barrier.loads:
            self.shared[loaded_to(load.to, load.tile.size)] = load.tile.reshape(-1)
        barrier.loads, barrier.announced = [], 0
        barrier.missing, barrier.phase = barrier.arrivals, barrier.phase + 1


@dataclass
class Product:
    """m64n(N)k32 of some warpgroups: the sums' registers, descriptors and whether the sums are kept, each by thread. Where A comes from
    registers, their names."""

    who: Array
    names: tuple[str, ...]
    a: Array | list[str]
    b: Array
    keep: Array
    signed: tuple[bool, bool]


def tile_rows(shared: Array, descriptor: int, rows: int, signed: bool) -> Array:
    """(rows, 32) numbers that a matrix descriptor names, K-major. Bits 0–13 are the address, 32–45 the step between groups of eight
    rows, both in 16 bytes; 62–63 are the swizzle: 1, 2, 3 for rows of 128, 64, 32 bytes; 49–51 its base, 0 where tiles are aligned."""
    atom = {1: 128, 2: 64, 3: 32}.get(descriptor >> 62)
    if atom is None or descriptor >> 49 & 7:
        raise PtxError("a matrix descriptor without a swizzle, or with a base of it")
    begin, step = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    row = np.arange(rows)
    start = begin + row // 8 * step + row % 8 * atom
    found = shared[swizzled(start[:, None] + np.arange(32), atom)]
    return (found.view(np.int8) if signed else found).astype(np.float64)


def sum_positions(columns: int) -> tuple[Array, Array]:
    """Row and column (128 threads, columns / 2) of each thread's sums. ISA figure 'WGMMA .m64nNk32 register fragment layout for
    accumulator matrix D': row 16 w + lane / 4, and 8 more for every second pair; columns 8 c + 2 (lane % 4) and the next."""
    thread, i = np.arange(WARPGROUP)[:, None], np.arange(columns // 2)
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    column = 8 * (i // 4) + 2 * (thread % 4) + i % 2
    return row, column


class Hopper:
    """What a block needs of this: its barriers, products in flight, true sums of registers that are poison meanwhile."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.barriers = Barriers(block.shared)
        threads = block.threads
        self.blocked = np.zeros(threads, bool)
        self.blocked_at: list[tuple[int, int]] = [(0, 0)] * threads  # barrier, parity
        self.fenced = np.zeros(threads, bool)
        self.open: list[Product] = []
        self.groups: list[list[Product]] = []
        self.sums: dict[tuple[str, ...], Array] = {}  # (registers, threads) int64
        self.held: dict[tuple[str, ...], Array] = {}  # whose registers are poison

    # ---- barriers

    def wake(self) -> None:
        """Threads whose phase has ended go on."""
        answers: dict[tuple[int, int], bool] = {}
        for thread in np.flatnonzero(self.blocked):
            key = self.blocked_at[thread]
            if key not in answers:
                answers[key] = self.barriers.ended(*key)
            self.blocked[thread] = not answers[key]

    def mbarrier(self, instruction: Instruction, mask: Array) -> Array:
        """Executes it; returns the threads that must wait here (of try_wait: whose phase has not ended)."""
        block, parts = self.block, instruction.opcode[1:]
        waits = np.zeros(block.threads, bool)
        if parts[0] == "init":
            address, value = instruction.operands
            for thread in np.flatnonzero(mask):
                count = int(block.value(value, "u32")[thread])
                self.barriers.init(int(block.where(address)[thread]), count)
        elif parts[0] == "arrive":
            _, address, *value = instruction.operands
            announced = block.value(value[0], "u32") if "expect_tx" in parts else np.zeros(block.threads, int)
            for thread in np.flatnonzero(mask):
                self.barriers.arrive(int(block.where(address)[thread]), int(announced[thread]))
        elif parts[:2] == ("try_wait", "parity"):
            to, address, value = instruction.operands
            where, parity = block.where(address), block.value(value, "u32")
            for thread in np.flatnonzero(mask):
                key = (int(where[thread]), int(parity[thread]))
                waits[thread] = not self.barriers.ended(*key)
                self.blocked_at[thread] = key
            block.put(to, np.ones(block.threads, bool), mask & ~waits)
            self.blocked |= waits
        else:
            raise PtxError(f"unknown instruction {'.'.join(instruction.opcode)}")
        return waits

    # ---- loads

    def load_tile(self, instruction: Instruction, mask: Array) -> None:
        """cp.async.bulk.tensor.2d: [to], [map, {column, row}], [barrier]. What lies outside of the tensor is zero."""
        block = self.block
        to, source, barrier = instruction.operands
        place, coordinates = source.strip("[]").split(",", 1)
        column, row = (block.value(name, "s32") for name in block.parts(coordinates.strip()))
        target, at = block.where(to), block.where(barrier)
        for thread in np.flatnonzero(mask):
            offset = int(block.value(place.strip(), "u64")[thread]) - PARAMETER_WINDOW
            if not 0 <= offset < len(block.parameters) or offset % 64:
                raise PtxError("a tensor map must lie in the kernel's parameters, aligned to 64 bytes")
            base, rows, width, tile_rows_, tile_width = struct.unpack(
                "<qqqii", block.parameters[offset : offset + 32].tobytes()
            )
            begin, size = int(target[thread]), tile_rows_ * tile_width
            if begin % ROW or begin + size > len(block.shared) or tile_width != ROW or tile_rows_ > 256:
                raise PtxError("a tensor map's tile is misaligned, too large, or beyond shared memory")
            tile = np.zeros((tile_rows_, ROW), np.uint8)
            first, start = int(row[thread]), int(column[thread])
            count, length = min(tile_rows_, rows - first), min(ROW, width - start)
            if count > 0 and length > 0 and first >= 0 and start >= 0:
                index = base + (first + np.arange(count))[:, None] * width + start + np.arange(length)
                tile[:count, :length] = block.global_bytes(index)
            block.shared[begin : begin + size] = 0xFF
            self.barriers.at(int(at[thread])).loads.append(Load(begin, tile))

    # ---- products

    def wgmma(self, instruction: Instruction, mask: Array) -> None:
        block, parts = self.block, instruction.opcode[1:]
        groups = mask.reshape(-1, 32)
        if (groups.any(1) != groups.all(1)).any() or (len(groups) % 4 and groups[-(len(groups) % 4) :].any()):
            raise PtxError("a warpgroup's instruction is executed by a part of its threads")
        whole = groups[: len(groups) // 4 * 4].all(1).reshape(-1, 4)
        if (whole.any(1) != whole.all(1)).any():
            raise PtxError("a warpgroup's instruction is executed by a part of its warps")
        if parts[0] == "fence":
            self.fenced[mask] = True
        elif parts[0] == "commit_group":
            self.groups.append([product for product in self.open if (product.who & mask).any()])
            self.open = [product for product in self.open if not (product.who & mask).any()]
        elif parts[0] == "wait_group":
            self._wait(mask, int(instruction.operands[0], 0))
        elif parts[0] == "mma_async":
            shape = re.fullmatch(r"m64n(\d+)k32", parts[3])
            if shape is None or "s32" not in parts:
                raise PtxError(f"only byte products are known here, not {'.'.join(parts)}")
            if not self.fenced[mask].all():
                raise PtxError("a product of a warpgroup without a fence before")
            sums, a, b, keep = instruction.operands
            names = tuple(block.parts(sums))
            if 2 * len(names) != int(shape[1]):
                raise PtxError(f"{len(names)} sums of a thread for {shape[1]} columns")
            kinds = [part for part in parts if part in ("s8", "u8")]
            self._hold(names, mask)
            self.open.append(
                Product(
                    mask.copy(),
                    names,
                    block.parts(a) if a.startswith("{") else block.value(a, "u64").copy(),
                    block.value(b, "u64").copy(),
                    block.predicate(keep).copy(),
                    (kinds[0] == "s8", kinds[1] == "s8"),
                )
            )
        else:
            raise PtxError(f"unknown instruction {'.'.join(instruction.opcode)}")

    def _hold(self, names: tuple[str, ...], mask: Array) -> None:
        """The sums of these threads are put aside, their registers poisoned."""
        threads = self.block.threads
        held = self.held.setdefault(names, np.zeros(threads, bool))
        sums = self.sums.setdefault(names, np.zeros((len(names), threads), np.int64))
        new = mask & ~held
        if new.any():
            for k, name in enumerate(names):
                sums[k, new] = self.block.registers[name].view(np.int32)[new]
                self.block.registers[name][new] = 0xFFFFFFFF
            held |= new

    def _wait(self, mask: Array, in_flight: int) -> None:
        """Of these threads' groups, all but the last `in_flight` are multiplied now."""
        mine = [group for group in self.groups if any((product.who & mask).any() for product in group)]
        for group in mine[: len(mine) - in_flight if in_flight else None]:
            for product in group:
                self._multiply(product)
            self.groups = [other for other in self.groups if other is not group]
        self.fenced[mask] = False
        waiting = [product for group in self.groups for product in group] + self.open
        for names, held in self.held.items():
            still = np.zeros_like(held)
            for product in waiting:
                if product.names == names:
                    still |= product.who
            done = held & mask & ~still
            for k, name in enumerate(names):
                self.block.registers[name].view(np.int32)[done] = self.sums[names][k, done]
            held &= ~done

    def _multiply(self, product: Product) -> None:
        columns = 2 * len(product.names)
        row, column = sum_positions(columns)
        sums = self.sums[product.names]
        for first in range(0, self.block.threads // WARPGROUP * WARPGROUP, WARPGROUP):
            if not product.who[first]:
                continue
            mine = slice(first, first + WARPGROUP)
            described = [product.b, product.keep] + ([] if isinstance(product.a, list) else [product.a])
            if any((values[mine] != values[first]).any() for values in described):
                raise PtxError("descriptors differ within a warpgroup")
            if isinstance(product.a, list):  # each warp has 16 rows, in the layout of mma's A
                registers = [self.block.registers[name][mine].reshape(4, 32) for name in product.a]
                a = matrix.a_m16n8k32(registers, product.signed[0]).reshape(64, 32).astype(np.float64)
            else:
                a = tile_rows(self.block.shared, int(product.a[first]), 64, product.signed[0])
            b = tile_rows(self.block.shared, int(product.b[first]), columns, product.signed[1])
            exact = (a @ b.T)[row, column].T.astype(np.int64)  # below 2^53
            total = exact + (sums[:, mine] if product.keep[first] else 0)
            if (total != total.astype(np.int32)).any():
                raise PtxError("a tensor core's int32 sum overflows")
            sums[:, mine] = total

    def check_idle(self) -> None:
        if self.groups or self.open:
            raise PtxError("a block ended with products in flight")
        if any(barrier.loads for barrier in self.barriers.all.values()):
            raise PtxError("a block ended with loads in flight")
