"""What each instruction does to a block of threads. PTX ISA, chapter 'Instruction Set'; machine.py has the block itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.ptx import matrix, scalar
from tests.ptx.common import LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, WARP, Array, PtxError
from tests.ptx.hopper import Hopper
from tests.ptx.program import Instruction, Kernel


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


class Instructions:
    """The instructions by name, `_do_NAME`; the block (machine.Block) has the registers, their values and the memory."""

    kernel: Kernel
    threads: int
    registers: dict[str, Array]
    parameters: Array
    copies: list[Copy]
    committed: Array
    hopper: Hopper

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
        elif operation in ("membar", "fence", "griddepcontrol", "prefetch", "nanosleep", "setmaxnreg"):
            pass
        else:
            raise PtxError(f"unknown instruction {'.'.join(instruction.opcode)}")
        return None

    def _do_setmaxnreg(
        self, instruction: Instruction, parts: tuple[str, ...], kind: str, mask: Array
    ) -> None:
        groups = mask.reshape(-1, 4 * WARP)
        if (groups.any(1) != groups.all(1)).any():
            raise PtxError("a warpgroup's registers are shared out by a part of its threads")

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
