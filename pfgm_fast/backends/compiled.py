"""What the two compiled backends share: loading their library once, on first use, and saying why it cannot be."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from pfgm_fast.ops.schema import FIELD_OPERATORS

BACKENDS = {"_C": "cpu", "_C_cuda": "cuda"}
"""Library → backend."""

NEEDS = {"cpu": "a C++ compiler", "cuda": "nvcc and a CUDA build of PyTorch"}


@cache
def build_outcome() -> dict[str, dict[str, str]]:
    """Backend → `state` ("built", "not built", "failed") and `reason`, as setup.py wrote them into the package; {} of a source tree
    that was never built."""
    try:
        return json.loads((Path(__file__).resolve().parent.parent / "_build.json").read_text())
    except (OSError, ValueError):
        return {}


def not_built(backend: str) -> str:
    """Why the library of "cpu" or "cuda" is not there: in the build's own words."""
    outcome = build_outcome().get(backend)
    if outcome is None:
        return f"no build of it is recorded in this copy; building needs {NEEDS[backend]}"
    failed = "its build failed: " if outcome["state"] == "failed" else ""
    return f"{failed}{outcome['reason']}"


@cache
def loading_error(library: str) -> str | None:
    """None where `pfgm_fast.<library>` loads (its operators are then registered), else the reason why not."""
    try:
        importlib.import_module(f"pfgm_fast.{library}")
    except ModuleNotFoundError:
        reason = f"pfgm_fast.{library} was not built ({not_built(BACKENDS[library])})"
        here, other = Path(__file__).resolve().parent.parent, _copy_with(library)
        if other is None:
            return reason
        return (
            f"{reason}: this is the copy in {here}, and it hides the one in {other}, which has the library. Start Python in "
            "another folder to use that one, or build this one: pip install -e ."
        )
    except (ImportError, OSError) as error:
        return f"pfgm_fast.{library} does not load: {error}"
    return None


def _copy_with(library: str) -> Path | None:
    """Another pfgm_fast on Python's path that has the library: an installed one behind a clone that was not built."""
    here = Path(__file__).resolve().parent.parent
    for folder in sys.path:
        package = (Path(folder or ".") / here.name).resolve()
        if package != here and any((package / (library + ending)).is_file() for ending in EXTENSION_SUFFIXES):
            return package
    return None


@cache
def warn_once(backend: str, instead: str) -> None:
    """One warning where `auto` takes `instead` because `backend` should be there and is not: its build failed, or the C++ backend,
    which every machine with a compiler has, is absent. Nothing is said of what the user left out (PFGM_FAST_CPU=0)."""
    outcome = build_outcome().get(backend, {"state": "absent", "reason": ""})
    asked = outcome["reason"].startswith("PFGM_FAST_")
    if outcome["state"] == "failed" or (backend == "cpu" and not asked):
        warnings.warn(
            f"pfgm_fast: the {backend} backend is not there ({not_built(backend)}); {instead} serves instead, more slowly. "
            "`pfgm-fast info` says more.",
            RuntimeWarning,
            stacklevel=2,
        )


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
