"""Triton on every GPU that it knows; one file a kernel. No kernel stands here yet, and this module says so."""

from __future__ import annotations

from torch import Tensor


def unavailable() -> str | None:
    return "this version has no Triton kernels yet"


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    return unavailable()
