"""Triton on every GPU that it knows; one file a kernel, `field.py` and `steps.py` say which serve an operator.

Nothing here imports Triton before the first call that needs it. With TRITON_INTERPRET=1 the same kernels run on CPU tensors,
in Triton's interpreter: that is how they are tested without a GPU, and only on request (`use_backend("triton")`).
"""

from __future__ import annotations

import importlib
import os
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import extras
from pfgm_fast.backends.triton import configs

STEPS = ("normalize_field", "drift", "euler_step", "euler_step_out", "heun_step")
FIELD = ("posterior_mean", "poisson_field", "score", "log_density", "second_moment", "field_step")
NETWORK = {"group_norm_silu": "group_norm", "group_norm_silu_backward": "group_norm_backward"}
"""Operator → its file."""


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


OLDEST_TRITON = (3, 6)
"""3.5 does not compile float products or the byte sums of dense rows."""


@cache
def unavailable() -> str | None:
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error}): {extras.command('triton')}"
    found = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
    if found < OLDEST_TRITON:
        return f"needs Triton 3.6 or later, this is {triton.__version__}: pip install 'triton>=3.6'"
    try:
        importlib.import_module("pfgm_fast.backends.triton.runtime")
    except ImportError as error:
        return f"its kernels cannot be imported: {error}"
    if not interpreted() and not torch.cuda.is_available():
        return (
            "no GPU is visible to PyTorch (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, for tests)"
        )
    return None


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    if interpreted():
        if x.device.type != "cpu":
            return f"TRITON_INTERPRET=1 serves CPU tensors, not {x.device.type}"
    elif x.device.type != "cuda":
        return f"serves CUDA tensors, not {x.device.type}"
    elif op in FIELD:
        reason = configs.refuses(torch.cuda.current_device() if x.device.index is None else x.device.index)
        if reason is not None:
            return reason
    if op in FIELD and x.dtype != torch.float32:
        return f"serves float32 queries, not {x.dtype}: convert them, or use cuda or reference"
    return None


def __getattr__(name: str) -> Any:
    if name in FIELD:
        return getattr(importlib.import_module("pfgm_fast.backends.triton.field_operators"), name)
    if name in STEPS:
        return getattr(importlib.import_module("pfgm_fast.backends.triton.steps"), name)
    if name in NETWORK:
        return getattr(importlib.import_module(f"pfgm_fast.backends.triton.{NETWORK[name]}"), name)
    raise AttributeError(name)
