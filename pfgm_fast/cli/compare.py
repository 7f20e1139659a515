"""pfgm-fast compare: PFGM against VE and VP diffusion on the same network, data and budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import positive


def add(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="PFGM against VE and VP diffusion: same network, data and budget; a report with plots",
        description="Trains PFGM, VE and VP models (and weaker ones) on labelled images, samples each over solvers and numbers of "
        "evaluations, and writes report.md with plots. May be stopped: the same command goes on. Under two hours on 2 cores for MNIST.",
    )
    command.add_argument("--data", required=True, help="labelled images, as for train")
    command.add_argument("--out", type=Path, required=True, help="folder of the runs and the report")
    command.add_argument(
        "--steps", type=positive, default=1500, help="training updates of each model (default 1500)"
    )
    command.add_argument("--width", type=positive, default=16, help="features of the network (default 16)")
    command.add_argument("--samples", type=positive, default=256, help="drawn for each point (default 256)")
    command.add_argument(
        "--long", type=positive, default=1000, help="evaluations of the SDE samplers (default 1000)"
    )
    command.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the networks (needs a C++ compiler)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from pfgm_fast import compare, data
    from pfgm_fast.extras import wanted

    wanted("matplotlib", "the report's figures need")  # not after two hours
    images = data.load(options.data)
    plan = compare.Plan(
        steps=options.steps,
        width=options.width,
        samples=options.samples,
        long=options.long,
        compile=options.compile,
    )
    points = compare.run(plan, images, options.data, options.out)
    print(compare.write_report(plan, points, images.name, options.out))
