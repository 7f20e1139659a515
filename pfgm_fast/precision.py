"""In which precision networks are computed; and what a caller's settings of PyTorch must not change: the default dtype, autocast, and the
short products of TF32 and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["float32", "bfloat16", "auto"]
"""Of a network under autocast; auto: the quicker on a device (`quickest`)."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def quickest(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the device multiplies it by units of its own (a CPU's AMX or AVX512-BF16, a GPU's tensor cores), else float32;
    benchmarks/results/layouts.md has the measurement."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "float32"
    asks = (
        getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return "bfloat16" if any(ask is not None and ask() for ask in asks) else "float32"


def network_precision(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast as `precision` says, within; whatever the caller has set."""
    chosen = quickest(device) if precision == "auto" else precision
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bfloat16")


@contextmanager
def single() -> Iterator[None]:
    """PyTorch's default dtype is float32 within: where networks are made whose weights must not depend on it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def full() -> Iterator[None]:
    """Without gradients, autocast, TF32 or bfloat16 products, whatever the caller has set: where figures are measured."""
    before = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
        )
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
