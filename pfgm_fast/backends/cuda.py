"""CUDA C++ (csrc/cuda): the functions of the contract are the operators of the namespace pfgm_fast_cuda."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pfgm_fast.backends.compiled import lacks, loading_error, operator


def unavailable() -> str | None:
    return loading_error("_C_cuda") or lacks("pfgm_fast_cuda", "poisson_field", "CUDA")


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    if x.device.type != "cuda":
        return f"serves CUDA tensors, not {x.device.type}"
    return lacks("pfgm_fast_cuda", op, "CUDA")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return operator("pfgm_fast_cuda", name)
