"""The operators in PyTorch's dispatcher, in three namespaces. Importing this registers them.

`pfgm_fast`       what the package calls: fake kernels, autograd (`ops.autograd`) and one Python kernel that asks the
                  backend table (`ops.dispatch`) at run time, so `use_backend` works inside compiled code too.
`pfgm_fast_cpu`   kernels supplied by the C++ library `_C` (csrc/cpu).
`pfgm_fast_cuda`  kernels supplied by the C++ library `_C_cuda` (csrc/cuda).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfgm_fast.ops import autograd, dispatch
from pfgm_fast.ops.schema import NETWORK_OPERATORS, SCHEMAS


def _fake_rows(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0],))


def _fake_lse(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0],), dtype=torch.float64)


_FAKES: dict[str, Any] = {
    "posterior_mean": lambda x, *_: (torch.empty_like(x), _fake_lse(x)),
    "poisson_field": lambda x, *_: (torch.empty_like(x), _fake_lse(x)),
    "score": lambda x, *_: (
        torch.empty_like(x),
        torch.empty_like(x),
        _fake_rows(x),
        _fake_rows(x),
        _fake_lse(x),
    ),
    "log_density": lambda x, *_: _fake_lse(x),
    "second_moment": lambda x, *_: (torch.empty_like(x), _fake_rows(x)),
    "gaussian_moments": lambda x, *_: (torch.empty_like(x), _fake_rows(x)),
    "field_step": lambda x, *_: torch.empty_like(x),
    "normalize_field": lambda field, r, gamma: (torch.empty_like(field), _fake_rows(field)),
    # The network's output may be bfloat16 or channels-last; the drift is in z's dtype, as x is.
    "drift": lambda vx, vz, z, *_: vx.new_empty(vx.shape, dtype=z.dtype),
    "euler_step": lambda x, *_: torch.empty_like(x),
    "euler_step.out": lambda x, *_, out: None,
    "heun_step": lambda x, *_: torch.empty_like(x),
    "group_norm_silu": lambda x, weight, bias, groups, *_: (
        torch.empty_like(x),
        weight.new_empty((x.shape[0], groups)),
        weight.new_empty((x.shape[0], groups)),
    ),
    "group_norm_silu_backward": lambda dy, x, weight, *_: (
        torch.empty_like(x),
        weight.new_empty((x.shape[0], 3, x.shape[1])),
    ),
}


def _define(namespace: str) -> torch.library.Library:
    library = torch.library.Library(namespace, "DEF")
    for op, signature in SCHEMAS.items():
        layout = (
            torch.Tag.needs_exact_strides if op in NETWORK_OPERATORS else torch.Tag.needs_contiguous_strides
        )
        library.define(op + signature, tags=(torch.Tag.pt2_compliant_tag, layout))
    return library


LIBRARY = _define("pfgm_fast")
CPU_LIBRARY = _define("pfgm_fast_cpu")
CUDA_LIBRARY = _define("pfgm_fast_cuda")


KEYS = ("CPU", "CUDA", "MPS", "XPU", "HPU", "MTIA", "PrivateUse1")
"""Devices whose calls reach the backend table, which says why where nothing serves one."""


def register() -> None:
    """Give the front operators their fake kernels, their Python kernels and their derivatives. Called once, at import."""
    for op, fake in _FAKES.items():
        torch.library.register_fake(f"pfgm_fast::{op}", fake, lib=LIBRARY)
        kernel = dispatch.kernel(op)
        for key in KEYS:
            LIBRARY.impl(op, kernel, key)
    autograd.register(LIBRARY)
    for library in (
        LIBRARY,
        CPU_LIBRARY,
        CUDA_LIBRARY,
    ):  # the kernel itself sees to autograd's rules of `out`
        library.impl("euler_step.out", torch.library.fallthrough_kernel, "Autograd")


register()
