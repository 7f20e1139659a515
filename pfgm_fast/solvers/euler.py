"""Euler's method on the flow's grid: one evaluation a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from pfgm_fast.methods.base import Flow

OnStep = Callable[[Tensor, float], None]
"""Called with x and t after each step."""


def solve(flow: Flow, x: Tensor, times: list[float], on_step: OnStep) -> Tensor:
    """x (B, *shape) at times[-1], from x at times[0]; times fall from the prior to the data, or rise back."""
    for t, t_next in pairwise(times):
        x = flow.euler(x, flow.evaluate(x, t), t, t_next)
        on_step(x, t_next)
    return x
