"""A block of threads that executes a kernel: registers, control flow, barriers, memory.

Threads run in lockstep: of those that can run, the ones with the least program counter execute one instruction, all at once. Global
memory is this process's own, by its addresses; shared memory begins as 0xff (NaN) and has a window in the generic address space.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from typing import Any

import numpy as np

from tests.ptx import scalar
from tests.ptx.common import LOCAL_WINDOW, SHARED_WINDOW, WARP, Array, PtxError
from tests.ptx.hopper import Hopper
from tests.ptx.instructions import Copy, Instructions
from tests.ptx.program import Kernel

_LOWEST = 1 << 16
_EVERYTHING = (ctypes.c_uint8 * ((1 << 47) - _LOWEST)).from_address(_LOWEST)


def mapped() -> list[tuple[int, int]]:
    """The readable ranges of this process's addresses."""
    with open("/proc/self/maps") as file:
        found = [re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line) for line in file]
    return [(int(m[1], 16), int(m[2], 16)) for m in found if m]


def launch(
    kernel: Kernel,
    blocks: int,
    threads: int,
    shared: int,
    parameters: bytes,
    counts: Counter[str] | None = None,
) -> None:
    """Execute all blocks, one after another. counts: executed instructions by opcode are added there."""
    memory = np.ctypeslib.as_array(_EVERYTHING)
    ranges = np.array(mapped(), dtype=np.uint64)
    for block in range(blocks):
        Block(kernel, block, blocks, threads, shared, parameters, memory, ranges, counts).run()


