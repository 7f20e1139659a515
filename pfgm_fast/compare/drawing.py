"""The samples of one trained model: drawn from the same starts by every sampler, measured, kept as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import plots
from pfgm_fast.compare.measures import Measures
from pfgm_fast.compare.plan import Model, Plan, Point
from pfgm_fast.compare.results import Result
from pfgm_fast.methods import Method
from pfgm_fast.precision import network_precision
from pfgm_fast.sampling import sample
from pfgm_fast.solvers import STOCHASTIC

GRID = 64
SOLUTION = ("heun", 64)
"""An ODE's own solution, which `Result.deviation` refers to."""
SHARED = 256
"""Starts of which the solution is computed."""


class Drawing:
    """The samples of one model: the same starts for every sampler."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        method: Method,
        net: Any,
        measures: Measures,
        device: torch.device,
        pictures: Path | None,
        advance: Callable[[float], Any],
    ) -> None:
        """pictures: the folder of the grids, if they are kept. advance: told the share of `expected` that each batch was."""
        self.plan, self.model, self.method, self.net = plan, model, method, net
        self.measures, self.pictures, self.advance = measures, pictures, advance
        self.spread = math.sqrt(float(measures.train.sq_norms.mean()))
        generator = torch.Generator(device).manual_seed(1000 + model.seed)
        shape = (plan.samples, *measures.train.shape)
        self.starts = method.prior(shape, device=device, generator=generator)
        self._solution: Tensor | None = None

    def samples(self, starts: Tensor, solver: str, steps: int, expected: float = 0.0) -> tuple[Tensor, int]:
        """(n, *shape), down to the data with the denoising step at the end, whatever the method; and the evaluations of one."""
        generator = torch.Generator(starts.device).manual_seed(2000 + self.model.seed)
        parts, evaluations = [], 0
        for part in starts.split(self.plan.sample_batch):
            with network_precision(self.plan.precision, starts.device):
                out = sample(
                    self.net,
                    tuple(part.shape),
                    solver,
                    steps,
                    x0=part,
                    method=self.method,
                    generator=generator,
                    denoise=True,
                )
            parts.append(out.x)
            evaluations = max(evaluations, out.nfe)
            self.advance(expected * len(part) / len(starts))
        return torch.cat(parts), evaluations

    def result(self, point: Point, expected: float) -> Result:
        x, evaluations = self.samples(self.starts, point.solver, point.steps, expected)
        self._grid(point, x)
        figures = self.measures.figures(x, self.starts)
        deviation = None if point.solver in STOCHASTIC or self.model.weak else self._deviation(x[:SHARED])
        return Result(
            point.key,
            self.model.method,
            self.model.weak,
            self.model.seed,
            point.solver,
            point.steps,
            evaluations,
            figures,
            deviation,
        )

    def _deviation(self, x: Tensor) -> float | None:
        if self._solution is None:
            self._solution = self.samples(self.starts[:SHARED], *SOLUTION)[0]
        distance = (x - self._solution).flatten(1).double().norm(dim=1)
        value = float(torch.nan_to_num(distance, nan=math.inf).median()) / self.spread
        return value if math.isfinite(value) else None

    def _grid(self, point: Point, x: Tensor) -> None:
        """Of the first samples that are finite."""
        good = x[x.flatten(1).isfinite().all(1)][:GRID]
        if self.pictures is not None and len(good):
            plots.save_image(plots.image_grid(good), self.pictures / f"{point.key.replace('/', '-')}.png")
