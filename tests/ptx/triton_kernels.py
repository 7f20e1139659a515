"""Triton's compiled kernels of this package, executed by the machine."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

import numpy as np

from tests.ptx.machine import launch
from tests.ptx.program import parse
from tests.triton_aot import compilations, compiled

_FORMAT = {"i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}


def run(name: str, blocks: int, arguments: dict[str, Any], arch: str = "sm_80") -> Counter[str]:
    """Launch the compilation `name` of a kernel (see `ahead_of_time` in its file); arrays are written in place. Returns what was
    executed, by opcode."""
    chosen = next(c for c in compilations(arch) if c.name == name and _serves(c, arguments))
    result = compiled(chosen, arch)
    (kernel,) = parse(result.asm["ptx"]).values()
    kinds = [(n, k) for n in chosen.kernel.arg_names if (k := chosen.signature[n]) != "constexpr"]
    parameters = bytearray(max(at + size for at, size in kernel.parameters.values()))
    places = list(kernel.parameters.values())[
        : len(kinds)
    ]  # behind them: Triton's own scratch memory, none here
    for (argument, kind), (at, size) in zip(kinds, places, strict=True):
        value = arguments[argument]
        if kind.startswith("*"):
            raw = struct.pack("<Q", value.ctypes.data)
            assert value.flags.c_contiguous and value.ctypes.data % 16 == 0, argument
        else:
            raw = struct.pack(f"<{_FORMAT[kind]}", value)
        assert len(raw) == size, (argument, kind, size)
        parameters[at : at + size] = raw
    counts: Counter[str] = Counter()
    launch(kernel, blocks, 32 * chosen.num_warps, result.metadata.shared, bytes(parameters), counts)
    return counts


def _serves(compilation: Any, arguments: dict[str, Any]) -> bool:
    """Whether the numbers that the compilation takes as divisible by 16 are."""
    numbers = [arguments[name] for name in compilation.divisible if isinstance(arguments.get(name), int)]
    return all(number % 16 == 0 for number in numbers)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address divisible by 128, as PyTorch's allocator on a GPU gives."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    begin = -raw.ctypes.data % 128
    out = raw[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out