class Block(Instructions):
    def __init__(
        self,
        kernel: Kernel,
        index: int,
        blocks: int,
        threads: int,
        shared: int,
        parameters: bytes,
        memory: Array,
        ranges: Array,
        counts: Counter[str] | None,
    ) -> None:
        if threads % WARP:
            raise PtxError("a block must have whole warps")
        self.kernel, self.threads, self.memory, self.ranges, self.counts = (
            kernel,
            threads,
            memory,
            ranges,
            counts,
        )
        self.parameters = np.frombuffer(parameters, np.uint8)
        static = max((at + size for at, size in kernel.shared.values()), default=0)
        self.shared = np.full((static + 127) // 128 * 128 + shared, 0xFF, np.uint8)
        self.dynamic = (static + 127) // 128 * 128
        local = max((at + size for at, size in kernel.local.values()), default=0)
        self.local = np.full((threads, local), 0xFF, np.uint8)
        self.registers: dict[str, Array] = {
            name: np.zeros(threads, bool if name in kernel.predicates else f"u{size}")
            for name, size in kernel.registers.items()
        }
        lanes = np.arange(threads, dtype=np.uint32)
        self.special = {
            "%tid.x": lanes,
            "%ntid.x": np.full(threads, threads, np.uint32),
            "%ctaid.x": np.full(threads, index, np.uint32),
            "%nctaid.x": np.full(threads, blocks, np.uint32),
            "%laneid": lanes % WARP,
        }
        for axis in "yz":
            for name, value in (("tid", 0), ("ntid", 1), ("ctaid", 0), ("nctaid", 1)):
                self.special[f"%{name}.{axis}"] = np.full(threads, value, np.uint32)
        self.pc = np.zeros(threads, np.int64)
        self.alive = np.ones(threads, bool)
        self.waiting = np.zeros(threads, bool)
        self.apart = np.zeros(threads, bool)  # at a barrier of their warp
        self.gathered = np.zeros(
            threads, bool
        )  # at a warpgroup's first matrix instruction, without others of it
        self.copies: list[Copy] = []
        self.committed = np.zeros(threads, np.int64)  # groups of copies that each thread has committed
        self.hopper = Hopper(self)

    # ---- control flow

    def run(self) -> None:
        with np.errstate(all="ignore"):
            while self.alive.any():
                self.hopper.wake()
                runnable = self.alive & ~self.waiting & ~self.hopper.blocked & ~self.apart & ~self.gathered
                if not runnable.any():
                    if (self.apart | self.gathered).any():
                        raise PtxError("a deadlock: threads wait for others of their warp or warpgroup")
                    if self.hopper.blocked.any():
                        raise PtxError("a deadlock: threads wait for a barrier's phase that nobody ends")
                    self.waiting[:] = False
                    continue
                self._together(runnable)
        if any((copy.valid[copy.who] > 0).any() for copy in self.copies):
            raise PtxError("a block ended with copies in flight")
        self.hopper.check_idle()

    def _together(self, runnable: Array) -> None:
        """Run the threads of the least program counter until they part, meet others, wait, or end."""
        first = int(self.pc[runnable].min())
        group = runnable & (self.pc == first)
        others = self.pc[runnable & ~group]
        limit = int(others.min()) if len(others) else len(self.kernel.instructions) + 1
        pc = first
        while True:
            if pc >= len(self.kernel.instructions):
                self.alive[group] = False
                return
            instruction = self.kernel.instructions[pc]
            mask = group
            if instruction.guard:
                name, wanted = instruction.guard
                mask = group & (self.registers[name] == wanted)
            operation = instruction.opcode[0]
            if self.counts is not None:
                self.counts[".".join(instruction.opcode)] += 1
            if operation == "bra":
                target = self.kernel.labels[instruction.operands[0]]
                if mask.sum() in (0, group.sum()):
                    pc = target if mask.any() else pc + 1
                    if pc >= limit or pc < first:
                        self.pc[group] = pc
                        return
                    continue
                self.pc[group & ~mask] = pc + 1
                self.pc[mask] = target
                return
            if operation in ("ret", "exit"):
                self.alive[mask] = False
                self.pc[group & ~mask] = pc + 1
                return
            if operation in ("bar", "barrier") and mask.any():
                self.pc[group] = pc + 1
                if "warp" not in instruction.opcode:
                    self.waiting |= mask
                    return
                self.apart |= mask
                together = (self.apart | ~self.alive).reshape(-1, WARP).all(1)
                self.apart &= ~np.repeat(together, WARP)
                return
            if operation == "wgmma" and "fence" in instruction.opcode and mask.any():
                group = group & ~self._gather(mask, pc)
                if not group.any():
                    return
                mask = mask & group
            if mask.any():
                try:
                    waits = self._execute(instruction, mask)
                except (
                    PtxError,
                    KeyError,
                    IndexError,
                    OverflowError,
                    AssertionError,
                ) as error:
                    raise PtxError(f"{instruction.line[:200]}: {type(error).__name__}: {error}") from error
                if waits is not None and waits.any():  # they come back to this instruction
                    self.pc[waits] = pc
                    group = group & ~waits
                    if not group.any():
                        return
            pc += 1
            if pc >= limit:
                self.pc[group] = pc
                return

    def _gather(self, mask: Array, pc: int) -> Array:
        """The threads that must wait at this instruction, because others of their warpgroup have not come."""
        parted = mask & ~self._warpgroups(mask)
        self.pc[parted] = pc
        self.gathered |= parted
        self.gathered &= ~self._warpgroups(self.gathered | mask)
        return parted

    def _warpgroups(self, threads: Array) -> Array:
        """Those of the threads whose whole warpgroup is among them."""
        size = 4 * WARP
        count, out = len(threads) // size * size, np.zeros_like(threads)
        out[:count] = np.repeat(threads[:count].reshape(-1, size).all(1), size)
        return out

    # ---- operands

    def value(self, operand: str, kind: str) -> Array:
        """An operand as an array of a type, one element a thread."""
        dtype = scalar.DTYPES[kind]
        if operand in self.special:
            return self.special[operand].astype(dtype)
        if operand in self.registers:
            raw = self.registers[operand]
            if raw.dtype == bool:
                raise PtxError(f"{operand} is a predicate")
            if raw.dtype.itemsize == dtype.itemsize:
                return raw.view(dtype)
            return raw.astype(f"u{dtype.itemsize}").view(
                dtype
            )  # a wider register's lower bits, or zeros above
        if operand.startswith("-") and operand[1:] in self.registers:
            return -self.value(operand[1:], kind)
        return np.full(self.threads, self.immediate(operand, dtype))

    def immediate(self, text: str, dtype: np.dtype[Any]) -> Any:
        if text in self.kernel.shared:
            return np.array(self.address_of(text), np.uint64).astype(dtype)
        if text in self.kernel.local:
            return np.array(self.kernel.local[text][0], np.uint64).astype(dtype)
        if text in self.kernel.parameters:
            return np.array(self.kernel.parameters[text][0], np.uint64).astype(dtype)
        bits = re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text)
        if bits:
            wide = bits[1] in "dD"
            number = np.array(int(bits[2], 16), np.uint64 if wide else np.uint32).view("f8" if wide else "f4")
            if dtype.kind == "f":
                return number.astype(dtype)
            return number.view(f"u{dtype.itemsize}")
        if dtype.kind == "f":
            return np.array(float(text), dtype)
        number_ = int(text.rstrip("U"), 0) & ((1 << 8 * dtype.itemsize) - 1)
        return np.array(number_, f"u{dtype.itemsize}").view(dtype)

    def address_of(self, name: str) -> int:
        """Where a shared variable begins; an extern one (no size) is the dynamic memory."""
        at, size = self.kernel.shared[name]
        return at if size else self.dynamic

    def predicate(self, operand: str) -> Array:
        if operand.startswith("!"):
            return ~self.registers[operand[1:]]
        return self.registers[operand]

    def put(self, operand: str, value: Array, mask: Array) -> None:
        """Write a register where the mask is set; `_` is nowhere."""
        if operand == "_":
            return
        raw = self.registers[operand]
        if raw.dtype != bool:
            if value.dtype.itemsize < raw.dtype.itemsize:
                wide = np.dtype(f"{'i' if value.dtype.kind == 'i' else 'u'}{raw.dtype.itemsize}")
                bits = value if value.dtype.kind in "iu" else value.view(f"u{value.dtype.itemsize}")
                value = bits.astype(wide)
            value = np.ascontiguousarray(value).view(raw.dtype) if value.dtype != raw.dtype else value
        np.copyto(raw, value, where=mask)

    def parts(self, operand: str) -> list[str]:
        return (
            [part.strip() for part in operand.strip("{}").split(",")]
            if operand.startswith("{")
            else [operand]
        )

    def where(self, operand: str) -> Array:
        """The address in `[register + offset]`, uint64."""
        inside = operand.strip("[]").replace(" ", "")
        base, sign, offset = re.fullmatch(r"([%\w$.]+)(?:([+-]+)(\d+))?", inside).groups()  # type: ignore[union-attr]
        step = int(offset or 0) * (-1 if sign and sign.count("-") % 2 else 1)
        if base in self.registers:
            start = self.registers[base].astype(np.int64)
        else:
            start = np.full(self.threads, self.immediate(base, np.dtype("i8")))
        return (start + step).astype(np.uint64)

    # ---- memory

    def space(self, name: str | None, address: Array, size: int, mask: Array) -> tuple[Array, Array]:
        """The memory that an address lies in, and byte indices (threads of the mask, size) in it."""
        at = address[mask].astype(np.int64)
        if (at % size).any():
            raise PtxError(f"an address is not aligned to {size} bytes")
        if name is None:  # generic: decided by the window
            shared, local = (at >= SHARED_WINDOW) & (at < LOCAL_WINDOW), at >= LOCAL_WINDOW
            if shared.all():
                name, at = "shared", at - SHARED_WINDOW
            elif local.all():
                name, at = "local", at - LOCAL_WINDOW
            elif (shared | local).any():
                raise PtxError("one access to several spaces")
            else:
                name = "global"
        index = at[:, None] + np.arange(size)
        if name == "shared":
            if (at < 0).any() or (at + size > len(self.shared)).any():
                raise PtxError("an access beyond shared memory")
            return self.shared, index
        if name == "local":
            rows = np.flatnonzero(mask)[:, None] * self.local.shape[1]
            return self.local.reshape(-1), index + rows
        self._check_global(at, size)
        return self.memory, index - _LOWEST

    def _check_global(self, at: Array, size: int) -> None:
        inside = np.searchsorted(self.ranges[:, 0], at.astype(np.uint64), side="right") - 1
        if (inside < 0).any() or (at + size > self.ranges[inside, 1].astype(np.int64)).any():
            raise PtxError("an access to memory that nobody has")

    def global_bytes(self, address: Array) -> Array:
        """The bytes at these addresses of global memory."""
        self._check_global(address.reshape(-1), 1)
        return self.memory[address - _LOWEST]

    def load(self, name: str | None, address: Array, kind: str, count: int, mask: Array) -> list[Array]:
        dtype = scalar.DTYPES[kind]
        memory, index = self.space(name, address, dtype.itemsize * count, mask)
        found = np.ascontiguousarray(memory[index]).view(dtype)
        out = [np.zeros(self.threads, dtype) for _ in range(count)]
        for k in range(count):
            out[k][mask] = found[:, k]
        return out

    def store(self, name: str | None, address: Array, values: list[Array], mask: Array) -> None:
        raw = np.stack([v[mask] for v in values], 1)
        bytes_ = np.ascontiguousarray(raw).view(np.uint8)
        memory, index = self.space(name, address, bytes_.shape[1], mask)
        memory[index] = bytes_
