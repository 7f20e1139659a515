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
        description="Energy distance, sliced Wasserstein distance and nearest neighbours of the samples against the run's data.",
    )
    command.add_argument("run_folder", type=Path, metavar="run", help="the folder of `pfgm-fast train`")
    command.add_argument("--data", help="other data than the run's, such as a test set")
    command.add_argument("--json", type=Path, help="write the figures there too")
    add_sampling(command, 512)
    add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import json

    from pfgm_fast import data
    from pfgm_fast.cli.sample import draw
    from pfgm_fast.metrics import energy_distance, nearest_neighbors, sliced_wasserstein
    from pfgm_fast.training.files import write_beside

    images, evaluations, seconds, config = draw(options)
    real = data.load(options.data or config.data, config.size).charges().values()
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
    for name, value in figures.items():
        print(f"{name:<24} {value:.4g}" if isinstance(value, float) else f"{name:<24} {value}")
    if options.json:
        write_beside(options.json, json.dumps(figures, indent=2).encode())
