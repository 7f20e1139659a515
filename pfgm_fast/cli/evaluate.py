"""pfgm-fast evaluate: how good a run's samples are."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from pfgm_fast.cli.networks import add_network, cache_of, config_of, trained
from pfgm_fast.cli.options import add_device, add_sampling, device, positive
from pfgm_fast.cli.sample import draw
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.world import world

OF_A_STREAM = 10_000
"""Images, spread evenly, by which a stream's run is judged."""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure the quality of a trained run's samples",
        description="Energy distance, sliced Wasserstein distance and nearest neighbours of the samples against the run's data; for "
        "labelled data the Fréchet distance, precision and recall in the features of a classifier trained on them (cached in the "
        "run's folder, where it can be written); with --inception, FID and Inception score.",
    )
    command.add_argument(
        "--inception",
        type=Path,
        metavar="WEIGHTS",
        help="Inception weights of torch-fidelity (the extra fid), a local file",
    )
    add_network(command)
    command.add_argument("--data", help="other data than the run's, such as a test set")
    command.add_argument(
        "--likelihood", type=positive, metavar="N", help="bits per dimension of N images of the data"
    )
    command.add_argument(
        "--probes", type=positive, default=1, help="of the divergence's estimate (default 1)"
    )
    command.add_argument(
        "--invert", type=positive, metavar="N", help="error of data → prior → data for N images of the data"
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="rtol and atol of the adaptive solver of --likelihood and --invert (default 1e-4)",
    )
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of what is computed of the data once (default: cache in the run's)",
    )
    command.add_argument("--json", type=Path, help="write the figures there too")
    add_sampling(command, 512)
    add_device(command)
    command.set_defaults(run=run, shares=True, labels=None, temperature=1.0, interpolate=None)


def run(options: argparse.Namespace) -> None:
    import json

    import torch

    from pfgm_fast.files import writable, write_beside
    from pfgm_fast.metrics import (
        check_counts,
        check_inception,
        energy_distance,
        frechet_distance,
        inception_metrics,
        nearest_neighbors,
        precision_recall,
        sliced_wasserstein,
    )
    from pfgm_fast.metrics.features import cached_classifier, cached_features, features_of
    from pfgm_fast.plots import to_bytes

    config = config_of(options)
    found = data_of(options, config)
    if found.labels is not None:
        check_counts(options.count, len(found))
    if options.inception is not None:
        check_inception(found.shape[0], options.inception)
    if options.json is not None:
        writable(options.json)
    images, evaluations, seconds, _ = draw(options)
    likelihood = likelihood_figures(options, found) if options.likelihood else {}
    if images is None:  # the figures are the writer's
        return
    cache = cache_of(options)
    real = found.charges().values()
    neighbors = nearest_neighbors(images, real)
    figures = {
        "samples": len(images),
        "solver": options.solver,
        **({} if options.clip_denoised is None else {"clip_denoised": options.clip_denoised}),
        "evaluations": evaluations,
        "samples_per_second": len(images) / seconds,
        "energy_distance": energy_distance(images, real),
        "sliced_wasserstein": sliced_wasserstein(images, real),
        "nearest_neighbor_ratio": neighbors.ratio,
    }
    if found.labels is not None:
        net = cached_classifier(found, cache)
        features = features_of(net, images.clamp(-1, 1))
        data_features = cached_features(net, found, cache)
        figures["frechet_classifier"] = frechet_distance(features, data_features)
        figures["precision"], figures["recall"] = precision_recall(features, data_features)
    if options.inception:
        drawn, data_pixels = (torch.from_numpy(to_bytes(part)).permute(0, 3, 1, 2) for part in (images, real))
        figures |= inception_metrics(drawn, data_pixels, options.inception, cache)
    figures |= likelihood
    if options.invert:
        figures |= inversion_figures(options, found)
    for name, value in figures.items():
        print(f"{name:<24} {value:.4g}" if isinstance(value, float) else f"{name:<24} {value}")
    if options.json:
        write_beside(options.json, json.dumps(figures, indent=2).encode())


