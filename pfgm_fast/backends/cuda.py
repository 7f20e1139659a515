"""CUDA C++ (csrc/cuda): the functions of the contract are the operators of the namespace pfgm_fast_cuda."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends.compiled import lacks, loading_error, operator
from pfgm_fast.ops.schema import NETWORK_OPERATORS

OLDEST = (8, 0)
"""Compute capability that the kernels need (asynchronous copies, integer matrix instructions): Ampere."""


def unavailable() -> str | None:
    missing = loading_error("_C_cuda") or lacks("pfgm_fast_cuda", "poisson_field", "CUDA")
    if missing is None and not torch.cuda.is_available():
        return "built, but PyTorch sees no CUDA device here"
    return missing


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    if x.device.type != "cuda":
        return f"serves CUDA tensors, not {x.device.type}"
    if op in NETWORK_OPERATORS:
        return "has no kernel for networks: they are Triton's"
    capability = torch.cuda.get_device_capability(x.device)
    if capability < OLDEST:
        return f"needs compute capability 8.0 or later, {x.device} has {capability[0]}.{capability[1]}"
    return lacks("pfgm_fast_cuda", op, "CUDA")


def build_info() -> dict[str, str] | None:
    """`nvcc`, `architectures` and `hopper` ("yes" or "no": whether Hopper's own path is in) of the library that is loaded, or
    None."""
    if loading_error("_C_cuda") is not None:
        return None
    library = importlib.import_module("pfgm_fast._C_cuda")
    return {"nvcc": library.nvcc, "architectures": library.architectures, "hopper": library.hopper}


def hopper_path(device: torch.device | str = "cuda") -> bool:
    """Whether Hopper's own path is taken on this device unless PFGM_FAST_CUDA_HOPPER=0: it is built in, and it is such a GPU."""
    built = build_info()
    return (
        built is not None and built["hopper"] == "yes" and torch.cuda.get_device_capability(device) == (9, 0)
    )


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return operator("pfgm_fast_cuda", name)
