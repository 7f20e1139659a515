"""pfgm-fast evaluate: how good a run's samples are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import add_device, add_sampling


def add(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure the quality of a trained run's samples",
        description="Energy distance, sliced Wasserstein distance and nearest neighbours of the samples against the run's data; for "
        "labelled data the Fréchet distance, precision and recall in the features of a classifier trained on them (cached in the "
        "run's folder); with --inception, FID and Inception score.",
    )
    command.add_argument(
        "--inception", type=Path, metavar="WEIGHTS", help="Inception weights of torch-fidelity, a local file"
    )
    command.add_argument("run_folder", type=Path, metavar="run", help="the folder of `pfgm-fast train`")
    command.add_argument("--data", help="other data than the run's, such as a test set")
    command.add_argument("--json", type=Path, help="write the figures there too")
    add_sampling(command, 512)
    add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import json

    import torch

    from pfgm_fast import data
    from pfgm_fast.cli.sample import draw
    from pfgm_fast.metrics import (
        energy_distance,
        frechet_distance,
        inception_metrics,
        nearest_neighbors,
        precision_recall,
        sliced_wasserstein,
    )
    from pfgm_fast.metrics.features import cached_classifier, features_of
    from pfgm_fast.plots import to_bytes
    from pfgm_fast.training.files import write_beside

    images, evaluations, seconds, config = draw(options)
    found = data.load(options.data or config.data, config.size)
    real = found.charges().values()
    neighbors = nearest_neighbors(images, real)
    figures = {
        "samples": len(images),
        "solver": options.solver,
        "evaluations": evaluations,
        "samples_per_second": len(images) / seconds,
        "energy_distance": energy_distance(images, real),
        "sliced_wasserstein": sliced_wasserstein(images, real),
        "nearest_neighbor_ratio": neighbors.ratio,
    }
    if found.labels is not None:
        net = cached_classifier(found, options.run_folder / "cache")
        features, data_features = features_of(net, images.clamp(-1, 1)), features_of(net, real)
        figures["frechet_classifier"] = frechet_distance(features, data_features)
        figures["precision"], figures["recall"] = precision_recall(features, data_features)
    if options.inception:
        drawn, data_pixels = (torch.from_numpy(to_bytes(part)).permute(0, 3, 1, 2) for part in (images, real))
        figures |= inception_metrics(drawn, data_pixels, options.inception)
    for name, value in figures.items():
        print(f"{name:<24} {value:.4g}" if isinstance(value, float) else f"{name:<24} {value}")
    if options.json:
        write_beside(options.json, json.dumps(figures, indent=2).encode())
