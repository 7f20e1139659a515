"""pfgm-fast study: what a data set's exact field says, and how robust a sampler is. One sub-command a study."""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pfgm_fast.cli import robustness
from pfgm_fast.cli.options import FIGURES, add_device, described, device, positive
from pfgm_fast.errors import ArgumentError
from pfgm_fast.world import world


def add(commands: Any) -> None:
    command = commands.add_parser(
        "study",
        help="what a data set's exact field says, without a network; how robust a network's sampler is",
        description="Studies of the exact field of a data set: no network, no training; and of the robustness of networks beside it.",
    )
    studies = command.add_subparsers(dest="study", required=True, metavar="study")
    _add_optimal_loss(studies)
    _add_memorization(studies)
    _add_exact(studies)
    _add_errors(studies)
    robustness.add(studies)


def aug_dim(text: str) -> float:
    """D from the command line: a number > 0, or inf."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"D must be a number > 0, or inf; got {text!r}")
    return value


def _add_optimal_loss(studies: Any) -> None:
    command = studies.add_parser(
        "optimal-loss",
        help="the loss of a perfect network over sigma and D",
        description="The mean squared error of the ideal denoiser at each noise level, with error bars: the floor below every training "
        "curve on these data. Writes optimal-loss.json, .md and .png; can be stopped, and goes on.",
    )
    command.add_argument("--data", default="digits", help="digits, or a path to images (default digits)")
    command.add_argument("--size", type=positive, help="images of a folder or zip are resized to this")
    command.add_argument(
        "--aug-dim",
        type=aug_dim,
        nargs="+",
        default=[1, 128, 2048, math.inf],
        metavar="D",
        help="default 1 128 2048 inf",
    )
    command.add_argument(
        "--points", type=positive, default=20, help="values of sigma, log-spaced (default 20)"
    )
    command.add_argument("--sigma-min", type=float, default=0.02, help="default 0.02")
    command.add_argument("--sigma-max", type=float, default=80.0, help="default 80")
    command.add_argument(
        "--queries", type=positive, default=1024, help="images for each point (default 1024)"
    )
    command.add_argument("--per-class", action="store_true", help="each image sees the charges of its class")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, default=Path("out/study"), help="folder (default out/study)")
    add_device(command)
    command.set_defaults(run=run_optimal_loss, shares=True)


def run_optimal_loss(options: argparse.Namespace) -> None:
    from pfgm_fast import data
    from pfgm_fast.extras import wanted
    from pfgm_fast.studies import optimal_loss
    from pfgm_fast.studies.optimal_loss import OptimalLoss
    from pfgm_fast.studies.points import PointFile
    from pfgm_fast.studies.report import write_optimal_loss

    wanted("matplotlib", FIGURES)
    if not 0 < options.sigma_min < options.sigma_max:
        raise ArgumentError(
            f"--sigma-min must be > 0 and < --sigma-max; got {options.sigma_min}, {options.sigma_max}"
        )
    images = data.load(options.data, options.size)
    charges = images.charges(labels=options.per_class).to(device(options))
    ratio = math.log(options.sigma_max / options.sigma_min) / max(1, options.points - 1)
    sigmas = [options.sigma_min * math.exp(ratio * i) for i in range(options.points)]
    todo, here = list(itertools.product(options.aug_dim, sigmas)), world()
    kept = PointFile(options.out / f"optimal-loss-{images.digest[:12]}.jsonl", OptimalLoss.from_dict)
    here.wait()  # every rank has read the file to which all append from here on

    def one(k: int) -> OptimalLoss:
        dim, sigma = todo[k]
        asked = {"queries": options.queries, "conditional": options.per_class, "seed": options.seed}
        return optimal_loss(charges, [sigma], [dim], points=kept, **asked)[0]

    with tqdm(total=len(todo), unit="point", disable=not here.writer) as bar:
        results = here.spread(len(todo), lambda k: (one(k), bar.update(min(here.size, len(todo) - k)))[0])
    if results is None:
        return
    sigma_data = math.sqrt(float(charges.sq_norms.mean()) / charges.dim)
    what = (
        f"{images.name} ({len(charges)} charges of {charges.dim}{', per class' if options.per_class else ''})"
    )
    write_optimal_loss(results, options.out, what, sigma_data)
    print((options.out / "optimal-loss.md").read_text())
    print(f"in {options.out}: optimal-loss.json, optimal-loss.md, optimal-loss.png")


def _add_memorization(studies: Any) -> None:
    command = studies.add_parser(
        "memorization",
        help="which of a set of samples are copies of the data",
        description="For each sample the distance to its nearest training image over that to the next different one: below a third it "
        "is called a copy.",
    )
    command.add_argument("samples", help="samples: a folder or zip of images, .npz or .npy")
    command.add_argument("--data", required=True, help="the training data")
    command.add_argument("--threshold", type=float, default=1 / 3, help="default 1/3")
    command.add_argument("--json", type=Path, help="ratio, nearest image and distance of each sample, there")
    add_device(command)
    command.set_defaults(run=run_memorization, shares=True)


def run_memorization(options: argparse.Namespace) -> None:
    import json

    from pfgm_fast import data
    from pfgm_fast.files import write_beside
    from pfgm_fast.studies import memorization
    from pfgm_fast.studies.memorization import joined

    where = device(options)
    charges = data.load(options.data).charges().to(where)
    samples = data.load(options.samples).charges().to(where).values()
    here = world()
    part = memorization(samples[here.share(len(samples))], charges, options.threshold)
    every = here.spread(here.size, lambda k: part)  # rank k's is the k-th
    if every is None:
        return
    found = joined(every)
    quartiles = found.ratio.quantile(found.ratio.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
    print(f"samples        {len(samples)}, data {len(charges)}")
    print(
        f"copies         {int(found.copies.sum())} ({found.fraction:.2%}), ratio below {options.threshold:.3g}"
    )
    print("ratio          " + ", ".join(f"{q:.3f}" for q in quartiles) + " (least, quartiles, largest)")
    if options.json:
        columns = zip(found.ratio.tolist(), found.nearest.tolist(), found.distance.tolist(), strict=True)
        rows = [{"ratio": a, "nearest": b, "distance": c} for a, b, c in columns]
        write_beside(options.json, json.dumps({"copies": found.fraction, "samples": rows}).encode())


def _add_claim(command: Any) -> None:
    from pfgm_fast.studies.exact import METHODS

    command.add_argument("--data", default="digits", help="digits, or a path to images (default digits)")
    command.add_argument(
        "--methods", nargs="+", choices=METHODS, help="default: by the size of the data, all for the digits"
    )
    command.add_argument(
        "--samples", type=positive, help="a point and seed (default: by the size of the data)"
    )
    command.add_argument(
        "--seeds", type=positive, help="independent repetitions (default: by the size of the data)"
    )
    command.add_argument("--out", type=Path, default=Path("out/study"), help="folder (default out/study)")
    add_device(command)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a plan that the command line changes."""
    fields = {
        "methods": tuple(options.methods or ()),
        "samples": options.samples,
        "seeds": tuple(range(options.seeds or 0)),
    }
    return {name: value for name, value in fields.items() if value}


