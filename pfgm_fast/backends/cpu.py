"""C++ on the CPU (csrc/cpu): the functions of the contract are the operators of the namespace pfgm_fast_cpu."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pfgm_fast.backends.compiled import lacks, loading_error, operator


def unavailable() -> str | None:
    return loading_error("_C") or lacks("pfgm_fast_cpu", "poisson_field", "CPU")


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    if x.device.type != "cpu":
        return f"serves CPU tensors, not {x.device.type}"
    return lacks("pfgm_fast_cpu", op, "CPU")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return operator("pfgm_fast_cpu", name)
