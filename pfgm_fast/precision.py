"""What a caller's settings of PyTorch must not change: the default dtype, autocast, and the short products of TF32 and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


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
