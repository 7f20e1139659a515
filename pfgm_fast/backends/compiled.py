"""What the two compiled backends share: loading their library once, on first use, and saying why it cannot be."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch

from pfgm_fast.ops.schema import FIELD_OPERATORS

NEEDS = {"_C": "a C++ compiler", "_C_cuda": "nvcc and a CUDA build of PyTorch"}


@cache
def loading_error(library: str) -> str | None:
    """None where `pfgm_fast.<library>` loads (its operators are then registered), else the reason why not."""
    try:
        importlib.import_module(f"pfgm_fast.{library}")
    except ModuleNotFoundError:
        return f"pfgm_fast.{library} was not built (see `pfgm-fast info`; building needs {NEEDS[library]})"
    except (ImportError, OSError) as error:
        return f"pfgm_fast.{library} does not load: {error}"
    return None


@cache
def lacks(namespace: str, function: str, device: str) -> str | None:
    """None where the loaded library supplies this function's kernel, else the reason: an older build, or a part of one."""
    qualified = f"{namespace}::{function.removesuffix('_out')}" + (
        ".out" if function.endswith("_out") else ""
    )
    if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, device):
        return None
    return f"the library that was built has no kernel {qualified}: build the package again"


@cache
def operator(namespace: str, function: str) -> Any:
    """The backend function of an operator: `euler_step_out` is the overload `euler_step.out`; a field operator's takes a Query."""
    packets = getattr(torch.ops, namespace)
    if function.endswith("_out"):
        return getattr(packets, function.removesuffix("_out")).out
    compiled = getattr(packets, function).default
    if function in FIELD_OPERATORS:
        return lambda query, *more: compiled(*query, *more)
    return compiled
