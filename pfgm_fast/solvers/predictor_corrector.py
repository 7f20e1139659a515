"""Predictor–corrector (Song et al. 2021, arXiv 2011.13456, algorithms 1, 4 and 5): two evaluations a step."""

from __future__ import annotations

import math

from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.flows import Flow, Noise, OnStep, StochasticFlow
from pfgm_fast.solvers import reverse_diffusion
from pfgm_fast.solvers.stochastic import walk


def solve(
    flow: Flow,
    x: Tensor,
    times: list[float],
    on_step: OnStep,
    noise: Noise | None = None,
    snr: float = 0.16,
) -> Tensor:
    """Langevin's corrector at t (algorithms 4 and 5), then reverse diffusion to t': two evaluations a step.

    snr > 0: the corrector's step is 2 A (snr ‖ε‖/‖score‖)², A = 1 for VE, α for VP. For the two norms, which the paper averages over
    the batch, stand their expected values √N and √N/s(t), so that a sample does not depend on its neighbours in the batch.
    """
    checks.positive("snr", snr)

    def correct(flow: StochasticFlow, x: Tensor, t: float, t_next: float, noise: Noise) -> Tensor:
        score = flow.score(x, flow.evaluate(x, t), t)
        step = 2 * flow.transition(t, t_next)[0] ** 2 * (snr * flow.marginal_prob(t)[1]) ** 2
        return x + step * score + math.sqrt(2 * step) * noise(x)

    return walk(flow, x, times, on_step, noise, reverse_diffusion.step, correct)
