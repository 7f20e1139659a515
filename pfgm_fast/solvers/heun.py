"""Heun's method, the improved Euler of PFGM (arXiv 2209.11178, appendix B.4): two evaluations a step, one in the
last step onto the data."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from pfgm_fast.methods.base import Flow
from pfgm_fast.solvers.euler import OnStep


def solve(flow: Flow, x: Tensor, times: list[float], on_step: OnStep) -> Tensor:
    """x (B, *shape) at times[-1], from x at times[0]; times fall from the prior to the data, or rise back."""
    to_data = times[-1] < times[0]
    for t, t_next in pairwise(times):
        value = flow.evaluate(x, t)
        predicted = flow.euler(x, value, t, t_next)
        if (
            to_data and t_next == times[-1]
        ):  # at the data the field is steep, and the correction would cost and not pay
            x = predicted
        else:
            x = flow.heun(x, value, flow.evaluate(predicted, t_next), t, t_next)
        on_step(x, t_next)
    return x
