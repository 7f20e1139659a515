"""What `sample` and `evaluate` take: a run's folder, or a checkpoint of another program."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import device
from pfgm_fast.errors import ArgumentError


def size(text: str) -> Any:
    """N or HxW of the command line."""
    from pfgm_fast.training.config import read_size

    try:
        return read_size(text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run_folder",
        type=Path,
        metavar="run",
        help="the folder of `pfgm-fast train`, or a checkpoint of EDM, PFGM++ (.pkl, .pt), Poisson_flow or score_sde (.pth)",
    )
    command.add_argument(
        "--image-size",
        type=size,
        metavar="N|HxW",
        help="of a checkpoint of Poisson_flow or score_sde, which do not tell it (default: as if attention were at 16×16)",
    )


def trained(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The network that the options name, its method and its run's config; a file's config has its network and no data."""
    from pfgm_fast.training import load_network

    if options.run_folder.is_file():
        return _of_file(options)
    if options.image_size is not None:
        raise ArgumentError("--image-size belongs to a checkpoint of another program; a run knows its own")
    average = None if options.ema < 0 else options.ema
    return load_network(options.run_folder, average, device(options), options.snapshot)


def config_of(options: argparse.Namespace) -> Any:
    """The config alone."""
    from pfgm_fast.training import RunConfig

    if options.run_folder.is_file():
        return _of_file(options)[2]
    return RunConfig.load(options.run_folder)


def cache_of(options: argparse.Namespace) -> Path:
    """The folder of what is computed of the data once: --cache, or beside the network."""
    if options.cache is not None:
        return options.cache
    path: Path = options.run_folder
    return path.with_name(f"{path.name}.cache") if path.is_file() else path / "cache"


def _of_file(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    from pfgm_fast import compat
    from pfgm_fast.training import RunConfig, TrainConfig

    if options.snapshot is not None or options.ema > 0:
        raise ArgumentError(
            f"{options.run_folder} holds one average and no snapshots: --ema is 0 or -1 there"
        )
    net, method = compat.load_any(options.run_folder, "net" if options.ema < 0 else "ema", options.image_size)
    network = compat.network_config(net)
    train = TrainConfig(conditional=network.classes > 0)
    return net.to(device(options)), method, RunConfig(data="", network=network, train=train)