def _add_exact(studies: Any) -> None:
    command = studies.add_parser(
        "exact",
        help="accuracy against evaluations of every method and sampler",
        description="Every method and sampler with the exact field of the data: how many evaluations each needs, and how an ODE deviates "
        "from its own solution. Under half an hour on two cores: the larger the data, the fewer samples and methods. Writes exact.md with its "
        "pictures; can be stopped, and goes on.",
    )
    _add_claim(command)
    command.set_defaults(run=run_exact, shares=True)


def run_exact(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from pfgm_fast import data
    from pfgm_fast.extras import wanted
    from pfgm_fast.studies.claims import write_exact
    from pfgm_fast.studies.exact import ExactStudy, plan_for

    wanted("matplotlib", FIGURES)
    images = data.load(options.data)
    charges = images.charges().to(device(options))
    plan = replace(plan_for(charges), **_given(options))
    points = ExactStudy(charges, plan, options.out).run()
    if points is None:
        return
    write_exact(options.out, points, described(images, charges), plan.samples)
    print(f"in {options.out}: exact.md, accuracy.png, steps.png, points.jsonl")


def _add_errors(studies: Any) -> None:
    command = studies.add_parser(
        "errors",
        help="how quality falls with an error of known strength in the network",
        description="The exact field as network plus a controlled error, relative to the method's own normalised output: smooth, at right "
        "angles, or of the amplitude. Writes errors.md with its picture; can be stopped, and goes on.",
    )
    _add_claim(command)
    command.set_defaults(run=run_error_study, shares=True)


def run_error_study(options: argparse.Namespace) -> None:
    import time

    from pfgm_fast import data
    from pfgm_fast.extras import wanted
    from pfgm_fast.studies.claims import write_errors
    from pfgm_fast.studies.errors import ErrorPlan, run_errors

    wanted("matplotlib", FIGURES)
    images = data.load(options.data)
    plan = ErrorPlan(**_given(options))
    began = time.perf_counter()
    charges = images.charges().to(device(options))
    points = run_errors(charges, plan, options.out)
    if points is None:
        return
    write_errors(options.out, points, described(images, charges), plan.samples, time.perf_counter() - began)
    print(f"in {options.out}: errors.md, errors.png, errors.jsonl")
