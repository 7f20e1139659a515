"""Accuracy against evaluations, without a network: every method and sampler with the exact field of a data set.

What a network would blur is exact here, so what remains is the sampler's own error: of an ODE, the distance to its own exact solution
from the same start; of any sampler, how far the samples' distribution is from the data's (`quality.Target`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.files import write_beside
from pfgm_fast.methods import EDM, PFGM, VESDE, VPSDE, Method, PFGMpp, SubVPSDE
from pfgm_fast.methods.sde import SDE
from pfgm_fast.sampling import sample
from pfgm_fast.studies.points import PointFile
from pfgm_fast.studies.quality import Quality, Target
from pfgm_fast.world import world

METHODS = ("pfgm", "pfgmpp-1", "pfgmpp-128", "pfgmpp-2048", "edm", "ve", "vp", "subvp")
ODES = ("euler", "heun", "dpm_solver++")
SDES = ("reverse_diffusion", "ancestral", "predictor_corrector")


def make(name: str, charges: Charges) -> Method:
    """A method of `METHODS` by its rules for the data."""
    if name.startswith("pfgmpp-"):
        return PFGMpp.from_data(charges, aug_dim=float(name.removeprefix("pfgmpp-")))
    kinds: dict[str, Any] = {"pfgm": PFGM, "edm": EDM, "ve": VESDE, "vp": VPSDE, "subvp": SubVPSDE}
    return kinds[name].from_data(charges)


def ending_at(method: Method, sigma: float) -> Method:
    """The method, sampling of which ends at the noise level σ: on the data smoothed by its own kernel."""
    if isinstance(method, PFGM):
        return replace(method, z_min=sigma)
    if isinstance(method, PFGMpp):
        return replace(method, sigma_min=sigma)
    assert isinstance(method, SDE)
    return replace(method, sampling_eps=method.time_of(sigma))  # type: ignore[type-var]


@dataclass(frozen=True)
class ExactPlan:
    """samples: drawn for each point and seed. seeds: independent repetitions, for the error bars. ode_steps, sde_steps: in rising order;
    a sampler's further steps are left out once two in a row are within `enough` (error), or cost over `most` evaluations.
    deviations: the ODE solvers whose deviation is measured. smoothing: the noise level, in units of the data's standard deviation,
    at which it is: further down it only decides between single charges. reference: Heun's steps of an ODE's own exact
    solution, whose error falls with their square (256: to about 1e-5 of the data's spread)."""

    methods: tuple[str, ...] = METHODS
    samples: int = 2000
    seeds: tuple[int, ...] = (0, 1, 2)
    ode_steps: tuple[int, ...] = (3, 5, 8, 12, 18, 25, 50, 100)
    sde_steps: tuple[int, ...] = (5, 10, 20, 50, 100, 200, 500, 1000)
    enough: float = 0.01
    most: int = 1000
    deviations: tuple[str, ...] = ODES
    smoothing: float = 0.5
    reference: int = 256
    batch: int = 1000

    def samplers(self, method: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(solver, steps) of a method: PFGM and finite D are ODEs."""
        for solver in ODES:
            yield solver, self.ode_steps
        if method in ("ve", "vp", "subvp"):
            for solver in SDES:
                yield solver, self.sde_steps
        elif method == "edm":
            yield "ancestral", self.sde_steps


@dataclass(frozen=True)
class ExactPoint:
    """One method, solver, number of steps and seed. deviation: of an ODE, the root mean square distance to its own exact solution from the
    same start, on the smoothed data, over the data's spread (their distance from their mean); None for SDEs."""

    method: str
    solver: str
    steps: int
    seed: int
    evaluations: int
    quality: Quality
    deviation: float | None
    seconds: float

    @property
    def key(self) -> str:
        return f"{self.method}/{self.solver}/{self.steps}/{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExactPoint:
        return cls(**{**values, "quality": Quality(**values["quality"])})


class ExactStudy:
    """Runs a plan on a data set; points are kept in `folder/points.jsonl`, so that a study that was stopped goes on."""

    def __init__(self, charges: Charges, plan: ExactPlan, folder: Path, progress: bool = True) -> None:
        self.charges, self.plan, self.folder, self.progress = charges, plan, folder, progress
        self.points = PointFile(folder / "points.jsonl", ExactPoint.from_dict)
        self.target = Target(charges)
        self._solutions: dict[tuple[str, int], Tensor] = {}

    def run(self) -> list[ExactPoint] | None:
        """Every point of the plan, in its order. Under torchrun the samplers are shared out, and the writer alone has the points."""
        here = world()
        if here.writer:
            floor = self.target.floor(self.plan.samples)
            kept = json.dumps({"excess": floor, "samples": self.plan.samples}).encode()
            write_beside(self.folder / "floor.json", kept)
        here.wait()  # every rank has read the file to which all append from here on
        todo = [(name, *sampler) for name in self.plan.methods for sampler in self.plan.samplers(name)]
        last = ""

        def one(k: int) -> list[ExactPoint]:
            nonlocal last
            name, solver, steps = todo[k]
            if name != last:
                self._solutions.clear()
                last = name
            return self._sampler(name, make(name, self.charges), solver, steps)

        found = here.spread(len(todo), one)
        return None if found is None else [point for points in found for point in points]

    def _sampler(self, name: str, method: Method, solver: str, steps: tuple[int, ...]) -> list[ExactPoint]:
        points: list[ExactPoint] = []
        good = 0
        for count in steps:
            here = [self._point(name, method, solver, count, seed) for seed in self.plan.seeds]
            points += here
            excess = sum(p.quality.excess for p in here) / len(here)
            settled = all(p.deviation is None or p.deviation <= self.plan.enough for p in here)
            good = good + 1 if excess <= self.plan.enough**2 and settled else 0
            if good == 2 or here[0].evaluations > self.plan.most:
                break
        return points

    def _point(self, name: str, method: Method, solver: str, steps: int, seed: int) -> ExactPoint:
        key = f"{name}/{solver}/{steps}/{seed}"
        point, new = self.points.get(key, lambda: self._measure(name, method, solver, steps, seed))
        if new and self.progress:
            told = "" if point.deviation is None else f", deviation {point.deviation:.4f}"
            print(
                f"{key}: {point.evaluations} evaluations, error {point.quality.error:.4f}{told}", flush=True
            )
        return point

    def _measure(self, name: str, method: Method, solver: str, steps: int, seed: int) -> ExactPoint:
        began = time.perf_counter()
        x, evaluations = self._draw(method, solver, steps, seed)
        seconds = time.perf_counter() - began
        deviation = None
        if solver in self.plan.deviations:
            exact = self._solution(name, method, seed)
            x_smooth = self._draw(self._smooth(method), solver, steps, seed, denoise=False)[0]
            spread = math.sqrt(float(self.charges.sq_norms.mean()))
            deviation = float((x_smooth - exact).flatten(1).double().square().sum(1).mean().sqrt()) / spread
        quality = self.target.quality(x)
        return ExactPoint(name, solver, steps, seed, evaluations, quality, deviation, seconds)

    def _smooth(self, method: Method) -> Method:
        deviation = math.sqrt(float(self.charges.sq_norms.mean()) / self.charges.dim)
        return ending_at(method, self.plan.smoothing * deviation)

    def _draw(
        self, method: Method, solver: str, steps: int, seed: int, denoise: bool = True
    ) -> tuple[Tensor, int]:
        """Samples, down to the data with the denoising step at the end, and the evaluations that one took."""
        generator = torch.Generator(self.charges.device).manual_seed(seed)
        parts, evaluations = [], 0
        for first in range(0, self.plan.samples, self.plan.batch):
            count = min(self.plan.batch, self.plan.samples - first)
            shape = (count, *self.charges.shape)
            out = sample(
                self.charges, shape, solver, steps, method=method, generator=generator, denoise=denoise
            )
            parts.append(out.x)
            evaluations = max(evaluations, out.nfe)
        return torch.cat(parts), evaluations

    def _solution(self, name: str, method: Method, seed: int) -> Tensor:
        """Where the exact flow ends on the smoothed data from the starts of this seed."""
        if (name, seed) not in self._solutions:
            self._solutions[name, seed] = self._draw(
                self._smooth(method), "heun", self.plan.reference, seed, denoise=False
            )[0]
        return self._solutions[name, seed]


def evaluations_for(points: list[ExactPoint], error: float) -> float:
    """The evaluations at which a sampler's error comes down to a value and stays there, between its points by their logarithms;
    inf where it does not. points: of one method, solver and seed, or of several seeds together (their mean excess)."""
    by_steps: dict[int, list[ExactPoint]] = {}
    for point in points:
        by_steps.setdefault(point.evaluations, []).append(point)
    curve = [
        (nfe, max(1e-12, sum(p.quality.excess for p in here) / len(here)))
        for nfe, here in sorted(by_steps.items())
    ]
    return crossing(curve, error * error)


def crossing(curve: Sequence[tuple[int, float]], wanted: float) -> float:
    """Where a positive value comes down to `wanted` and stays there, between the points (evaluations, value), in rising order, by
    their logarithms; inf where it does not."""
    last_above = max((i for i, (_, value) in enumerate(curve) if value > wanted), default=-1)
    if last_above == len(curve) - 1:
        return math.inf
    if last_above < 0:
        return float(curve[0][0])
    (low, above), (high, below) = curve[last_above], curve[last_above + 1]
    share = math.log(above / wanted) / math.log(above / max(below, 1e-3 * wanted))
    return low * (high / low) ** share


MEDIUM = ExactPlan(
    methods=("pfgm", "pfgmpp-128", "edm", "ve", "vp"),
    samples=400,
    seeds=(0, 1),
    ode_steps=(5, 10, 18, 35),
    sde_steps=(10, 20, 50, 100, 200),
    enough=0.03,
    deviations=("euler",),
    reference=64,
)
LARGE = replace(
    MEDIUM,
    methods=("pfgm", "pfgmpp-2048", "ve", "vp"),
    samples=100,
    ode_steps=(5, 10, 18),
    sde_steps=(10, 20, 50, 100, 200),
    enough=0.05,
    reference=32,
)


def plan_for(charges: Charges) -> ExactPlan:
    """What two cores do in under half an hour: the whole plan on data like the digits, less on MNIST, least on all of CIFAR-10."""
    values = len(charges) * charges.dim
    return ExactPlan() if values < 2_000_000 else MEDIUM if values < 50_000_000 else LARGE
