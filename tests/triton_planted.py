"""A kernel with every fault that tests/test_triton_compile.py looks for, so that the test knows its checks can fail."""

from __future__ import annotations

from pfgm_fast.backends.triton.runtime import Compilation, jit, tl


@jit
def planted_kernel(a, out, stride):
    """32-bit products in its addresses, a product in half precision, and far more numbers at hand than registers."""
    column = tl.arange(0, 64)[None, :]
    at = tl.program_id(0) * stride + tl.arange(0, 128)[:, None] * 64 + column
    small = tl.load(a + tl.arange(0, 64)[:, None] * 64 + column)
    tl.store(out + at, tl.dot(tl.load(a + at), small) + tl.load(out + at))


def planted() -> Compilation:
    signature = {"a": "*fp16", "out": "*fp32", "stride": "i32"}
    return Compilation("planted", planted_kernel, signature, {}, 1, 1, False)
