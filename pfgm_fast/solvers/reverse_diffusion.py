"""Reverse diffusion (Song et al. 2021, arXiv 2011.13456, appendix E): the reverse of the forward chain's own discretisation, one
evaluation a step."""

from __future__ import annotations

import math

from torch import Tensor

from pfgm_fast.flows import Flow, Noise, OnStep, StochasticFlow
from pfgm_fast.solvers.stochastic import walk


def step(flow: StochasticFlow, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float]:
    scale, square = flow.transition(t, t_next)
    return (2 - scale) * x + square * flow.score(x, flow.evaluate(x, t), t), math.sqrt(square)


def solve(flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None) -> Tensor:
    """The reverse of the forward chain's own discretisation (appendix E), x ← (2 − A) x + G² score + G ε: one evaluation a step."""
    return walk(flow, x, times, on_step, noise, step)
