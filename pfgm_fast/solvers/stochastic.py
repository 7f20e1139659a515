"""Solvers of the reverse SDE (Song et al. 2021, arXiv 2011.13456): Euler–Maruyama, reverse diffusion, predictor–corrector.

They need a flow of `methods.sde` (its `method` has the SDE's coefficients). The last step adds no noise: what is returned is the
mean, the 'denoising step' of that line of work.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.errors import ArgumentError
from pfgm_fast.solvers.euler import OnStep


def _sde(flow: Any) -> Any:
    method = getattr(flow, "method", None)
    if not hasattr(method, "discretized"):
        raise ArgumentError("this solver needs a stochastic method (ve, vp, subvp); PFGM's flow is an ODE")
    return method


def _noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)


def euler_maruyama(
    flow: Any, x: Tensor, times: list[float], on_step: OnStep, generator: torch.Generator | None = None
) -> Tensor:
    """x ← x − h (f x − g² score) + g √h ε: one evaluation a step."""
    method = _sde(flow)
    mean = x
    for t, t_next in pairwise(times):
        linear, square = method.coefficients(t)
        mean = x + (t_next - t) * (linear * x - square * flow.evaluate(x, t))
        x = mean + math.sqrt(square * (t - t_next)) * _noise(x, generator)
        on_step(mean, t_next)
    return mean


def _reverse_step(flow: Any, x: Tensor, t: float, t_next: float) -> tuple[Tensor, float]:
    """Mean and variance of appendix E: x ← (2 − A) x + G² score + G ε."""
    scale, square = flow.method.discretized(t, t_next)
    return (2 - scale) * x + square * flow.evaluate(x, t), square


def reverse_diffusion(
    flow: Any, x: Tensor, times: list[float], on_step: OnStep, generator: torch.Generator | None = None
) -> Tensor:
    """The reverse of the forward chain's own discretisation: one evaluation a step."""
    _sde(flow)
    mean = x
    for t, t_next in pairwise(times):
        mean, square = _reverse_step(flow, x, t, t_next)
        x = mean + math.sqrt(square) * _noise(x, generator)
        on_step(mean, t_next)
    return mean


def predictor_corrector(
    flow: Any,
    x: Tensor,
    times: list[float],
    on_step: OnStep,
    generator: torch.Generator | None = None,
    snr: float = 0.16,
) -> Tensor:
    """Langevin's corrector at t (algorithm 4 and 5), then reverse diffusion to t': two evaluations a step.

    snr: the corrector's step is 2 A (snr ‖ε‖/‖score‖)², norms averaged over the batch; A = 1 for VE, α for VP.
    """
    method = _sde(flow)
    if not snr > 0:
        raise ArgumentError(f"snr must be > 0; got {snr}")
    mean = x
    for t, t_next in pairwise(times):
        score, noise = flow.evaluate(x, t), _noise(x, generator)
        ratio = noise.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
        step = 2 * method.discretized(t, t_next)[0] ** 2 * (snr * ratio) ** 2
        x = x + step * score + (2 * step).sqrt() * noise
        mean, square = _reverse_step(flow, x, t, t_next)
        x = mean + math.sqrt(square) * _noise(x, generator)
        on_step(mean, t_next)
    return mean
