"""VP and sub-VP: the variance-preserving SDEs (Song et al. 2021, arXiv 2011.13456, eq. 11 and 12, appendix C)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods.sde import SDE


@dataclass(frozen=True)
class VPSDE(SDE):
    """VP (arXiv 2011.13456, eq. 11): β(t) = β_min + t (β_max − β_min), a(t) = exp(−½ ∫β), s² = 1 − a²: DDPM in continuous time.

    For data of about unit range. t_min = 1e-5 in training and likelihoods, sampling_eps = 1e-3 in sampling (appendix C).

    Args:
        beta_min, beta_max: β(0) and β(1), 0 < beta_min < beta_max.
        t_min: Least t > 0 of training and likelihoods.
        sampling_eps: t > 0 where sampling ends.
        loss_reduction: One of "mean", "half_sum", "sum": see `Hyperparameters`.

    Raises:
        ArgumentError: A value out of its range.
    """

    name: ClassVar[str] = "vp"

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    sampling_eps: float = 1e-3
    loss_reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta_min", "beta_max", "t_min", "sampling_eps"):
            checks.positive(name, getattr(self, name))
        if self.beta_min >= self.beta_max:
            raise ArgumentError(f"beta_min must be < beta_max; got {self.beta_min}, {self.beta_max}")

    @classmethod
    def from_data(cls, charges: Charges, **given: Any) -> VPSDE:
        """Nothing is learned from the data: its values should be of unit range, as images in [−1, 1] are."""
        return cls(**given)

    def _beta(self, t: float) -> float:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Any) -> Any:
        return self.beta_min * t + 0.5 * t * t * (self.beta_max - self.beta_min)

    def _variance(self, integral: Any) -> Any:
        expm1 = torch.expm1 if isinstance(integral, torch.Tensor) else math.expm1
        return -expm1(-integral)  # type: ignore[arg-type]

    def marginal_prob(self, t: Any) -> tuple[Any, Any]:
        integral = self._integral(t)
        exp = torch.exp if isinstance(t, torch.Tensor) else math.exp
        return exp(-0.5 * integral), self._variance(integral) ** 0.5  # type: ignore[arg-type]

    def time_of(self, sigma: float) -> float:
        return self._time_where(math.log1p(sigma * sigma))  # (s/a)² = e^∫β − 1

    def _time_where(self, integral: float) -> float:
        """t at which ∫β is given: the root of a quadratic, without cancellation."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * integral))

    def coefficients(self, t: float) -> tuple[float, float]:
        return -0.5 * self._beta(t), self._beta(t)

    def transition(self, t: float, t_next: float) -> tuple[float, float]:
        beta = min(self._beta(t) * (t - t_next), 0.999)
        return math.sqrt(1 - beta), beta

    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """Sub-VP (arXiv 2011.13456, eq. 12): VP with s = 1 − a² instead of its root: less noise at every t, the same ends.

    For data of about unit range. t_min = 1e-5 in training and likelihoods, sampling_eps = 1e-3 in sampling (appendix C).

    Args:
        beta_min, beta_max: β(0) and β(1), 0 < beta_min < beta_max.
        t_min: Least t > 0 of training and likelihoods.
        sampling_eps: t > 0 where sampling ends.
        loss_reduction: One of "mean", "half_sum", "sum": see `Hyperparameters`.

    Raises:
        ArgumentError: A value out of its range.
    """

    name: ClassVar[str] = "subvp"

    def marginal_prob(self, t: Any) -> tuple[Any, Any]:
        scale, deviation = super().marginal_prob(t)
        return scale, deviation * deviation

    def time_of(self, sigma: float) -> float:
        return self._time_where(2 * math.asinh(sigma / 2))  # (1 − a²)/a = 2 sinh(−ln a), and −ln a = ½ ∫β

    def coefficients(self, t: float) -> tuple[float, float]:
        return -0.5 * self._beta(t), self._beta(t) * self._variance(2 * self._integral(t))

    def transition(self, t: float, t_next: float) -> tuple[float, float]:
        linear, square = self.coefficients(t)
        return 1 + linear * (t - t_next), square * (t - t_next)
