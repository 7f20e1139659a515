"""pfgm-fast sample: draw images from a run's network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import add_device, add_sampling, device
from pfgm_fast.errors import ArgumentError


def add(commands: Any) -> None:
    command = commands.add_parser("sample", help="draw images from a trained run")
    command.add_argument("run_folder", type=Path, metavar="run", help="the folder of `pfgm-fast train`")
    command.add_argument(
        "--out", type=Path, default=Path("samples.png"), help=".png (a grid) or .npz (bytes, all of them)"
    )
    command.add_argument("--label", type=int, help="class to draw, where the run is conditional")
    add_sampling(command, 64)
    add_device(command)
    command.set_defaults(run=run)


def draw(options: argparse.Namespace) -> tuple[Any, int, float, Any]:
    """(images (count, C, H, W) on the CPU, evaluations of the network a sample, seconds, the run's config)."""
    import time

    import torch

    from pfgm_fast.sampling import sample
    from pfgm_fast.training import load_network

    where = device(options)
    net, method, config = load_network(options.run_folder, None if options.ema < 0 else options.ema, where)
    network = config.network
    shape = (network.channels, network.image_size, network.image_size)
    label = getattr(options, "label", None)
    if label is not None and not 0 <= label < network.classes:
        raise ArgumentError(f"--label must be in [0, {network.classes}) for this run; got {label}")
    generator = torch.Generator(where).manual_seed(options.seed)
    parts, evaluations, began = [], 0, time.perf_counter()
    for start in range(0, options.count, options.batch):
        count = min(options.batch, options.count - start)
        labels = None
        if label is not None:
            labels = torch.full((count,), label, device=where)
        elif config.train.conditional:
            labels = torch.arange(start, start + count, device=where) % network.classes
        out = sample(
            net,
            (count, *shape),
            options.solver,
            options.steps,
            generator=generator,
            method=method,
            labels=labels,
            progress=True,
        )
        parts.append(out.x.cpu())
        evaluations = max(evaluations, out.nfe)
    return torch.cat(parts), evaluations, time.perf_counter() - began, config


def run(options: argparse.Namespace) -> None:
    import numpy as np

    from pfgm_fast.plots import image_grid, save_image
    from pfgm_fast.training.files import beside

    if options.out.suffix not in (".png", ".npz"):
        raise ArgumentError(f"--out must end in .png or .npz; got {options.out}")
    images, evaluations, seconds, _ = draw(options)
    if options.out.suffix == ".png":
        save_image(image_grid(images), options.out)
    else:
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        with beside(options.out) as partial, partial.open("wb") as file:
            np.savez_compressed(file, images=pixels)
    print(
        f"{options.out}: {len(images)} samples, {evaluations} evaluations each, "
        f"{len(images) / seconds:.1f} samples/s on {options.device}"
    )
