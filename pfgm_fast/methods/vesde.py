"""VE: the variance-exploding SDE (Song et al. 2021, arXiv 2011.13456, eq. 9 and appendix C)."""

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
class VESDE(SDE):
    """VE, the variance-exploding SDE (arXiv 2011.13456, eq. 9): s(t) = σ_min (σ_max/σ_min)^t, a = 1, t from 1 to t_min.

    The defaults are CIFAR-10's, 0.01 … 50 for values in [0, 1] (appendix C), for values in [−1, 1], this package's: 0.02 … 100.

    Args:
        sigma_min: Noise > 0 that is not seen, a hundredth of the values' range.
        sigma_max: About the largest distance between two data points, > sigma_min.
        t_min: Least t > 0 of training and likelihoods.
        sampling_eps: t > 0 where sampling ends.
        loss_reduction: One of "mean", "half_sum", "sum": see `Hyperparameters`.

    Raises:
        ArgumentError: A value out of its range.
    """

    name: ClassVar[str] = "ve"

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    t_min: float = 1e-5
    sampling_eps: float = 1e-5
    loss_reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma_min", "sigma_max", "t_min", "sampling_eps"):
            checks.positive(name, getattr(self, name))
        if self.sigma_min >= self.sigma_max:
            raise ArgumentError(f"sigma_min must be < sigma_max; got {self.sigma_min}, {self.sigma_max}")

    @classmethod
    def from_data(cls, charges: Charges, **given: Any) -> VESDE:
        """sigma_max = the largest distance between two data points (Song and Ermon 2020, arXiv 2006.09011, technique 1), of at most
        2,000 of them; sigma_min = a hundredth of the range of the data's values, as 0.01 is for images in [0, 1]."""
        rows = torch.linspace(0, len(charges) - 1, min(len(charges), 2000)).long()
        points = charges.values(rows).flatten(1)
        parts = [charges.values(part).aminmax() for part in charges.blocks()]
        width = max(float(p.max) for p in parts) - min(float(p.min) for p in parts)
        rule = {"sigma_min": 0.01 * width, "sigma_max": float(torch.cdist(points, points).max())}
        return cls(**{**rule, **given})

    def marginal_prob(self, t: Any) -> tuple[Any, Any]:
        deviation = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return (torch.ones_like(t) if isinstance(t, torch.Tensor) else 1.0), deviation

    def time_of(self, sigma: float) -> float:
        return math.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def coefficients(self, t: float) -> tuple[float, float]:
        deviation = float(self.marginal_prob(t)[1])
        return 0.0, 2 * deviation**2 * math.log(self.sigma_max / self.sigma_min)

    def transition(self, t: float, t_next: float) -> tuple[float, float]:
        return 1.0, float(self.marginal_prob(t)[1]) ** 2 - float(self.marginal_prob(t_next)[1]) ** 2
