"""What is kept of a comparison: a line a point, a line a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pfgm_fast.compare.measures import Amplitude, Figures
from pfgm_fast.solvers import STOCHASTIC


@dataclass(frozen=True)
class Result:
    """A point and what was found. deviation: of an ODE, the median over starts of the distance to the same network's own solution from the
    same start, over the data's spread; None for samplers that draw noise and where it is not finite."""

    key: str
    method: str
    weak: bool
    seed: int
    solver: str
    steps: int
    evaluations: int
    figures: Figures
    deviation: float | None

    @property
    def stochastic(self) -> bool:
        return self.solver in STOCHASTIC

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        return cls(**{**values, "figures": Figures(**values["figures"])})


@dataclass(frozen=True)
class Trained:
    """A model as it was trained. amplitude: of PFGM's networks, else None."""

    key: str
    parameters: int
    updates: int
    amplitude: Amplitude | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trained:
        found = values["amplitude"]
        return cls(**{**values, "amplitude": None if found is None else Amplitude(**found)})


def told(result: Result) -> str:
    """One line for the terminal."""
    figures = result.figures
    if figures.frechet is None:
        return f"{result.key}: {result.evaluations} evaluations, {figures.lost} samples are not finite"
    return (
        f"{result.key}: {result.evaluations} evaluations, FID* {figures.frechet:.2f} "
        f"[{figures.low:.2f}, {figures.high:.2f}]"
    )
