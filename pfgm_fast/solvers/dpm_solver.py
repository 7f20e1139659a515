"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): order 2 with one evaluation a step."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from pfgm_fast.flows import Flow, Noise, OnStep, onto_data


def solve(flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None) -> Tensor:
    """x (B, *shape) at times[-1], from x at times[0]; times fall from the prior to the data (0: with the denoising step), or rise
    back.

    In λ = log(a/s), h = λ' − λ and with D the denoised image, x' = (s'/s) x − a' (e^(−h) − 1) D̄: exact in the linear part of the
    ODE. D̄ extrapolates D to the middle of the step from the step before: D + (D − D_before) h/(2 h_before); the first step has none.
    """
    before: tuple[Tensor, float] | None = None
    for t, t_next in pairwise(times):
        value = flow.evaluate(x, t)
        clean = flow.denoised(x, value, t)
        if onto_data(t, t_next):
            x = on_step(clean, t_next)
            continue
        scale, deviation = flow.marginal_prob(t)
        scale_next, deviation_next = flow.marginal_prob(t_next)
        h = math.log(scale_next / deviation_next) - math.log(scale / deviation)
        middle = clean
        if before is not None:
            middle = clean + (clean - before[0]) * (h / (2 * before[1]))
        before = clean, h
        x = on_step(deviation_next / deviation * x - scale_next * math.expm1(-h) * middle, t_next)
    return x
