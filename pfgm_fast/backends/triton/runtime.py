"""The one place that imports Triton, and what every kernel file takes from it.

Only kernel files import this module, and `__init__` imports those on first use: so `import pfgm_fast` needs no Triton.
`TRITON_INTERPRET=1` is read here, once, when the kernels are decorated: then they run on CPU tensors in Triton's
interpreter, which is how they are tested without a GPU. Compiling and interpreting need separate processes.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Multiplications may be contracted with additions: said here because Triton's own default is about to change. What must
# not be contracted (the value of a byte) divides, which no contraction touches.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
import triton.language as tl

INTERPRET: bool = bool(triton.knobs.runtime.interpret)
"""True where kernels were decorated for the interpreter."""

INTERPRETED = tl.constexpr(INTERPRET)
"""The same, for use inside kernels."""

jit = triton.jit
cdiv = triton.cdiv


@dataclass(frozen=True)
class Compilation:
    """One kernel in one configuration, as ahead-of-time compilation needs it (tests/test_triton_compile.py).

    Each kernel file has `ahead_of_time(arch) -> list[Compilation]` that covers every configuration of `configs` for
    arch: "sm_80", "sm_90", "sm_100" or "gfx942".
    """

    name: str
    kernel: Any  # what `jit` returned
    signature: dict[
        str, str
    ]  # argument → "*fp32", "*u8", "i64", "fp32", ...; constexpr arguments: "constexpr"
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int
    tensor_cores: bool  # a product is meant to use them: the compiled code must hold such an instruction
    divisible: tuple[str, ...] = field(
        default=()
    )  # arguments that are multiples of 16 (of 16 bytes: pointers)


def device_guard(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on x's device and its current stream. Triton takes the current device, whatever the tensors' is."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a·b. int8 operands sum in int32; bfloat16 and float32 in float32 (PRECISION counts for float32 only).

    The interpreter multiplies bfloat16 wrongly: there the operands are widened first, and the products of bfloat16 are
    exact in float32, so the same is computed.
    """
    if INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee", out_dtype=tl.float32)
    if a.dtype == tl.int8:
        return tl.dot(a, b, acc, out_dtype=tl.int32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=tl.float32)
