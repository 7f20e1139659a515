"""Ancestral sampling (Ho et al. 2020, arXiv 2006.11239; for VE, Song et al. 2021, arXiv 2011.13456, appendix F): one evaluation a step."""

from __future__ import annotations

import math

from torch import Tensor

from pfgm_fast.flows import Flow, Noise, OnStep, StochasticFlow
from pfgm_fast.solvers.stochastic import walk


def step(flow: StochasticFlow, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float]:
    """The Gaussian q(x' | x, y = denoised), of the path's own marginals."""
    scale, deviation = flow.marginal_prob(t)
    scale_next, deviation_next = flow.marginal_prob(t_next)
    forward = scale / scale_next
    variance = deviation**2 - (forward * deviation_next) ** 2
    clean = flow.denoised(x, flow.evaluate(x, t), t)
    mean = forward * (deviation_next / deviation) ** 2 * x + scale_next * variance / deviation**2 * clean
    return mean, deviation_next / deviation * math.sqrt(variance)


def solve(flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None) -> Tensor:
    """x' drawn from q(x' | x, y) with the denoised image for y: one evaluation a step.

    For VE that is appendix F of arXiv 2011.13456; for VP it is DDPM's with the posterior's variance β̃ (eq. 7), taken from the
    marginals, so any grid will do.
    """
    return walk(flow, x, times, on_step, noise, step)
