"""pfgm-fast sample: draw images from a run's network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import add_device, add_sampling, device, positive
from pfgm_fast.errors import ArgumentError


def add(commands: Any) -> None:
    command = commands.add_parser("sample", help="draw images from a trained run")
    command.add_argument("run_folder", type=Path, metavar="run", help="the folder of `pfgm-fast train`")
    command.add_argument(
        "--out", type=Path, default=Path("samples.png"), help=".png (a grid) or .npz (bytes, all of them)"
    )
    command.add_argument(
        "--labels",
        type=classes,
        metavar="K[,K…]",
        help="classes to draw, in turn, where the run is conditional (default: all of them in turn)",
    )
    command.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="factor on the prior's draws: below 1 samples are more alike (default 1)",
    )
    command.add_argument(
        "--interpolate",
        type=positive,
        metavar="K",
        help="--count rows of K images, each from one sample to another along a great circle of latents",
    )
    add_sampling(command, 64)
    add_device(command)
    command.set_defaults(run=run)


def classes(text: str) -> list[int]:
    """ "3,1,4" → [3, 1, 4]."""
    return [int(part) for part in text.split(",")]


def draw(options: argparse.Namespace) -> tuple[Any, int, float, Any]:
    """(images (count, C, H, W) on the CPU, evaluations of the network a sample, seconds, the run's config)."""
    import time

    import torch

    from pfgm_fast.sampling import sample

    net, method, config = trained(options)
    network = config.network
    shape = (network.channels, network.image_size, network.image_size)
    where = device(options)
    generator = torch.Generator(where).manual_seed(options.seed)
    labels = _labels(options.labels, network.classes if config.train.conditional else 0, options.count)
    starts, total = None, options.count
    if options.interpolate:
        starts = _rows(method, shape, options, generator)
        total = len(starts)
        labels = None if labels is None else labels.repeat_interleave(options.interpolate)
    parts, evaluations, began = [], 0, time.perf_counter()
    for first in range(0, total, options.batch):
        part = slice(first, min(first + options.batch, total))
        out = sample(
            net,
            (part.stop - first, *shape),
            options.solver,
            options.steps,
            x0=None if starts is None else starts[part],
            generator=generator,
            method=method,
            labels=None if labels is None else labels[part].to(where),
            temperature=options.temperature,
            progress=True,
        )
        parts.append(out.x.cpu())
        evaluations = max(evaluations, out.nfe)
    return torch.cat(parts), evaluations, time.perf_counter() - began, config


def trained(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The network that the options name, its method and its run's config."""
    from pfgm_fast.training import load_network

    average = None if options.ema < 0 else options.ema
    return load_network(options.run_folder, average, device(options), options.snapshot)


def _labels(wanted: list[int] | None, count: int, rows: int) -> Any:
    """(rows,) classes in turn, or None; count: of the run's classes, 0 where it is unconditional."""
    import torch

    if wanted is None and not count:
        return None
    for label in wanted or ():
        if not 0 <= label < count:
            raise ArgumentError(f"--labels must be in [0, {count}) for this run; got {label}")
    turn = torch.tensor(wanted if wanted is not None else list(range(count)))
    return turn[torch.arange(rows) % len(turn)]


def _rows(method: Any, shape: tuple[int, ...], options: argparse.Namespace, generator: Any) -> Any:
    """Latents (count · K, *shape): rows of K from one draw of the prior to another."""
    from pfgm_fast.latents import interpolate

    if options.interpolate < 2:
        raise ArgumentError(f"--interpolate takes 2 images a row or more; got {options.interpolate}")
    ends = method.prior((2 * options.count, *shape), device=generator.device, generator=generator)
    way = interpolate(ends[: options.count], ends[options.count :], options.interpolate)
    return way.transpose(0, 1).flatten(0, 1)


def run(options: argparse.Namespace) -> None:
    import numpy as np

    from pfgm_fast.plots import image_grid, save_image
    from pfgm_fast.training.files import beside

    if options.out.suffix not in (".png", ".npz"):
        raise ArgumentError(f"--out must end in .png or .npz; got {options.out}")
    images, evaluations, seconds, _ = draw(options)
    if options.out.suffix == ".png":
        save_image(image_grid(images, options.interpolate), options.out)
    else:
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        with beside(options.out) as partial, partial.open("wb") as file:
            np.savez_compressed(file, images=pixels)
    print(
        f"{options.out}: {len(images)} samples, {evaluations} evaluations each, "
        f"{len(images) / seconds:.1f} samples/s on {options.device}"
    )
