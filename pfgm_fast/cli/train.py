"""pfgm-fast train: train a network, or go on where a run stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import add_device, assignments, device, merged


def add(commands: Any) -> None:
    from pfgm_fast.presets import PRESETS

    command = commands.add_parser(
        "train",
        help="train a network, or go on where a run stopped",
        description="Train into the folder --out: config.json, checkpoints/, metrics.csv, samples/. The same command again goes "
        "on from the last checkpoint; a run may be killed at any moment.",
    )
    command.add_argument(
        "--preset", default="digits", choices=list(PRESETS), help="where the settings start from"
    )
    command.add_argument(
        "--data", help="digits, or a path: idx, CIFAR-10 folder, .npz/.npy, folder or zip of images"
    )
    command.add_argument("--out", type=Path, required=True, help="the run's folder")
    command.add_argument("--steps", type=int, help="updates in all (default: the preset's)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting: train.lr=1e-4, train.batch=64, network.width=64, method.name=pfgm … (repeatable)",
    )
    add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from pfgm_fast.presets import preset
    from pfgm_fast.training import RunConfig, Trainer

    where = device(options)
    started = (options.out / "config.json").exists()
    config = RunConfig.load(options.out) if started else preset(options.preset)
    changes = assignments(options.set)
    if options.data:
        changes["data"] = options.data
    if options.steps:
        changes.setdefault("train", {})["steps"] = options.steps
    config = RunConfig.from_dict(merged(config.to_dict(), changes))
    trainer = Trainer(config, options.out, where)
    if trainer.step:
        print(f"going on from step {trainer.step} of {config.train.steps} in {options.out}")
    trainer.run()
    print(f"{trainer.step} steps done; sample with: pfgm-fast sample {options.out} --out samples.png")
