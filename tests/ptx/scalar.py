"""Arithmetic of one thread's registers, on arrays with one element a thread. PTX ISA, chapter 'Instruction Set'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DTYPES = {
    **{
        f"{kind}{bits}": np.dtype(f"{letter}{bits // 8}")
        for kind, letter in (("s", "i"), ("u", "u"), ("b", "u"))
        for bits in (8, 16, 32, 64)
    },
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "f16": np.dtype("f2"),
}
ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c rounded once: the product's error is computed exactly (Dekker), so that nothing cancels unseen."""
    if a.dtype == np.float32:
        return (a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)).astype(
            np.float32
        )
    product = a * b
    split = 134217729.0  # 2^27 + 1
    high_a, high_b = a * split, b * split
    high_a, high_b = high_a - (high_a - a), high_b - (high_b - b)
    low_a, low_b = a - high_a, b - high_b
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    total = product + c
    virtual = total - product
    rest = (product - (total - virtual)) + (c - virtual)
    refined = total + (rest + error)
    return np.where(np.isfinite(error) & np.isfinite(refined), refined, total)


def divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    quotient = np.abs(a) // np.abs(safe) if a.dtype.kind == "i" else a // safe
    return (np.where((a < 0) != (safe < 0), -quotient, quotient) if a.dtype.kind == "i" else quotient).astype(
        a.dtype
    )


def remainder(a: Array, b: Array) -> Array:
    return (a - divide(a, b) * b).astype(a.dtype)


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product."""
    bits = 8 * a.dtype.itemsize
    if bits <= 32:
        wide = np.dtype(f"{a.dtype.kind}8")
        return ((a.astype(wide) * b.astype(wide)) >> bits).astype(a.dtype)
    return np.array([(int(x) * int(y)) >> 64 for x, y in zip(a, b, strict=True)], dtype=object).astype(
        a.dtype
    )


def wide_product(a: Array, b: Array) -> Array:
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(wide) * b.astype(wide)


def shift(a: Array, count: Array, left: bool) -> Array:
    """Counts beyond the width give 0, or the sign for a signed shift to the right (PTX clamps)."""
    bits = 8 * a.dtype.itemsize
    held = np.minimum(count.astype(np.int64), bits - 1).astype(a.dtype)
    out = np.left_shift(a, held) if left else np.right_shift(a, held)
    beyond = count.astype(np.int64) >= bits
    fill = np.zeros_like(a) if left or a.dtype.kind == "u" else np.right_shift(a, np.array(bits - 1, a.dtype))
    return np.where(beyond, fill, out)


def field_extract(a: Array, position: Array, length: Array) -> Array:
    """bfe: `length` bits from `position`, with the sign of the field's top bit where signed."""
    bits = 8 * a.dtype.itemsize
    position, length = position.astype(np.int64) & 255, length.astype(np.int64) & 255
    wide = a.astype(object) & ((1 << bits) - 1)
    out = []
    for value, at, count in zip(wide, position, length, strict=True):
        kept = min(count, max(0, bits - at))
        piece = (value >> int(at)) & ((1 << int(kept)) - 1) if kept else 0
        if a.dtype.kind == "i" and count:
            top = (value >> min(int(at + count) - 1, bits - 1)) & 1
            if top:
                piece |= ((1 << bits) - 1) & ~((1 << int(kept)) - 1)
        out.append(piece)
    return np.array(out, dtype=object).astype(f"u{bits // 8}").view(a.dtype)


def permute(a: Array, b: Array, selector: Array) -> Array:
    """prmt.b32: four bytes chosen of eight; the selector's top bit of each nibble repeats the byte's sign."""
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    out = np.zeros_like(a)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> (8 * (nibble & 7)).astype(np.uint64)) & np.uint64(255)
        byte = np.where(nibble & 8, np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0)), byte)
        out |= byte.astype(np.uint32) << np.uint32(8 * i)
    return out


def logic3(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit k of the table is the result for the bits (a, b, c) = k in binary."""
    out = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            out |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return out


def convert(value: Array, target: np.dtype[Any], parts: tuple[str, ...]) -> Array:
    """cvt: integers wrap, unless saturated; floats are rounded as asked and held within an integer's range."""
    if value.dtype.kind == "f" and target.kind in "iu":
        rounding = next((ROUNDINGS[p] for p in parts if p in ROUNDINGS), np.trunc)
        limits = np.iinfo(target)
        whole = rounding(value.astype(np.longdouble))
        held = np.clip(
            np.where(np.isnan(whole), 0, whole), np.longdouble(limits.min), np.longdouble(limits.max)
        )
        return held.astype(target)
    if value.dtype.kind == "f" and target.kind == "f":
        rounding_f = next((ROUNDINGS[p] for p in parts if p in ROUNDINGS), None)
        return (rounding_f(value) if rounding_f else value).astype(target)
    if "sat" in parts and target.kind in "iu":
        limits = np.iinfo(target)
        return np.array([min(max(int(v), limits.min), limits.max) for v in value], dtype=object).astype(
            target
        )
    return value.astype(target)


COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a != b) & ~_unordered(a, b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    "equ": lambda a, b: (a == b) | _unordered(a, b),
    "neu": lambda a, b: (a != b) | _unordered(a, b),
    "ltu": lambda a, b: (a < b) | _unordered(a, b),
    "leu": lambda a, b: (a <= b) | _unordered(a, b),
    "gtu": lambda a, b: (a > b) | _unordered(a, b),
    "geu": lambda a, b: (a >= b) | _unordered(a, b),
    "num": lambda a, b: ~_unordered(a, b),
    "nan": lambda a, b: _unordered(a, b),
}


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(len(a), bool)


UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
    "cnot": lambda a: (a == 0).astype(a.dtype),
    "sqrt": np.sqrt,
    "rsqrt": lambda a: (1 / np.sqrt(a)).astype(a.dtype),
    "rcp": lambda a: (1 / a).astype(a.dtype),
    "ex2": np.exp2,
    "lg2": np.log2,
    "popc": lambda a: np.array([int(v).bit_count() for v in a], np.uint32),
    "clz": lambda a: np.array([8 * a.dtype.itemsize - int(v).bit_length() for v in a], np.uint32),
    "brev": lambda a: np.array([int(f"{int(v):0{8 * a.dtype.itemsize}b}"[::-1], 2) for v in a], a.dtype),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "div": divide,
    "rem": remainder,
    "copysign": lambda a, b: np.copysign(b, a),
}
