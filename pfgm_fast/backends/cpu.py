"""C++ on the CPU (csrc/cpu): the functions of the contract are the operators of the namespace pfgm_fast_cpu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends.compiled import lacks, loading_error, operator
from pfgm_fast.ops.schema import NETWORK_OPERATORS


def unavailable() -> str | None:
    return loading_error("_C") or lacks("pfgm_fast_cpu", "poisson_field", "CPU")


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    if x.device.type != "cpu":
        return f"serves CPU tensors, not {x.device.type}"
    if op in NETWORK_OPERATORS and x.dtype not in (torch.float32, torch.bfloat16):
        return f"serves float32 and bfloat16, not {x.dtype}"
    return lacks("pfgm_fast_cpu", op, "CPU")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return operator("pfgm_fast_cpu", name)
