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
    """s(t) = σ_min (σ_max/σ_min)^t, a = 1. sigma_max: about the largest distance between two data points (50 for CIFAR-10)."""

    name: ClassVar[str] = "ve"

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max", "t_min"):
            checks.positive(name, getattr(self, name))
        if self.sigma_min >= self.sigma_max:
            raise ArgumentError(f"sigma_min must be < sigma_max; got {self.sigma_min}, {self.sigma_max}")

    @classmethod
    def from_data(cls, charges: Charges, **given: Any) -> VESDE:
        """sigma_max = the largest distance between two data points (Song and Ermon 2020, technique 1), of at most 2,000 of them."""
        rows = torch.linspace(0, len(charges) - 1, min(len(charges), 2000)).long()
        points = charges.values(rows).flatten(1)
        return cls(**{"sigma_max": float(torch.cdist(points, points).max()), **given})

    def marginal(self, t: Any) -> tuple[Any, Any]:
        deviation = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return (torch.ones_like(t) if isinstance(t, torch.Tensor) else 1.0), deviation

    def coefficients(self, t: float) -> tuple[float, float]:
        deviation = float(self.marginal(t)[1])
        return 0.0, 2 * deviation**2 * math.log(self.sigma_max / self.sigma_min)

    def discretized(self, t: float, t_next: float) -> tuple[float, float]:
        return 1.0, float(self.marginal(t)[1]) ** 2 - float(self.marginal(t_next)[1]) ** 2
