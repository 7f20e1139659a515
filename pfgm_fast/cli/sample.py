"""pfgm-fast sample: draw images from a run's network."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from pfgm_fast.cli.networks import add_network, trained
from pfgm_fast.cli.options import add_device, add_sampling, device, positive
from pfgm_fast.errors import ArgumentError, NonFiniteError
from pfgm_fast.world import world


def add(commands: Any) -> None:
    command = commands.add_parser("sample", help="draw images from a trained run")
    add_network(command)
    command.add_argument(
        "--out",
        type=Path,
        help=".png (a grid) or .npz (bytes, all of them); default samples.png, none with --images",
    )
    command.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="one PNG a sample, as programs that compute FID take them: DIR/seedS-NNNNNN.png of --seed S",
    )
    command.add_argument(
        "--labels",
        type=classes,
        metavar="K[,K…]",
        help="classes to draw, in turn, by number or name, where the run is conditional (default: all of them in turn)",
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
    command.set_defaults(run=run, shares=True)


def classes(text: str) -> list[str]:
    """ "3, cat" → ["3", "cat"]: numbers or names of classes."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(
            f"must be numbers or names of classes, with commas between; got {text!r}"
        )
    return found


def draw(options: argparse.Namespace) -> tuple[Any, int, float, Any]:
    """(images (count, C, H, W) on the CPU, evaluations of the network a sample, seconds, the run's config).

    Under torchrun the batches are shared out; the writer has the images, the other ranks None in their place.
    """
    import time

    import torch

    from pfgm_fast.precision import network_precision
    from pfgm_fast.sampling import sample
    from pfgm_fast.seeds import image_seeds
    from pfgm_fast.training.config import image_shape

    net, method, config = trained(options)
    network = config.network
    shape = image_shape(network)
    where = device(options)
    labels = _labels(options.labels, config, options.count)
    starts, total = None, options.count
    if options.interpolate:
        starts = _rows(method, shape, options, torch.Generator(where).manual_seed(options.seed))
        total = len(starts)
        labels = None if labels is None else labels.repeat_interleave(options.interpolate)
    here, began = world(), time.perf_counter()
    batch = options.batch
    if options.solver != "rk45":  # whose steps are common to a batch, which must then not depend on the ranks
        batch = min(batch, math.ceil(total / here.size))

    def one(k: int) -> tuple[Any, int]:
        first = k * batch
        part = slice(first, min(first + batch, total))
        with network_precision(options.precision, where):
            out = sample(
                net,
                (part.stop - first, *shape),
                options.solver,
                options.steps,
                x0=None if starts is None else starts[part],
                seeds=image_seeds(options.seed, part.stop - first, first),  # whatever --batch is
                method=method,
                labels=None if labels is None else labels[part].to(where),
                temperature=options.temperature,
                clip_denoised=options.clip_denoised,
                progress=here.writer,
            )
        return out.x.cpu(), out.nfe

    parts = here.spread(math.ceil(total / batch), one)
    if parts is None:
        return None, 0, time.perf_counter() - began, config
    drawn, evaluations = torch.cat([x for x, _ in parts]), max(nfe for _, nfe in parts)
    _refuse_nonfinite(drawn, options)
    return drawn, evaluations, time.perf_counter() - began, config


def _refuse_nonfinite(drawn: Any, options: argparse.Namespace) -> None:
    """Raises: NonFiniteError with the number of samples (count, C, H, W) that are not finite."""
    bad = int((~drawn.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of {len(drawn)} samples of {options.run_folder} are not finite, nothing is written: try another --solver "
            f"or more --steps (now {options.solver}, {options.steps}), another --ema, or an earlier --snapshot"
        )


def _labels(wanted: list[str] | None, config: Any, rows: int) -> Any:
    """(rows,) classes in turn, or None where the run is unconditional. wanted: numbers or names."""
    import torch

    count = config.network.classes if config.train.conditional else 0
    names = config.dataset.classes if config.dataset is not None else ()
    if wanted is None and not count:
        return None
    if wanted is not None and not count:
        raise ArgumentError(
            "--labels must be in [0, 0) for this run: it is unconditional and knows no classes"
        )
    numbers = range(count) if wanted is None else [_label(word, count, names) for word in wanted]
    turn = torch.tensor(list(numbers))
    return turn[torch.arange(rows) % len(turn)]


def _label(word: str, count: int, names: tuple[str, ...]) -> int:
    if word in names:
        return names.index(word)
    try:
        number = int(word)
    except ValueError:
        number = -1
    if not 0 <= number < count:
        known = f", or one of {', '.join(names)}" if names else ""
        raise ArgumentError(f"--labels must be in [0, {count}) for this run{known}; got {word}")
    return number


def _rows(method: Any, shape: tuple[int, ...], options: argparse.Namespace, generator: Any) -> Any:
    """Latents (count · K, *shape): rows of K from one draw of the prior to another."""
    from pfgm_fast.latents import interpolate

    if options.interpolate < 2:
        raise ArgumentError(f"--interpolate takes 2 images a row or more; got {options.interpolate}")
    ends = method.prior((2 * options.count, *shape), device=generator.device, generator=generator)
    way = interpolate(ends[: options.count], ends[options.count :], options.interpolate)
    return way.transpose(0, 1).flatten(0, 1)


def run(options: argparse.Namespace) -> None:
    from pfgm_fast.files import writable

    out = options.out
    if out is None and options.images is None:
        out = Path("samples.png")
    if out is not None and out.suffix not in (".png", ".npz"):
        raise ArgumentError(f"--out must end in .png or .npz; got {out}")
    if out is not None:
        writable(out)
    if options.images is not None:
        writable(options.images / _name(options.seed, 0))
    images, evaluations, seconds, _ = draw(options)
    if images is None:
        return
    if out is not None:
        _write(images, out, options.interpolate)
    if options.images is not None:
        _write_each(images, options.images, options.seed)
    print(
        f"{' and '.join(str(place) for place in (out, options.images) if place is not None)}: {len(images)} samples, "
        f"{evaluations} evaluations each, {len(images) / seconds:.1f} samples/s on {options.device}"
    )


def _write(images: Any, out: Path, columns: int | None) -> None:
    """A grid (.png), or the bytes of all (.npz)."""
    import numpy as np

    from pfgm_fast.files import beside
    from pfgm_fast.plots import image_grid, save_image

    if out.suffix == ".png":
        save_image(image_grid(images, columns), out)
        return
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    with beside(out) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=pixels)


def _write_each(images: Any, folder: Path, seed: int) -> None:
    """One picture a sample."""
    from pfgm_fast.plots import save_image, to_bytes

    for i, picture in enumerate(to_bytes(images)):
        save_image(picture, folder / _name(seed, i))


def _name(seed: int, number: int) -> str:
    return f"seed{seed}-{number:06d}.png"
