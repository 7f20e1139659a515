"""Heun's method: the improved Euler of PFGM (arXiv 2209.11178, appendix B.4) and algorithms 1 and 2 of Karras et al. 2022 (EDM,
arXiv 2206.00364). Two evaluations a step, one in the last step onto the data."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from pfgm_fast.flows import Flow, Noise, OnStep, onto_data
from pfgm_fast.solvers.churn import Churn


def solve(
    flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None, **churn: float
) -> Tensor:
    """x (B, *shape) at times[-1], from x at times[0]; times fall from the prior to the data (0: with the denoising step), or rise
    back. churn: S_churn, S_min, S_max, S_noise, see `churn.Churn`; S_churn > 0 is EDM's stochastic sampler, algorithm 2."""
    stir = Churn(times, noise, **churn)
    to_data = times[-1] < times[0]
    for t, t_next in pairwise(times):
        x, t = stir(flow, x, t)
        value = flow.evaluate(x, t)
        if onto_data(t, t_next):
            x = flow.denoised(x, value, t)
        else:
            predicted = flow.euler(x, value, t, t_next)
            if to_data and t_next == times[-1]:  # at the data the field is steep: the correction does not pay
                x = predicted
            else:
                x = flow.heun(x, value, flow.evaluate(predicted, t_next), t, t_next)
        x = on_step(x, t_next)
    return x
