"""EDM's churn (Karras et al. 2022, arXiv 2206.00364, section 4): before a step, noise is added and the noise level raised to match."""

from __future__ import annotations

import math

from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import Flow, Noise


class Churn:
    """Algorithm 2, lines 4 to 6, for a flow of any scale: with γ = min(S_churn/n, √2 − 1) over n steps, where S_min ≤ σ ≤ S_max,

        σ̂ = (1 + γ) σ,   x̂ = a(t̂) (x/a(t) + √(σ̂² − σ²) S_noise ε),   a, σ = s/a those of the flow.

    The noise is Gaussian: with S_noise = 1 that keeps the marginals of diffusion (D = ∞) exactly, and those of PFGM++ with a finite D
    about as well as D is large; it is what the pfgmpp code adds. S_churn = 0, the default, changes nothing and draws nothing.
    """

    def __init__(
        self,
        times: list[float],
        noise: Noise | None,
        S_churn: float = 0.0,
        S_min: float = 0.0,
        S_max: float = math.inf,
        S_noise: float = 1.0,
    ) -> None:
        for name, value in (("S_churn", S_churn), ("S_min", S_min), ("S_noise", S_noise)):
            checks.nonnegative(name, value)
        if not S_max >= S_min:
            raise ArgumentError(f"S_max must be ≥ S_min; got {S_max} and {S_min}")
        self.gamma = min(S_churn / max(1, len(times) - 1), math.sqrt(2) - 1)
        self.low, self.high, self.factor, self.noise = S_min, S_max, S_noise, noise
        if self.gamma and (noise is None or times[-1] > times[0]):
            raise ArgumentError("S_churn > 0 draws noise: for sampling, not for latents or likelihoods")

    def __call__(self, flow: Flow, x: Tensor, t: float) -> tuple[Tensor, float]:
        """x̂, t̂ of x (B, *shape), t."""
        if not self.gamma:
            return x, t
        scale, deviation = flow.marginal_prob(t)
        sigma = deviation / scale
        if not self.low <= sigma <= self.high:
            return x, t
        assert self.noise is not None
        raised = flow.time_of((1 + self.gamma) * sigma)
        ratio = flow.marginal_prob(raised)[0] / scale
        added = ratio * scale * self.factor * sigma * math.sqrt((1 + self.gamma) ** 2 - 1)
        return ratio * x + added * self.noise(x), raised
