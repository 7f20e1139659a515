"""The flow of a denoiser whose time is the noise level σ, a = 1: dx/dσ = (x − D(x; σ))/σ (PFGM eq. 6, PFGM++ eq. 5, EDM eq. 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.field import field_divergence, poisson_field
from pfgm_fast.flows import NoiseLevelTime
from pfgm_fast.special import radius_scale

Grid = Callable[[int, bool], list[float]]


class SigmaFlow(NoiseLevelTime):
    """Its value is x − D (B, *shape), which `residual(x, σ)` gives; its Euler step the fused `field_step`'s formula."""

    def __init__(self, residual: Callable[[Tensor, float], Tensor], grid: Grid) -> None:
        self.residual, self._grid = residual, grid

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        return self.residual(x, t)

    def derivative(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        return value / t

    def denoised(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        return x - value

    def euler(self, x: Tensor, value: Tensor, t: float, t_next: float) -> Tensor:
        return torch.add(x, value, alpha=(t_next - t) / t)

    def heun(self, x: Tensor, value: Tensor, value_next: Tensor, t: float, t_next: float) -> Tensor:
        return x + 0.5 * (t_next - t) * (value / t + value_next / t_next)

    def grid(self, steps: int, denoise: bool = False) -> list[float]:
        return self._grid(steps, denoise)

    @property
    def likelihood_end(self) -> float:
        return self._grid(1, False)[-1]


class FieldFlow(SigmaFlow):
    """Of the true field of Charges, x − m as a sum of differences, instead of a network; knows its divergence."""

    def __init__(self, charges: Charges, aug_dim: float, grid: Grid, labels: Tensor | None) -> None:
        super().__init__(self._field, grid)
        self.charges, self.aug_dim, self.labels = charges, aug_dim, labels
        self.radius_scale = radius_scale(aug_dim)

    def _field(self, x: Tensor, sigma: float) -> Tensor:
        r = sigma * self.radius_scale
        return poisson_field(x, r, self.charges, self.aug_dim, labels=self.labels)[0]

    def divergence(self, x: Tensor, t: float) -> Tensor:
        """div (x − m)/σ (B,), exact, as weighted sums over the charges."""
        r = t * self.radius_scale
        return field_divergence(x, r, self.charges, self.aug_dim, labels=self.labels) / t


class Gaussian:
    """What D = ∞ adds: the flow is the SDE dx = √(2σ) dw in the noise level σ."""

    def score(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        return value / -(t * t)

    def coefficients(self, t: float) -> tuple[float, float]:
        return 0.0, 2 * t

    def transition(self, t: float, t_next: float) -> tuple[float, float]:
        return 1.0, t * t - t_next * t_next


class GaussianSigmaFlow(Gaussian, SigmaFlow):
    """Of a denoiser of Gaussian noise."""


class GaussianFieldFlow(Gaussian, FieldFlow):
    """Of the true field, D = ∞."""
