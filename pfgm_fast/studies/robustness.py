"""Robustness of a sampler to what goes wrong in practice: the experiments of PFGM++ (arXiv 2302.04265, section 6) with three knobs.

Noise of strength α injected after every step, weights of few bits, and fewer steps; of trained networks, or, without one, of the exact field
of a data set (whose weights there are none of). `studies.errors` has the fourth knob, an error in the network's output itself.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfgm_fast.data import ImageSet
from pfgm_fast.errors import ArgumentError
from pfgm_fast.files import write_beside
from pfgm_fast.methods import Method
from pfgm_fast.metrics.features import cached_classifier, cached_features, features_of
from pfgm_fast.metrics.frechet import frechet_distance
from pfgm_fast.sampling import sample
from pfgm_fast.studies.points import PointFile
from pfgm_fast.studies.quality import Quality, Target
from pfgm_fast.studies.quantized import quantized
from pfgm_fast.world import world

KNOBS = {
    "kernel": "noise from the method's kernel, α",
    "gaussian": "Gaussian noise, α",
    "bits": "bits of a weight",
    "steps": "steps of the sampler",
}
FULL_BITS = 32
"""Weights as they are."""


@dataclass(frozen=True)
class Subject:
    """What is put to the test. key: its name in the points' file; title: on the page. net: a network by its method's contract, or Charges.
    labels: classes (K,) from which those of the samples are drawn evenly, of a conditional network."""

    key: str
    title: str
    method: Method
    net: Any
    labels: Tensor | None = None

    @property
    def weighty(self) -> bool:
        """It has weights to quantise."""
        return isinstance(self.net, nn.Module) and next(self.net.parameters(), None) is not None


def title_of(method: Method) -> str:
    """The method as people call it, with its D."""
    dim = getattr(method, "aug_dim", None)
    if method.name == "pfgmpp" and dim is not None and math.isfinite(dim):
        return f"PFGM++ D = {dim:g}"
    return {
        "pfgm": "PFGM",
        "pfgmpp": "EDM (D = ∞)",
        "edm": "EDM (D = ∞)",
        "ve": "VE",
        "vp": "VP",
        "subvp": "sub-VP",
    }.get(method.name, method.name)


@dataclass(frozen=True)
class RobustnessPlan:
    """noise: α ≥ 0, of each of `noise_kinds`. bits: of weights, `everywhere` or below the full resolution. steps: the largest is the
    baseline, at which the other knobs are turned. samples: for each point and seed, drawn `batch` at a time."""

    noise: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    noise_kinds: tuple[str, ...] = ("kernel", "gaussian")
    bits: tuple[int, ...] = (8, 6, 5, 4, 3)
    everywhere: bool = False
    steps: tuple[int, ...] = (18, 12, 9, 6, 4)
    solver: str = "heun"
    samples: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 500

    def __post_init__(self) -> None:
        if not self.seeds or self.samples < 2 or not self.steps or min(self.steps) < 1:
            raise ArgumentError("a robustness study needs seeds, at least 2 samples, and steps ≥ 1")
        if not all(0 < a < math.inf for a in self.noise):
            raise ArgumentError(f"noise must be α > 0 (0 is the baseline); got {self.noise}")

    @property
    def full_steps(self) -> int:
        return max(self.steps)

    def settings(self, subject: Subject) -> list[tuple[str, float]]:
        """(knob, value) of every point of a subject, the baseline first as ("steps", the most)."""
        found: list[tuple[str, float]] = [("steps", n) for n in sorted(set(self.steps), reverse=True)]
        found += [(kind, alpha) for kind in self.noise_kinds for alpha in sorted(set(self.noise))]
        if subject.weighty:
            found += [("bits", bits) for bits in sorted(set(self.bits), reverse=True)]
        return found

    def baseline(self, knob: str) -> float:
        """The knob's value where it does nothing."""
        return {"steps": self.full_steps, "bits": FULL_BITS}.get(knob, 0.0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RobustnessPoint:
    """frechet: FID* of the samples as pictures, held to [−1, 1], in the features of the data's classifier (None: no labels, or samples that
    are not finite). quality: of the samples as they are, None where some are not finite or farther out than ten times the data's
    radius (`lost`: how many). settings: solver, samples and the rest that a point depends on."""

    subject: str
    knob: str
    value: float
    seed: int
    settings: str
    evaluations: int
    frechet: float | None
    quality: Quality | None
    lost: int
    seconds: float

    @property
    def key(self) -> str:
        return _key(self.subject, self.knob, self.value, self.seed, self.settings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RobustnessPoint:
        quality = values["quality"]
        return cls(**{**values, "quality": None if quality is None else Quality(**quality)})


def _key(subject: str, knob: str, value: float, seed: int, settings: str) -> str:
    return f"{subject}/{knob}/{value:g}/{seed}/{settings}"


@dataclass
class _Pictures:
    """FID* against a labelled data set."""

    images: ImageSet
    cache: Path
    _found: Any = field(default=None, init=False)

    def frechet(self, x: Tensor) -> float | None:
        if self.images.labels is None or not bool(x.isfinite().all()):
            return None
        if self._found is None:
            net = cached_classifier(self.images, self.cache)
            self._found = net, cached_features(net, self.images, self.cache)
        net, features = self._found
        return frechet_distance(features_of(net, x.cpu().clamp(-1, 1)), features)


class RobustnessStudy:
    """A plan on subjects that share a data set; points are kept in the folder, by the data's digest, so that a study that was stopped goes on.
    Under torchrun the points are shared out, and the writer alone has them."""

    def __init__(
        self,
        images: ImageSet,
        subjects: Sequence[Subject],
        plan: RobustnessPlan,
        folder: Path,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> None:
        if len({s.key for s in subjects}) < len(subjects) or not subjects:
            raise ArgumentError(f"every subject needs a key of its own; got {[s.key for s in subjects]}")
        self.charges = images.charges().to(device)
        self.points = folder / f"points-{images.digest[:12]}.jsonl"
        self.subjects, self.plan, self.folder, self.progress = subjects, plan, folder, progress
        self.target, self.pictures = Target(self.charges), _Pictures(images, folder / "cache")

    def run(self) -> list[RobustnessPoint] | None:
        here = world()
        file = PointFile(self.points, RobustnessPoint.from_dict)
        if here.writer:
            write_beside(self.folder / "floor.json", json.dumps(self.floor()).encode())
        here.wait()  # every rank has read the file to which all append from here on
        todo = [
            (subject, knob, value, seed)
            for subject in self.subjects
            for knob, value in self.plan.settings(subject)
            for seed in self.plan.seeds
        ]

        def one(k: int) -> RobustnessPoint:
            subject, knob, value, seed = todo[k]
            key = _key(subject.key, knob, value, seed, self._settings(knob))
            point, new = file.get(key, lambda: self._measure(subject, knob, value, seed))
            if new and self.progress:
                told = [] if point.frechet is None else [f"FID* {point.frechet:.3g}"]
                told += [f"error {point.quality.error:.4f}" if point.quality else f"{point.lost} lost"]
                print(f"{subject.key}/{knob} {value:g}, seed {seed}: {', '.join(told)}", flush=True)
            return point

        return here.spread(len(todo), one)

    def floor(self) -> dict[str, Any]:
        """Of perfect samples, drawn from the data themselves: `excess` (`Target.floor`) and `frechet`, several times."""
        generator, count = torch.Generator().manual_seed(0), self.plan.samples
        found = []
        for _ in range(8):
            rows = torch.randint(len(self.charges), (count,), generator=generator)
            found.append(self.pictures.frechet(self.charges.values(rows.to(self.charges.device))))
        return {"excess": self.target.floor(count), "frechet": [f for f in found if f is not None]}

    def _settings(self, knob: str) -> str:
        plan = self.plan
        steps = "" if knob == "steps" else f" {plan.full_steps}"
        return f"{plan.solver}{steps}, {plan.samples}{', everywhere' * (knob == 'bits' and plan.everywhere)}"

    def _measure(self, subject: Subject, knob: str, value: float, seed: int) -> RobustnessPoint:
        began, plan = time.perf_counter(), self.plan
        net, more = subject.net, {}
        if knob == "bits":
            net = quantized(net, int(value), plan.everywhere).net
        elif knob != "steps":
            more = {"noise_alpha": value, "noise_kind": knob}
        steps = int(value) if knob == "steps" else plan.full_steps
        x, evaluations = self._draw(subject, net, steps, seed, more)
        flat = x.flatten(1)
        away = (flat - self.charges.center.to(flat)).norm(dim=1)
        kept = flat.isfinite().all(1) & (away <= 10 * self.charges.sq_norms.max().sqrt().to(away))
        lost = int((~kept).sum())
        quality = None if lost else self.target.quality(x)
        place = subject.key, knob, value, seed, self._settings(knob), evaluations
        return RobustnessPoint(*place, self.pictures.frechet(x), quality, lost, time.perf_counter() - began)

    def _draw(
        self, subject: Subject, net: Any, steps: int, seed: int, more: dict[str, Any]
    ) -> tuple[Tensor, int]:
        plan, parts, evaluations = self.plan, [], 0
        generator = torch.Generator(self.charges.device).manual_seed(seed)
        for first in range(0, plan.samples, plan.batch):
            count = min(plan.batch, plan.samples - first)
            labels = None
            if subject.labels is not None:
                drawn = torch.randint(
                    len(subject.labels), (count,), generator=generator, device=generator.device
                )
                labels = subject.labels.to(generator.device)[drawn]
            given = {
                "method": subject.method,
                "generator": generator,
                "labels": labels,
                "denoise": True,
                **more,
            }
            out = sample(net, (count, *self.charges.shape), plan.solver, steps, **given)
            parts.append(out.x)
            evaluations = max(evaluations, out.nfe)
        return torch.cat(parts), evaluations


@dataclass(frozen=True)
class Figure:
    """A mean over the seeds and its standard error (0 for one seed); value None: a seed has none. lost: samples, of all seeds."""

    value: float | None
    error: float
    lost: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.value is None else (self.value - self.error, self.value + self.error)

    def root(self) -> Figure:
        """Of a square such as the excess: the root of what lies above 0, its error by the interval's ends."""
        if self.value is None:
            return self
        low, high = (math.sqrt(max(0.0, self.value + s * self.error)) for s in (-1, 1))
        return Figure(math.sqrt(max(0.0, self.value)), (high - low) / 2, self.lost)


def over_seeds(points: Iterable[RobustnessPoint], of: Callable[[RobustnessPoint], float | None]) -> Figure:
    """What points of one subject and setting say together."""
    points = list(points)
    values, lost = [of(p) for p in points], sum(p.lost for p in points)
    known = [v for v in values if v is not None]
    if len(known) < len(values) or not known:
        return Figure(None, 0.0, lost)
    mean, n = sum(known) / len(known), len(known)
    spread = math.sqrt(sum((v - mean) ** 2 for v in known) / (n - 1) / n) if n > 1 else 0.0
    return Figure(mean, spread, lost)


def frechet_of(point: RobustnessPoint) -> float | None:
    return point.frechet


def excess_of(point: RobustnessPoint) -> float | None:
    return None if point.quality is None else point.quality.excess


MEASURES: dict[str, Callable[[RobustnessPoint], float | None]] = {"FID*": frechet_of, "error": excess_of}
