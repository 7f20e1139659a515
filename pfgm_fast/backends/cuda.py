"""CUDA C++ (csrc/cuda): the functions of the contract are the operators of the namespace pfgm_fast_cuda."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pfgm_fast.backends.compiled import loading_error, operator


def unavailable() -> str | None:
    return loading_error("_C_cuda")


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    return None if x.device.type == "cuda" else f"serves CUDA tensors, not {x.device.type}"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return operator("pfgm_fast_cuda", name)
