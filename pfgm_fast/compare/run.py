"""Carry out a plan, in a folder: runs/<model>, points.jsonl, times.json, grids. Whatever stands there already is not done again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pfgm_fast.compare.plan import Plan, Point
from pfgm_fast.data import ImageSet
from pfgm_fast.files import write_beside
from pfgm_fast.metrics import energy_distance, frechet_distance, nearest_neighbors, precision_recall
from pfgm_fast.metrics.features import Classifier, cached_classifier, features_of
from pfgm_fast.plots import image_grid, save_image
from pfgm_fast.sampling import Samples, sample
from pfgm_fast.training import Trainer

GRID = 64
BATCH = 128
"""Samples that are drawn together."""


def run(plan: Plan, images: ImageSet, data: str, folder: Path) -> list[dict[str, Any]]:
    """Train every model, draw every point; returns the points' figures, in the plan's order. Can be stopped and started again.

    images must have labels: quality is the Fréchet distance in the features of a classifier trained on them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classifier = cached_classifier(images, folder / "cache")
    trained = {}
    for model in plan.models():
        trainer = Trainer(plan.config(model, images, data), folder / "runs" / model, images=images)
        if trainer.step < trainer.config.train.steps:
            print(f"training {model}: {trainer.config.train.steps} updates", flush=True)
            trainer.run()
        trained[model] = trainer
    nets = {model: _network(trainer, plan) for model, trainer in trained.items()}
    done = read_points(folder)
    real = _Real(images, classifier)
    for point in plan.points():
        if point.key not in done:
            figures = _draw(point, trained[point.model], nets[point.model], plan, real, folder)
            done[point.key] = figures
            with (folder / "points.jsonl").open("a") as file:
                file.write(json.dumps(figures) + "\n")
            print(
                f"{point.key}: {figures['evaluations']} evaluations, FID* {figures['frechet']:.2f}",
                flush=True,
            )
    some = torch.randperm(len(real.values), generator=torch.Generator().manual_seed(plan.seed))[
        : plan.samples
    ]
    write_beside(folder / "floor.json", json.dumps(real.figures(real.values[some])).encode())
    times = _times(plan, trained, nets, folder)
    return [
        done[p.key] | {"seconds_per_sample": times[p.clock] * done[p.key]["evaluations"]}
        for p in plan.points()
    ]


def read_points(folder: Path) -> dict[str, dict[str, Any]]:
    """Points that are done, by their key."""
    path = folder / "points.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {figures["key"]: figures for figures in map(json.loads, lines)}


def _network(trainer: Trainer, plan: Plan) -> Any:
    """The averaged network as it samples."""
    return torch.compile(trainer.ema_network()) if plan.compile else trainer.ema_network()


def _times(plan: Plan, trained: dict[str, Trainer], nets: dict[str, Any], folder: Path) -> dict[str, float]:
    """`Point.clock` → seconds for one evaluation and one sample: all models and solvers in turn, medians of three short draws.

    Measured in one go at the end, so that a comparison that was stopped, or ran beside other work, has times that can be compared.
    """
    path = folder / "times.json"
    clocks = {point.clock: point for point in reversed(plan.points())}
    if path.exists() and clocks.keys() <= (times := json.loads(path.read_text())).keys():
        return times
    rounds: dict[str, list[float]] = {clock: [] for clock in clocks}
    count = min(BATCH, plan.samples)
    for _ in range(4):
        for clock, point in clocks.items():
            few = {"rtol": 1.0, "atol": 1.0} if point.solver == "rk45" else {}
            began = time.perf_counter()
            out = _sampled(
                point, trained[point.model], nets[point.model], count, min(point.steps, 4), None, **few
            )
            rounds[clock].append((time.perf_counter() - began) / (count * out.nfe))
    times = {clock: median(seconds[1:]) for clock, seconds in rounds.items()}  # the first one warms up
    write_beside(path, json.dumps(times, indent=1).encode())
    return times


class _Real:
    """The data's side of every metric, computed once."""

    def __init__(self, images: ImageSet, classifier: Classifier) -> None:
        self.values, self.classifier = images.charges().values(), classifier
        self.features = features_of(classifier, self.values)

    def figures(self, samples: torch.Tensor) -> dict[str, float]:
        features = features_of(self.classifier, samples.clamp(-1, 1))
        some = self.values[:: max(1, len(self.values) // 2000)]
        pairs = precision_recall(features, self.features[:: max(1, len(self.features) // 2000)])
        return {
            "frechet": frechet_distance(features, self.features),
            "precision": pairs.precision,
            "recall": pairs.recall,
            "energy": energy_distance(samples, some),
            "neighbor_ratio": nearest_neighbors(samples, some).ratio,
        }


def _sampled(
    point: Point,
    trainer: Trainer,
    net: Any,
    count: int,
    steps: int,
    generator: torch.Generator | None,
    **options: Any,
) -> Samples:
    shape = (count, *trainer.images.shape)
    return sample(net, shape, point.solver, steps, method=trainer.method, generator=generator, **options)


def _draw(point: Point, trainer: Trainer, net: Any, plan: Plan, real: _Real, folder: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(plan.seed + 7)
    parts, evaluations = [], 0
    for start in range(0, plan.samples, BATCH):
        count = min(BATCH, plan.samples - start)
        out = _sampled(point, trainer, net, count, point.steps, generator, progress=True)
        parts.append(out.x)
        evaluations = max(evaluations, out.nfe)
    samples = torch.cat(parts).nan_to_num(0, 0, 0)
    save_image(image_grid(samples[:GRID]), folder / "grids" / f"{point.key.replace('/', '-')}.png")
    return {
        "key": point.key,
        "model": point.model,
        "solver": point.solver,
        "steps": point.steps,
        "evaluations": evaluations,
        "finite": all(bool(p.isfinite().all()) for p in parts),
        **real.figures(samples),
    }
