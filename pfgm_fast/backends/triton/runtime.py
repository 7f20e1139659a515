"""The one place that imports Triton, and what every kernel file takes from it.

Only kernel files import this module, and `__init__` imports those on first use: so `import pfgm_fast` needs no Triton.
`TRITON_INTERPRET=1` is read here, once, when the kernels are decorated: then they run on CPU tensors in Triton's
interpreter, which is how they are tested without a GPU. Compiling and interpreting need separate processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FP_FUSION = True
"""Multiplications may be contracted with additions: said at each launch, because Triton's own default changes. What must not be
contracted (the value of a byte) divides, which no contraction touches."""

INTERPRET: bool = bool(triton.knobs.runtime.interpret)
"""True where kernels were decorated for the interpreter."""

INTERPRETED = tl.constexpr(INTERPRET)
"""The same, for use inside kernels."""

jit = triton.jit


def cdiv(a: int, b: int) -> int:
    """⌈a/b⌉. (`triton.cdiv` is for kernels: on the host it takes microseconds.)"""
    return -(-a // b)


@dataclass(frozen=True)
class Compilation:
    """One kernel in one configuration, as ahead-of-time compilation needs it (tests/test_triton_compile.py).

    Each kernel file has `ahead_of_time(arch) -> list[Compilation]` that covers every configuration of `configs` for
    arch: "sm_80", "sm_90", "sm_100" or "gfx942".
    """

    name: str
    kernel: Any  # what `jit` returned
    signature: dict[str, str]  # argument → "*fp32", "*u8", "i64", "fp32", ...; of constexprs: "constexpr"
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int
    tensor_cores: bool  # a product is meant to use them: the compiled code must hold such an instruction
    divisible: tuple[str, ...] = ()  # arguments that are multiples of 16 (pointers: of 16 bytes)
    max_registers: int | None = None  # of a thread: the launch option maxnreg of NVIDIA's compiler


def device_guard(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on x's device and its current stream. Triton takes the current device, whatever the tensors' is."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


@jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a·b. int8 operands sum in int32; float16 and float32 in float32 (PRECISION counts for float32 only).

    In the interpreter the operands are widened first: the products of float16 are exact in float32, so the same is computed.
    """
    if INTERPRETED and a.dtype == tl.float16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee", out_dtype=tl.float32)
    elif a.dtype == tl.int8:
        return tl.dot(a, b, acc, out_dtype=tl.int32)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=tl.float32)


_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


TUNE_ENVIRONMENT = "PFGM_FAST_TRITON_TUNE"


@dataclass(frozen=True)
class Choice:
    """A configuration among which tuning chooses."""

    constexprs: tuple[tuple[str, int], ...]
    warps: int
    stages: int


@cache
def _tuned(kernel: Any, choices: tuple[Choice, ...]) -> Any:
    """The kernel with Triton's own tuning: every choice is timed once for a shape, the result is kept on disk."""
    listed = [
        triton.Config(dict(c.constexprs), num_warps=c.warps, num_stages=c.stages) for c in choices
    ]  # fmt: skip
    return triton.autotune(listed, key=["B", "M", "N"], cache_results=True)(kernel)


def specialized(value: Any) -> Any:
    """What Triton compiles a run-time argument by, or more: a pointer's type and alignment; whether a whole number is 1,
    divisible by 16, and in 32 or 64 bits."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if type(value) is int:
        return value == 1, value % 16 == 0, -(2**31) <= value < 2**31, value < 2**63
    return type(value)


_compiled: dict[tuple[Any, ...], Any] = {}
"""What launches were compiled to, by all that they are compiled by."""


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments by name, and one configuration; `run` launches it, `compilation` says how it is compiled."""

    name: str
    kernel: Any
    grid: Callable[[dict[str, Any]], int]  # of the constexprs
    arguments: dict[str, Any]  # tensors, numbers, None where a kernel does without
    constexprs: dict[str, Any]
    warps: int
    stages: int
    tensor_cores: bool = False
    max_registers: int | None = None  # see Compilation
    choices: tuple[Choice, ...] = ()  # what tuning measures; constexprs of the same names give way

    def compilation(self) -> Compilation:
        """As Triton specialises a launch with these arguments: None and 1 are constants, multiples of 16 are known; what the
        kernel declares (`dim: tl.int64`, do_not_specialize) comes first."""
        signature, constants, divisible = {}, dict(self.constexprs), []
        parameters = {parameter.name: parameter for parameter in self.kernel.params}
        for name, value in self.arguments.items():
            declared, fixed = parameters[name].annotation_type, parameters[name].do_not_specialize
            if isinstance(value, Tensor):
                signature[name] = _POINTERS[value.dtype]
                divisible.append(name)
            elif value is None or (isinstance(value, int) and value == 1 and not declared and not fixed):
                constants[name] = value
            elif isinstance(value, int):
                signature[name] = declared or ("i32" if value < 2**31 else "i64")
                divisible += [name] if value % 16 == 0 and not fixed else []
            else:
                signature[name] = declared or "fp32"
        signature |= dict.fromkeys(constants, "constexpr")
        return Compilation(
            self.name, self.kernel, signature, constants, self.warps, self.stages, self.tensor_cores, tuple(divisible),
            self.max_registers,
        )  # fmt: skip

    def run(self) -> None:
        if _recorded is not None:
            _recorded.append(self.compilation())
            return
        if self.choices and not INTERPRET and os.environ.get(TUNE_ENVIRONMENT) == "1":
            fixed = {k: v for k, v in self.constexprs.items() if k not in dict(self.choices[0].constexprs)}
            _tuned(self.kernel, self.choices)[lambda meta: (self.grid(meta),)](
                **self.arguments, **fixed, enable_fp_fusion=FP_FUSION
            )
            return
        options: dict[str, Any] = {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": FP_FUSION,
        }
        if self.max_registers is not None and not torch.version.hip:
            options["maxnreg"] = self.max_registers
        grid = (self.grid(self.constexprs), 1, 1)
        if INTERPRET or torch.version.hip:  # AMD's compiler also asks how large a tensor's memory is
            self.kernel[grid](**self.arguments, **self.constexprs, **options)
        else:
            self.run_compiled(grid, options, torch.cuda.current_device())

    def run_compiled(self, grid: tuple[int, int, int], options: dict[str, Any], device: int) -> None:
        """The first launch of its kind goes through Triton, which compiles; further ones go straight to what that gave, as
        Triton's tutorial on fused softmax launches a compiled kernel: its own dispatch takes several times as long."""
        values = {**self.arguments, **self.constexprs}
        key = (
            id(self.kernel), device, *options.values(), *self.constexprs.items(),
            *((name, specialized(value)) for name, value in self.arguments.items()),
        )  # fmt: skip
        compiled = _compiled.get(key)
        if compiled is None:
            _compiled[key] = self.kernel[grid](**values, **options)
        else:
            compiled[grid](*[values[name] for name in self.kernel.arg_names])


_recorded: list[Compilation] | None = None


@contextlib.contextmanager
def recorded() -> Iterator[list[Compilation]]:
    """Launches are not run but listed, so that what is compiled ahead of time is what would be launched."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None
