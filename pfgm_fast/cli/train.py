"""pfgm-fast train: train a network, or go on where a run stopped."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import add_device, assignments, device, merged
from pfgm_fast.errors import CheckpointError
from pfgm_fast.world import world


def add(commands: Any) -> None:
    from pfgm_fast.presets import PRESETS

    command = commands.add_parser(
        "train",
        help="train a network, or go on where a run stopped",
        description="Train into the folder --out: config.json, checkpoints/, metrics.csv, samples/. With --data alone, network, classes "
        "and the method's hyper-parameters follow from the data. The same command again goes on from the last checkpoint; a run may be "
        "killed at any moment. What a run may change when it goes on: docs/runs.md.",
    )
    command.add_argument(
        "--data", help="digits, or a path: idx, CIFAR-10 folder, .npz/.npy, folder or zip of images"
    )
    command.add_argument(
        "--size", metavar="N|HxW", help="height and width that images of a folder or zip are brought to"
    )
    command.add_argument(
        "--crop", metavar="N|HxW", help="pixels cut out of the centre of each image first (CelebA: 140)"
    )
    command.add_argument("--channels", type=int, choices=(1, 3), help="1 makes every image grey, 3 coloured")
    command.add_argument("--split", help="train, val or test, of a set that has them (default: train)")
    command.add_argument(
        "--preset",
        choices=list(PRESETS),
        help="a recipe to start from (default: what fits the data; digits without --data)",
    )
    command.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings from a .json or .toml file, such as a run's config.json",
    )
    command.add_argument(
        "--out", type=Path, help="the run's folder (default runs/NAME, after data or preset)"
    )
    command.add_argument("--steps", type=int, help="updates in all (default: the recipe's)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting: train.lr=1e-4, train.flip=no, network.width=64, method.name=pfgmpp, method.sigma=0.02 … (repeatable)",
    )
    add_device(command)
    command.set_defaults(run=run, shares=True)


def run(options: argparse.Namespace) -> None:
    from pfgm_fast.training import Trainer
    from pfgm_fast.training.lock import refuse_if_held

    where = device(options)
    given = _given(options)
    preset_name = given.pop("preset", None)
    out = options.out or Path("runs") / _name(given.get("data"), preset_name)
    if world().writer:
        refuse_if_held(out)
    config, images = settled(options.set, given, preset_name, out)
    trainer = Trainer(config, out, where, images)
    for line in header(trainer):
        print(line, flush=True)
    trainer.run()
    print(f"{trainer.step} steps done; sample with: pfgm-fast sample {out} --out samples.png")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What --config and the options of their own say, the latter over the former."""
    from pfgm_fast.training.config import read_file, read_size

    given = read_file(options.config) if options.config is not None else {}
    if options.preset is not None:
        given["preset"] = options.preset
    if options.data is not None:
        given["data"] = options.data
    for name in ("size", "crop"):
        if getattr(options, name) is not None:
            given[name] = read_size(getattr(options, name))
    for name in ("channels", "split"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    if options.steps is not None:
        train = given.get("train")
        given["train"] = {**(train if isinstance(train, dict) else {}), "steps": options.steps}
    return given


def _name(data: object, preset_name: str | None) -> str:
    return Path(str(data)).resolve().stem if data and data != "digits" else preset_name or "digits"


_OF_THE_READING = (
    "size=", "crop=", "channels=", "split=", "train.conditional=", "train.reservoir=",
)  # fmt: skip
"""Settings that must be known before the images are looked at."""


def settled(sets: list[str], given: dict[str, Any], preset_name: str | None, out: Path) -> tuple[Any, Any]:
    """The config of the run in a folder, and its images where they had to be read for it.

    A run that has a checkpoint keeps its settings, a preset that is named must be its own. Else: the preset, or what fits the data,
    for images of the data's shape.
    """
    from pfgm_fast.data.sizes import load_fitting
    from pfgm_fast.presets import adapted, for_data, preset, takes
    from pfgm_fast.training import RunConfig
    from pfgm_fast.training.checkpoint import available

    images = None
    begun = bool(available(out))
    if begun or (preset_name is None and "data" not in given and (out / "config.json").exists()):
        config = RunConfig.load(out)
        if preset_name is not None and begun:
            _same_preset(config, preset_name, out)
        base = config.to_dict()
    else:
        if preset_name is None and "data" not in given:
            preset_name = "digits"
        recipe = None if preset_name is None else preset(preset_name)
        if recipe is not None and "data" not in given:
            base = recipe.to_dict()
        elif "network" in given:
            base = {} if recipe is None else recipe.to_dict()
        else:
            first = {} if recipe is None else recipe.to_dict()
            changes = assignments([s for s in sets if s.startswith(_OF_THE_READING)], first)
            wanted = RunConfig.from_dict(merged(merged({"data": "", **first}, given), changes))
            if wanted.train.reservoir is not None:
                images, size = wanted.images(), wanted.size
            else:
                images, size = load_fitting(wanted.data, wanted.size, takes, **wanted.reading)
            if recipe is None:
                base = {**for_data(images, wanted.data, size).to_dict(), **wanted.reading}
            else:
                base = adapted(dataclasses.replace(wanted, size=size), images).to_dict()
        base["preset"] = preset_name
    whole = merged(base, given)
    return RunConfig.from_dict(merged(whole, assignments(sets, whole))), images


def _same_preset(before: Any, name: str, folder: Path) -> None:
    """Raises: CheckpointError where a run was begun from another preset than the one that is given."""
    from pfgm_fast.presets import preset
    from pfgm_fast.training.config import differences

    if before.preset == name:
        return
    wanted = preset(name)
    method = before.method if wanted.method is None else {**(before.method or {}), **wanted.method}
    found = differences(before, dataclasses.replace(wanted, method=method))
    if before.preset is None and not found:
        return
    began = (
        f"was begun from preset {before.preset}, not {name}" if before.preset else f"is not of preset {name}"
    )
    raise CheckpointError(
        f"{folder} {began}{': it has ' + '; '.join(found[:3]) if found else ''}. "
        "Leave --preset out to go on with the run's own settings, or choose another folder"
    )


def header(trainer: Any) -> list[str]:
    """What is about to be trained, on what, with what."""
    from pfgm_fast import info

    config, images = trainer.config, trainer.images
    network, train = config.network, config.train
    kind = type(trainer.net).__name__
    if config.preconditioning is not None and config.own_network is None:
        kind = f"{type(trainer.net.model).__name__} as a denoiser ({config.preconditioning})"
    parameters = sum(p.numel() for p in trainer.net.parameters())
    labels = "no labels"
    if images.labels is not None:
        use = "conditional" if train.conditional else "not used"
        names = ", ".join(images.classes[:5]) + (", …" if len(images.classes) > 5 else "")
        labels = f"{images.num_classes} classes ({names or 'without names'}), {use}"
    return [
        f"data      {config.dataset.description}" + (", and their mirror images" if train.flip else ""),
        *(f"          {note}" for note in images.notes),
        f"labels    {labels}",
        f"network   {kind}, width {network.width} × {network.multipliers}, {network.blocks} blocks a level, "
        f"attention at {network.attention}, {parameters / 1e6:.2f} M parameters",
        f"method    {trainer.method}",
        f"training  {train.steps:,} updates of {train.batch} in {train.precision} on {trainer.device}, "
        f"field of {train.field_charges or len(trainer.charges):,} charges by {_backend(info(), trainer.device)}",
        f"folder    {trainer.folder}"
        + (f", going on from step {trainer.step:,} of {train.steps:,}" if trainer.step else ""),
    ]


def _backend(facts: dict[str, Any], where: Any) -> str:
    return f"backend {facts['devices'].get(where.type, facts['chosen'])}"