def data_of(options: argparse.Namespace, config: Any) -> Any:
    """The images that samples are compared with: --data, or the run's own, which must be what it was trained on.

    Raises: CheckpointError where the run's data have changed since, ArgumentError for images of another shape than the network's.
    """
    from pfgm_fast import data
    from pfgm_fast.training.config import image_shape

    if options.data is None and not config.data:
        raise ArgumentError(f"{options.run_folder} holds no data: name what to compare with by --data")
    found: Any
    if options.data is not None:
        found = data.load(options.data, config.size, **config.reading)
    else:
        found = config.images()
    known = config.dataset
    if options.data is None and known is not None and found.digest != known.digest:
        raise CheckpointError(
            f"the data at {config.data} are no longer what {options.run_folder} was trained on ({known.description}), "
            f"but {found.describe()}: name the images to compare with by --data"
        )
    if isinstance(found, data.ImageStream):
        found = found.sample(OF_A_STREAM)
    if found.shape != image_shape(config.network):
        raise ArgumentError(
            f"the run is of images of {'×'.join(map(str, image_shape(config.network)))}, "
            f"{found.name} has {'×'.join(map(str, found.shape))}"
        )
    return found


def some_images(options: argparse.Namespace, images: Any, count: int) -> tuple[Any, Any]:
    """`count` images (count, C, H, W) uint8 drawn by --seed, or all of fewer; their labels where the run is conditional."""
    import torch

    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.randperm(len(images), generator=generator)[:count]
    _, _, config = trained(options)
    labels = images.labels[rows].to(device(options)) if config.train.conditional else None
    return images.images[rows].to(device(options)), labels


def likelihood_figures(options: argparse.Namespace, images: Any) -> dict[str, Any]:
    """Bits per dimension of N images, their standard error, and the evaluations of the network that they took; under torchrun the writer's
    alone, of batches that are shared out."""
    import torch

    from pfgm_fast.likelihood import bits_per_dim
    from pfgm_fast.seeds import image_seeds

    net, method, _ = trained(options)
    pixels, labels = some_images(options, images, options.likelihood)
    here = world()

    def one(k: int) -> tuple[Any, int]:
        first = k * options.batch
        part = slice(first, first + options.batch)
        draws = torch.Generator(device(options)).manual_seed(image_seeds(options.seed, 1, first)[0])
        found = bits_per_dim(
            net,
            pixels[part],
            method,
            probes=options.probes,
            labels=None if labels is None else labels[part],
            generator=draws,
            rtol=options.tolerance,
            atol=options.tolerance,
            progress=here.writer,
        )
        return found.bits.cpu(), found.nfe

    parts = here.spread(math.ceil(len(pixels) / options.batch), one)
    if parts is None:
        return {}
    bits, evaluations = [b for b, _ in parts], max(nfe for _, nfe in parts)
    every = torch.cat(bits)
    return {
        "bits_per_dim": float(every.mean()),
        "bits_per_dim_standard_error": float(every.std(correction=0)) / len(every) ** 0.5,
        "bits_per_dim_images": len(every),
        "bits_per_dim_evaluations": evaluations,
    }


def inversion_figures(options: argparse.Namespace, images: Any) -> dict[str, Any]:
    """Root mean square and largest error of an image after data → prior → data, values in [−1, 1], and the evaluations."""
    from pfgm_fast.charges import Charges
    from pfgm_fast.latents import round_trip

    net, method, _ = trained(options)
    pixels, labels = some_images(options, images, options.invert)
    values, tolerance = Charges(pixels).values(), options.tolerance
    found = round_trip(net, values, method, labels=labels, rtol=tolerance, atol=tolerance)
    return {
        "inversion_error": float(found.error.square().mean().sqrt()),
        "inversion_error_largest": float(found.error.max()),
        "inversion_evaluations": found.nfe,
    }
