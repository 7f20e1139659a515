"""Carry out a plan, in a folder: runs/<model>, points.jsonl, grids. Whatever stands there already is not done again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from pfgm_fast.compare.plan import Plan, Point
from pfgm_fast.data import ImageSet
from pfgm_fast.metrics import energy_distance, frechet_distance, nearest_neighbors, precision_recall
from pfgm_fast.metrics.features import Classifier, cached_classifier, features_of
from pfgm_fast.plots import image_grid, save_image
from pfgm_fast.sampling import sample
from pfgm_fast.training import Trainer

GRID = 64


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
    done = read_points(folder)
    real = _Real(images, classifier)
    for point in plan.points():
        if point.key not in done:
            figures = _draw(point, trained[point.model], plan, real, folder)
            done[point.key] = figures
            with (folder / "points.jsonl").open("a") as file:
                file.write(json.dumps(figures) + "\n")
            print(
                f"{point.key}: {figures['evaluations']} evaluations, FID* {figures['frechet']:.2f}",
                flush=True,
            )
    floor = real.figures(real.values[torch.randperm(len(real.values))[: plan.samples]])
    (folder / "floor.json").write_text(json.dumps(floor))
    return [done[p.key] for p in plan.points()]


def read_points(folder: Path) -> dict[str, dict[str, Any]]:
    """Points that are done, by their key."""
    path = folder / "points.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {figures["key"]: figures for figures in map(json.loads, lines)}


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


def _draw(point: Point, trainer: Trainer, plan: Plan, real: _Real, folder: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(plan.seed + 7)
    parts, evaluations, began = [], 0, time.perf_counter()
    for start in range(0, plan.samples, 128):
        shape = (min(128, plan.samples - start), *trainer.images.shape)
        out = sample(
            trainer.ema_network(),
            shape,
            point.solver,
            point.steps,
            method=trainer.method,
            generator=generator,
            progress=True,
        )
        parts.append(out.x)
        evaluations = max(evaluations, out.nfe)
    seconds = time.perf_counter() - began
    samples = torch.cat(parts).nan_to_num(0, 0, 0)
    save_image(image_grid(samples[:GRID]), folder / "grids" / f"{point.key.replace('/', '-')}.png")
    return {
        "key": point.key,
        "model": point.model,
        "solver": point.solver,
        "steps": point.steps,
        "evaluations": evaluations,
        "seconds_per_sample": seconds / plan.samples,
        "finite": all(bool(p.isfinite().all()) for p in parts),
        **real.figures(samples),
    }
