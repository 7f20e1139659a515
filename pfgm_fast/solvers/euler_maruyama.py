"""Euler–Maruyama on the reverse SDE (Song et al. 2021, arXiv 2011.13456, eq. 6): one evaluation a step."""

from __future__ import annotations

import math

from torch import Tensor

from pfgm_fast.flows import Flow, Noise, OnStep, StochasticFlow
from pfgm_fast.solvers.stochastic import walk


def step(flow: StochasticFlow, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float]:
    linear, square = flow.coefficients(t)
    score = flow.score(x, flow.evaluate(x, t), t)
    return x + (t_next - t) * (linear * x - square * score), math.sqrt(square * (t - t_next))


def solve(flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None) -> Tensor:
    """x ← x − h (f x − g² score) + g √h ε: one evaluation a step."""
    return walk(flow, x, times, on_step, noise, step)
