"""Euler's method on the flow's grid: one evaluation a step; with churn, its stochastic variant."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from pfgm_fast.flows import Flow, Noise, OnStep, onto_data
from pfgm_fast.solvers.churn import Churn


def solve(
    flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None, **churn: float
) -> Tensor:
    """x (B, *shape) at times[-1], from x at times[0]; times fall from the prior to the data (0: with the denoising step), or rise
    back. churn: S_churn, S_min, S_max, S_noise, see `churn.Churn`."""
    stir = Churn(times, noise, **churn)
    for t, t_next in pairwise(times):
        x, t = stir(flow, x, t)
        value = flow.evaluate(x, t)
        x = flow.denoised(x, value, t) if onto_data(t, t_next) else flow.euler(x, value, t, t_next)
        x = on_step(x, t_next)
    return x
