"""What the solvers of the reverse SDE share: the walk over the grid, and its noise.

Where the last of the times is 0, the last step is the denoising step, one evaluation more; else the last step adds no noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import Flow, Noise, OnStep, StochasticFlow, is_stochastic, onto_data

Step = Callable[[StochasticFlow, Tensor, float, float], tuple[Tensor, float]]
"""(flow, x, t, t') → mean (B, *shape) and standard deviation at t'."""


def walk(
    flow: Flow,
    x: Tensor,
    times: list[float],
    on_step: OnStep,
    noise: Noise | None,
    step: Step,
    correct: Callable[[StochasticFlow, Tensor, float, float, Noise], Tensor] | None = None,
) -> Tensor:
    """x (B, *shape) at times[-1]: at each t, `correct` x where there is a corrector, then `step` and its noise.

    Raises: ArgumentError for a flow that is no SDE, and for latents and likelihoods, which give no noise.
    """
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
