"""Triton's own int8 matrix product, compiled: a kernel whose fragment layouts real devices have proven."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def dot_kernel(a, b, c, depth, rows: tl.constexpr, columns: tl.constexpr, block: tl.constexpr):
    """c (rows, columns) int32 = a (rows, depth) b (columns, depth)ᵀ, int8; depth a multiple of block."""
    i = tl.arange(0, rows)
    j = tl.arange(0, columns)
    k = tl.arange(0, block)
    total = tl.zeros((rows, columns), dtype=tl.int32)
    for start in range(0, depth, block):
        left = tl.load(a + i[:, None] * depth + (start + k)[None, :])
        right = tl.load(b + j[None, :] * depth + (start + k)[:, None])
        total = tl.dot(left, right, total)
    tl.store(c + i[:, None] * columns + j[None, :], total)


def compiled(
    rows: int, columns: int, block: int, warps: int, stages: int, capability: int = 80
) -> tuple[str, int]:
    """PTX for a compute capability (10 × major + minor), and bytes of shared memory."""
    types = {
        "a": "*i8",
        "b": "*i8",
        "c": "*i32",
        "depth": "i32",
        "rows": "constexpr",
        "columns": "constexpr",
        "block": "constexpr",
    }
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(4)}
    source = ASTSource(dot_kernel, types, {(4,): rows, (5,): columns, (6,): block}, aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return kernel.asm["ptx"], kernel.metadata.shared
