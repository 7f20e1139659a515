"""pfgm-fast demo: learn handwritten digits from nothing, draw new ones, and show what it took."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import positive

GRID = 64


def add(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="learn and draw handwritten digits; about 5 minutes on 2 cores",
        description="Trains a small DDPM++ on scikit-learn's 1,797 digits with the whole data set as charges, samples with three "
        "solvers, and writes pictures and a table: samples.png, trajectories.png, loss.png, report.md.",
    )
    command.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder of the results (default out/demo)"
    )
    command.add_argument("--steps", type=positive, help="training updates (default: the preset's)")
    command.add_argument("--samples", type=positive, default=512, help="drawn with each solver (default 512)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import dataclasses
    import shutil

    from pfgm_fast.extras import wanted
    from pfgm_fast.files import writable, write_beside
    from pfgm_fast.presets import preset
    from pfgm_fast.training import Trainer, loss_picture

    for module in ("sklearn", "matplotlib"):
        wanted(module, "the demo needs", "demo")
    config = preset("digits")
    writable(options.out / "report.md")
    if options.steps is not None:
        train = dataclasses.replace(config.train, steps=options.steps, log_every=min(10, options.steps))
        config = dataclasses.replace(config, train=train)
    run_folder = options.out / "run"
    shutil.rmtree(run_folder, ignore_errors=True)  # a demo begins at the beginning
    began = time.perf_counter()
    trainer = Trainer(config, run_folder)
    print(
        f"training DDPM++ ({sum(p.numel() for p in trainer.net.parameters()) / 1e6:.2f} M parameters) on "
        f"{len(trainer.charges)} digits, all of them charges of every field"
    )
    trainer.run()
    trained = time.perf_counter() - began
    lines = [
        "# Demo: handwritten digits",
        f"\n{config.train.steps} updates of {config.train.batch} in {trained:.0f} s, "
        f"{config.train.steps * config.train.batch / trained:.0f} images/s.\n",
        *_quality(trainer, options.out, options.samples),
        "",
        *_speed(trainer),
    ]
    loss_picture(run_folder, options.out / "loss.png")
    report = "\n".join(lines) + "\n"
    write_beside(options.out / "report.md", report.encode())
    print("\n" + report)
    print(f"pictures and report in {options.out}/: samples.png, trajectories.png, loss.png, report.md")


def _quality(trainer: Any, out: Path, count: int) -> list[str]:
    """Sample with three solvers; pictures, and lines of a Markdown table."""
    import torch

    from pfgm_fast import plots, sample
    from pfgm_fast.metrics import energy_distance, nearest_neighbors
    from pfgm_fast.precision import network_precision

    real = trainer.charges.values()
    net, method = trainer.ema_network(), trainer.method
    lines = [
        f"| solver | evaluations a sample | samples/s | energy distance, {count} samples | distance to the nearest digit |",
        "|---|---|---|---|---|",
    ]
    panels = []
    for solver, steps in (("euler", 20), ("euler", 100), ("rk45", 1)):
        generator = torch.Generator().manual_seed(1)
        began = time.perf_counter()
        adaptive = solver == "rk45"  # its tolerance is below bfloat16's rounding
        with network_precision("float32" if adaptive else trainer.config.train.precision, trainer.device):
            drawn = sample(
                net,
                (count, *real.shape[1:]),
                solver,
                steps,
                generator=generator,
                method=method,
                progress=True,
            )
        seconds = time.perf_counter() - began
        near = nearest_neighbors(drawn.x, real)
        name = f"{solver}, {steps} steps" if solver != "rk45" else "rk45, adaptive"
        lines.append(
            f"| {name} | {drawn.nfe} | {count / seconds:.0f} | {energy_distance(drawn.x, real):.4f} "
            f"| {near.ratio:.2f} of a digit's own |"
        )
        panels.append((f"{name} ({drawn.nfe} evaluations)", drawn.x[:GRID]))
    floor = energy_distance(real[torch.randperm(len(real))[:count]], real)
    lines.append(f"| real digits instead of samples | | | {floor:.4f} | |")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(2))[:GRID]
    plots.compare_grids([("real digits", real[order]), *panels], out / "samples.png")
    copies = nearest_neighbors(panels[1][1], real)
    plots.compare_grids(
        [("samples", panels[1][1]), ("the nearest real digit of each", real[copies.nearest])],
        out / "neighbors.png",
    )
    path = sample(
        net,
        (GRID, *real.shape[1:]),
        "euler",
        100,
        generator=torch.Generator().manual_seed(3),
        method=method,
        record=True,
    ).path
    plots.trajectories(path, real, out / "trajectories.png")
    return lines


def _speed(trainer: Any) -> list[str]:
    import torch

    from pfgm_fast.cli.bench import field_table, step_table

    charges, batch = trainer.charges, trainer.config.train.batch
    generator = torch.Generator().manual_seed(4)
    rows = torch.randint(len(charges), (batch,), generator=generator)
    x, z = trainer.method.perturb(charges.values(rows), generator)
    from pfgm_fast import Charges

    flat = Charges(charges.data.flatten(1))
    head = (
        f"The field of all {len(charges)} charges at {batch} training queries, and a sampler's step on them:"
    )
    return [head, "", *field_table(x.flatten(1), z, flat, 7), "", *step_table(x.flatten(1), 7)]
