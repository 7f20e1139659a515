"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor and a corrector of any order with one evaluation a step."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import Flow, Noise, OnStep, onto_data


def moments(h: float, count: int) -> list[float]:
    """μ_j = ∫₀ʰ e^(τ − h) (τ/h)^j dτ for j = 0 … count: what the powers of a polynomial D contribute to a step of h in λ."""
    if abs(h) <= 1:  # h Σ_n (−h)^n j!/(n + j + 1)!: the recurrence would lose h^−j of its digits
        return [
            h * sum((-h) ** n * math.factorial(j) / math.factorial(n + j + 1) for n in range(20))
            for j in range(count + 1)
        ]
    found = [-math.expm1(-h)]
    for j in range(1, count + 1):
        found.append(1 - j / h * found[-1])
    return found


def coefficients(h: float, nodes: list[float]) -> tuple[float, list[float]]:
    """μ_0 and the c_k of ∫₀ʰ e^(τ − h) D dτ = μ_0 D_0 + Σ_k c_k (D_k − D_0), exact where D is a polynomial through its values D_0 at
    τ = 0 and D_k at τ = r_k h: Σ_k c_k r_k^j = μ_j (eq. 5, with the matrix of powers solved in float64). nodes: the r_k ≠ 0."""
    mu = moments(h, len(nodes))
    powers = torch.tensor(
        [[r**j for r in nodes] for j in range(1, len(nodes) + 1)], dtype=torch.float64
    ).reshape(len(nodes), len(nodes))
    return mu[0], torch.linalg.solve(powers, torch.tensor(mu[1:], dtype=torch.float64)).tolist()


def solve(
    flow: Flow, x: Tensor, times: list[float], on_step: OnStep, noise: Noise | None = None, order: int = 3
) -> Tensor:
    """x (B, *shape) at times[-1], from x at times[0]; times fall from the prior to the data (0: with the denoising step), or rise
    back.

    In λ = log(a/s), h = λ' − λ and with D the denoised image, x' = (s'/s) x + a' ∫₀ʰ e^(τ − h) D dτ. The predictor takes for D the
    polynomial through the last `order` values; the corrector adds the value at the prediction, which is also the next step's own
    (algorithm 1). The last step has no corrector.
    """
    if checks.integer("order", order, 1) > 4:
        raise ArgumentError(f"order must be in 1 … 4; got {order}")
    known: list[tuple[float, Tensor]] = []  # λ, D; the newest last
    for t, t_next in pairwise(times):
        scale, deviation = flow.marginal_prob(t)
        here = math.log(scale / deviation)
        if not known:
            known = [(here, flow.denoised(x, flow.evaluate(x, t), t))]
        now = known[-1][1]
        if onto_data(t, t_next):
            x = on_step(now, t_next)
            continue
        scale_next, deviation_next = flow.marginal_prob(t_next)
        there = math.log(scale_next / deviation_next)
        nodes = [((at - here) / (there - here), clean) for at, clean in known[:-1]]
        carried = deviation_next / deviation * x

        def step(
            nodes: list[tuple[float, Tensor]],
            carried: Tensor = carried,
            now: Tensor = now,
            h: float = there - here,
            scale: float = scale_next,
        ) -> Tensor:
            first, others = coefficients(h, [r for r, _ in nodes])
            mean = (first - sum(others)) * now
            for c, (_, clean) in zip(others, nodes, strict=True):
                mean = mean + c * clean
            return carried + scale * mean

        predicted = step(nodes)
        if t_next == times[-1]:
            x = on_step(predicted, t_next)
            continue
        clean = flow.denoised(predicted, flow.evaluate(predicted, t_next), t_next)
        x = on_step(step([*nodes, (1.0, clean)]), t_next)
        known = [*known, (there, clean)][-order:]
    return x
