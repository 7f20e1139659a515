"""Solvers of the reverse SDE (Song et al. 2021, arXiv 2011.13456): Euler–Maruyama, reverse diffusion, predictor–corrector, and
ancestral sampling (Ho et al. 2020, arXiv 2006.11239).

Where the last of the times is 0, the last step is the denoising step, one evaluation more; else the last step adds no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import Flow, Noise, OnStep, StochasticFlow, is_stochastic, onto_data

Step = Callable[[StochasticFlow, Tensor, float, float], tuple[Tensor, float]]
"""(flow, x, t, t') → mean (B, *shape) and standard deviation at t'."""


def _walk(
    flow: Flow,
    x: Tensor,
    times: list[float],
    on_step: OnStep,
    noise: Noise | None,
    step: Step,
    correct: Callable[[StochasticFlow, Tensor, float, float, Noise], Tensor] | None = None,
) -> Tensor:
    if not is_stochastic(flow):
        raise ArgumentError(
            "this solver needs a stochastic method (ve, vp, subvp, edm; pfgmpp with aug_dim=inf); PFGM's flow is an ODE"
        )
    if noise is None or times[-1] > times[0]:
        raise ArgumentError("a stochastic solver samples; latents and likelihoods need the solver of an ODE")
    for t, t_next in pairwise(times):
        if onto_data(t, t_next):
            x = flow.denoised(x, flow.evaluate(x, t), t)
        else:
            if correct is not None:
                x = correct(flow, x, t, t_next, noise)
            x, deviation = step(flow, x, t, t_next)
            if t_next != times[-1]:
                x = x + deviation * noise(x)
        x = on_step(x, t_next)
    return x


def _euler_maruyama(flow: StochasticFlow, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float]:
    linear, square = flow.coefficients(t)
    score = flow.score(x, flow.evaluate(x, t), t)
    return x + (t_next - t) * (linear * x - square * score), math.sqrt(square * (t - t_next))


def _reverse_diffusion(flow: StochasticFlow, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float]:
    scale, square = flow.transition(t, t_next)
    return (2 - scale) * x + square * flow.score(x, flow.evaluate(x, t), t), math.sqrt(square)


def _ancestral(flow: StochasticFlow, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float]:
    """The Gaussian q(x' | x, y = denoised), of the path's own marginals."""
    scale, deviation = flow.marginal_prob(t)
    scale_next, deviation_next = flow.marginal_prob(t_next)
    forward = scale / scale_next
    variance = deviation**2 - (forward * deviation_next) ** 2
    clean = flow.denoised(x, flow.evaluate(x, t), t)
    mean = forward * (deviation_next / deviation) ** 2 * x + scale_next * variance / deviation**2 * clean
    return mean, deviation_next / deviation * math.sqrt(variance)


def euler_maruyama(
    flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None
) -> Tensor:
    """x ← x − h (f x − g² score) + g √h ε: one evaluation a step."""
    return _walk(flow, x, times, on_step, noise, _euler_maruyama)


def reverse_diffusion(
    flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None
) -> Tensor:
    """The reverse of the forward chain's own discretisation (appendix E), x ← (2 − A) x + G² score + G ε: one evaluation a step."""
    return _walk(flow, x, times, on_step, noise, _reverse_diffusion)


def ancestral(
    flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None
) -> Tensor:
    """x' drawn from q(x' | x, y) with the denoised image for y: one evaluation a step.

    For VE that is appendix F of arXiv 2011.13456; for VP it is DDPM's with the posterior's variance β̃ (eq. 7), taken from the
    marginals, so any grid will do.
    """
    return _walk(flow, x, times, on_step, noise, _ancestral)


def predictor_corrector(
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

    return _walk(flow, x, times, on_step, noise, _reverse_diffusion, correct)
