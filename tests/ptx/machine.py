"""A block of threads that executes a kernel: registers, control flow, barriers, memory.

Threads run in lockstep: of those that can run, the ones with the least program counter execute one instruction, all at once. Global
memory is this process's own, by its addresses; shared memory begins as 0xff (NaN) and has a window in the generic address space.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx import matrix, scalar
from tests.ptx.hopper import PARAMETER_WINDOW, Hopper, HopperError
from tests.ptx.program import Instruction, Kernel

Array = NDArray[Any]
_LOWEST = 1 << 16
_EVERYTHING = (ctypes.c_uint8 * ((1 << 47) - _LOWEST)).from_address(_LOWEST)
SHARED_WINDOW = 1 << 48
LOCAL_WINDOW = 1 << 49
WARP = 32


class PtxError(Exception):
    """What the instruction set forbids, or this machine does not know."""


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


@dataclass
class Copy:
    """An asynchronous copy of some threads: who waits for it still, addresses, bytes that are not zero fill, its size, and the
    number of groups that each thread had committed before it."""

    who: Array
    to: Array
    source: Array
    valid: Array
    size: int
    group: Array


class Block:
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
        self.copies: list[Copy] = []
        self.committed = np.zeros(threads, np.int64)  # groups of copies that each thread has committed
        self.hopper = Hopper(self)

    # ---- control flow

    def run(self) -> None:
        with np.errstate(all="ignore"):
            while self.alive.any():
                self.hopper.wake()
                runnable = self.alive & ~self.waiting & ~self.hopper.blocked
                if not runnable.any():
                    if self.hopper.blocked.any():
                        raise PtxError("a deadlock: threads wait for a barrier's phase that nobody ends")
                    self.waiting[:] = False
                    continue
                self._together(runnable)
        if any((copy.valid[copy.who] > 0).any() for copy in self.copies):
            raise PtxError("a block ended with copies in flight")
        try:
            self.hopper.check_idle()
        except HopperError as error:
            raise PtxError(str(error)) from error

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
                self.waiting |= mask
                self.pc[group] = pc + 1
                return
            if mask.any():
                try:
                    waits = self._execute(instruction, mask)
                except (
                    PtxError,
                    HopperError,
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

    # ---- instructions

    def _execute(self, instruction: Instruction, mask: Array) -> Array | None:
        """Returns the threads that must wait at this instruction, if it is one to wait at."""
        operation, *parts = instruction.opcode
        if operation == "mbarrier":
            return self.hopper.mbarrier(instruction, mask)
        method = getattr(self, f"_do_{operation}", None)
        kind = next((p for p in reversed(parts) if p in scalar.DTYPES), "b32")
        if method is not None:
            method(instruction, tuple(parts), kind, mask)
        elif operation in scalar.BINARY:
            self._binary(instruction, tuple(parts), kind, mask)
        elif operation in scalar.UNARY:
            self._unary(instruction, kind, mask)
        elif operation in ("membar", "fence", "griddepcontrol", "prefetch", "nanosleep"):
            pass
        else:
            raise PtxError(f"unknown instruction {'.'.join(instruction.opcode)}")
        return None

    def _do_wgmma(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        self.hopper.wgmma(instruction, mask)

    def _binary(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, left, right = instruction.operands
        operation = instruction.opcode[0]
        if kind == "b32" and "pred" in parts:
            self.put(to, scalar.BINARY[operation](self.predicate(left), self.predicate(right)), mask)
            return
        a, b = self.value(left, kind), self.value(right, kind)
        if (
            operation in ("add", "sub") and "rz" in parts
        ):  # towards zero, exactly: the machine's own sum may round away
            exact = a.astype(np.longdouble) + (b if operation == "add" else -b).astype(np.longdouble)
            near = exact.astype(a.dtype)
            self.put(
                to,
                np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.zeros_like(near)), near),
                mask,
            )
            return
        self.put(to, scalar.BINARY[operation](a, b), mask)

    def _unary(self, instruction: Instruction, kind: str, mask: Array) -> None:
        to, source = instruction.operands
        if source.lstrip("!") in self.kernel.predicates:
            self.put(to, ~self.predicate(source), mask)
            return
        self.put(to, scalar.UNARY[instruction.opcode[0]](self.value(source, kind)), mask)

    def _do_mov(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, source = instruction.operands
        if "pred" in parts:
            known = source in self.registers
            value = self.registers[source] if known else np.full(self.threads, int(source) != 0)
            self.put(to, value, mask)
        elif to.startswith("{"):
            names = self.parts(to)
            width = scalar.DTYPES[kind].itemsize // len(names)
            raw = np.ascontiguousarray(self.value(source, kind)).view(f"u{width}").reshape(self.threads, -1)
            for k, name in enumerate(names):
                self.put(name, np.ascontiguousarray(raw[:, k]), mask)
        elif source.startswith("{"):
            names = self.parts(source)
            width = scalar.DTYPES[kind].itemsize // len(names)
            raw = np.stack([self.value(name, f"b{8 * width}") for name in names], 1)
            self.put(to, np.ascontiguousarray(raw).view(scalar.DTYPES[kind])[:, 0], mask)
        else:
            self.put(to, self.value(source, kind), mask)

    def _do_cvta(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, source = instruction.operands
        window = {
            "shared": SHARED_WINDOW,
            "local": LOCAL_WINDOW,
            "param": PARAMETER_WINDOW,
        }.get(next(p for p in parts if p in ("shared", "local", "global", "const", "param")), 0)
        value = self.value(source, "u64").astype(np.int64)
        self.put(to, (value - window if "to" in parts else value + window).astype(np.uint64), mask)

    def _do_cvt(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, source = instruction.operands
        kinds = [p for p in parts if p in scalar.DTYPES]
        value = scalar.convert(self.value(source, kinds[1]), scalar.DTYPES[kinds[0]], parts)
        self.put(to, value, mask)

    def _do_ld(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        names, address = self.parts(instruction.operands[0]), instruction.operands[1]
        if "param" in parts:
            (at,) = np.unique(self.where(address)[mask]).tolist()
            dtype = scalar.DTYPES[kind]
            raw = self.parameters[at : at + dtype.itemsize * len(names)].copy().view(dtype)
            for k, name in enumerate(names):
                self.put(name, np.full(self.threads, raw[k]), mask)
            return
        space = next(
            (p.split("::")[0] for p in parts if p.split("::")[0] in ("global", "shared", "local")), None
        )
        values = self.load(space, self.where(address), kind, len(names), mask)
        for name, value in zip(names, values, strict=True):
            self.put(name, value, mask)

    _do_ldu = _do_ld

    def _do_st(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        space = next(
            (p.split("::")[0] for p in parts if p.split("::")[0] in ("global", "shared", "local")), None
        )
        values = [self.value(name, kind) for name in self.parts(instruction.operands[1])]
        self.store(space, self.where(instruction.operands[0]), values, mask)

    def _do_atom(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, address, operand = instruction.operands
        self._atomic(parts, kind, mask, address, operand, to)

    def _do_red(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        self._atomic(parts, kind, mask, *instruction.operands, "_")

    def _atomic(
        self, parts: tuple[str, ...], kind: str, mask: Array, address: str, operand: str, to: str
    ) -> None:
        """One thread after another."""
        space = next((p for p in parts if p in ("global", "shared")), None)
        where, value = self.where(address), self.value(operand, kind)
        change = next(p for p in parts if p in ("add", "min", "max", "exch", "or", "and"))
        before = np.zeros(self.threads, scalar.DTYPES[kind])
        for thread in np.flatnonzero(mask):
            one = np.zeros(self.threads, bool)
            one[thread] = True
            (old,) = self.load(space, where, kind, 1, one)
            before[thread] = old[thread]
            new = value if change == "exch" else scalar.BINARY[change](old, value)
            self.store(space, where, [new], one)
        self.put(to, before, mask)

    def _do_mul(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, left, right = instruction.operands
        a, b = self.value(left, kind), self.value(right, kind)
        if "wide" in parts:
            self.put(to, scalar.wide_product(a, b), mask)
        else:
            self.put(to, scalar.high_product(a, b) if "hi" in parts else a * b, mask)

    def _do_mad(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, left, right, added = instruction.operands
        a, b = self.value(left, kind), self.value(right, kind)
        if "wide" in parts:
            product = scalar.wide_product(a, b)
            self.put(to, product + self.value(added, f"{kind[0]}{8 * product.dtype.itemsize}"), mask)
        else:
            product = scalar.high_product(a, b) if "hi" in parts else a * b
            self.put(to, product + self.value(added, kind), mask)

    def _do_fma(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, *sources = instruction.operands
        self.put(to, scalar.fma(*(self.value(s, kind) for s in sources)), mask)

    def _do_shl(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, value, count = instruction.operands
        left = instruction.opcode[0] == "shl"
        self.put(to, scalar.shift(self.value(value, kind), self.value(count, "u32"), left), mask)

    _do_shr = _do_shl

    def _do_shf(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, low, high, count = instruction.operands
        both = self.value(high, "u32").astype(np.uint64) << np.uint64(32) | self.value(low, "u32").astype(
            np.uint64
        )
        by = self.value(count, "u32")
        by = (by & np.uint32(31) if "wrap" in parts else np.minimum(by, 32)).astype(np.uint64)
        shifted = both << by >> np.uint64(32) if "l" in parts else both >> by
        self.put(to, (shifted & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)

    def _do_bfe(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, value, position, length = instruction.operands
        at, count = self.value(position, "u32"), self.value(length, "u32")
        self.put(to, scalar.field_extract(self.value(value, kind), at, count), mask)

    def _do_bfi(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, field, into, position, length = instruction.operands
        bits = 8 * scalar.DTYPES[kind].itemsize
        at = self.value(position, "u32").astype(object) & 255
        count = self.value(length, "u32").astype(object) & 255
        hole = np.array(
            [
                ((1 << c) - 1) << a & ((1 << bits) - 1) if a < bits else 0
                for a, c in zip(at, count, strict=True)
            ],
            dtype=object,
        )
        new = (
            self.value(into, kind).astype(object) & ~hole
            | (self.value(field, kind).astype(object) << at) & hole
        )
        self.put(to, (new & ((1 << bits) - 1)).astype(scalar.DTYPES[kind]), mask)

    def _do_prmt(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, *sources = instruction.operands
        self.put(to, scalar.permute(*(self.value(s, "u32") for s in sources)), mask)

    def _do_lop3(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, *sources, table = instruction.operands
        self.put(to, scalar.logic3(*(self.value(s, "u32") for s in sources), int(table, 0)), mask)

    def _do_selp(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, yes, no, condition = instruction.operands
        self.put(to, np.where(self.predicate(condition), self.value(yes, kind), self.value(no, kind)), mask)

    def _do_setp(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, left, right, *more = instruction.operands
        result = scalar.COMPARISONS[parts[0]](self.value(left, kind), self.value(right, kind))
        names = to.split("|")
        for name, value in zip(names, (result, ~result), strict=False):
            if more:
                combine = next(p for p in parts if p in ("and", "or", "xor"))
                value = scalar.BINARY[combine](value, self.predicate(more[0]))
            self.put(name, value, mask)

    def _do_testp(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, source = instruction.operands
        value = self.value(source, kind)
        tests = {
            "finite": np.isfinite,
            "infinite": np.isinf,
            "notanumber": np.isnan,
            "number": lambda v: ~np.isnan(v),
        }
        self.put(to, tests[parts[0]](value), mask)

    # ---- copies

    def _do_cp(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        """Asynchronous copies: they happen when they are waited for, and until then their target is poison."""
        if "commit_group" in parts:
            self.committed[mask] += 1
        elif "wait_group" in parts:
            self._wait(mask, self.committed - int(instruction.operands[0], 0))
        elif "wait_all" in parts:
            self.committed[mask] += 1
            self._wait(mask, self.committed)
        elif "bulk" in parts:
            if parts[:4] != ("async", "bulk", "tensor", "2d"):
                raise PtxError(f"unknown instruction {'.'.join(instruction.opcode)}")
            self.hopper.load_tile(instruction, mask)
        else:
            to, source, size, *valid = instruction.operands
            count = self.value(valid[0], "u32") if valid else np.full(self.threads, int(size, 0), np.uint32)
            copy = Copy(
                mask.copy(),
                self.where(to),
                self.where(source),
                count.copy(),
                int(size, 0),
                self.committed.copy(),
            )
            self.store("shared", copy.to, [np.full(self.threads, 0xFF, np.uint8)] * copy.size, mask)
            if (copy.source[mask].astype(np.int64) % copy.size).any():
                raise PtxError("a copy from an address that is not aligned")
            self.copies.append(copy)

    def _wait(self, mask: Array, below: Array) -> None:
        """The copies of these threads in their groups before `below` happen now."""
        for copy in self.copies:
            ready = copy.who & mask & (copy.group < below)
            if ready.any():
                self._happen(copy, ready)
                copy.who &= ~ready
        self.copies = [copy for copy in self.copies if copy.who.any()]

    def _happen(self, copy: Copy, ready: Array) -> None:
        values = [np.zeros(self.threads, np.uint8) for _ in range(copy.size)]
        some = ready & (copy.valid > 0)
        if some.any():
            memory, index = self.space("global", copy.source, copy.size, some)
            found = memory[index]
            for k in range(copy.size):
                values[k][some] = np.where(k < copy.valid[some], found[:, k], 0)
        self.store("shared", copy.to, values, ready)

    # ---- warps

    def _warps(self, mask: Array) -> Array:
        """Which warps take part; a warp must come whole."""
        lanes = mask.reshape(-1, WARP)
        if (lanes.any(1) != lanes.all(1)).any():
            raise PtxError("a warp's instruction is executed by a part of its lanes")
        return lanes.any(1)

    def _of_warps(self, operand: str, warps: Array) -> Array:
        return self.value(operand, "b32").reshape(-1, WARP)[warps]

    def _to_warps(self, operand: str, value: Array, warps: Array, mask: Array) -> None:
        full = np.zeros((self.threads // WARP, WARP), value.dtype)
        full[warps] = value
        self.put(operand, full.reshape(-1), mask)

    def _do_shfl(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, source, by, clamp, *_ = instruction.operands
        warps = self._warps(mask)
        value, valid = matrix.shuffle(
            parts[1], *(self._of_warps(name, warps) for name in (source, by, clamp))
        )
        name, _, flag = to.partition("|")
        self._to_warps(name, value, warps, mask)
        if flag:
            self._to_warps(flag, valid, warps, mask)

    def _do_redux(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, source, _ = instruction.operands
        warps = self._warps(mask)
        values = self.value(source, kind).reshape(-1, WARP)[warps]
        combined = values[:, 0]
        for lane in range(1, WARP):
            combined = scalar.BINARY[parts[1]](combined, values[:, lane])
        self._to_warps(to, np.repeat(combined[:, None], WARP, 1), warps, mask)

    def _do_vote(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        to, source, *_ = instruction.operands
        warps = self._warps(mask)
        chosen = self.predicate(source).reshape(-1, WARP)[warps]
        if "ballot" in parts:
            bits = (chosen.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
            self._to_warps(to, np.repeat(bits[:, None], WARP, 1), warps, mask)
        else:
            value = chosen.any(1) if "any" in parts else chosen.all(1)
            self._to_warps(to, np.repeat(value[:, None], WARP, 1), warps, mask)

    def _do_activemask(
        self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array
    ) -> None:
        bits = (
            (mask.reshape(-1, WARP).astype(np.uint64) << np.arange(WARP, dtype=np.uint64))
            .sum(1)
            .astype(np.uint32)
        )
        self.put(instruction.operands[0], np.repeat(bits, WARP), mask)

    def _do_ldmatrix(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        warps = self._warps(mask)
        names = self.parts(instruction.operands[0])
        memory, index = self.space("shared", self.where(instruction.operands[1]), 16, mask)
        rows = np.zeros((self.threads, 16), np.uint8)
        rows[mask] = memory[index]
        found = matrix.ldmatrix(rows.reshape(-1, WARP, 16)[warps], len(names), "trans" in parts)
        for name, value in zip(names, found, strict=True):
            self._to_warps(name, value, warps, mask)

    def _do_mma(self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array) -> None:
        if "m16n8k32" not in parts or "s32" not in parts:
            raise PtxError(f"only byte products are known here, not {'.'.join(parts)}")
        kinds = [p for p in parts if p in ("s8", "u8")]
        warps = self._warps(mask)
        to, *sources = (self.parts(operand) for operand in instruction.operands)
        a, b, c = ([self._of_warps(name, warps) for name in names] for names in sources)
        result = matrix.mma_m16n8k32(a, b, c, (kinds[0], kinds[1]), "satfinite" in parts)
        for name, value in zip(to, result, strict=True):
            self._to_warps(name, value, warps, mask)
