"""pfgm-fast study robustness: noise in the steps, weights of few bits, fewer steps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import FIGURES, add_device, described, device, positive
from pfgm_fast.errors import ArgumentError


def add(studies: Any) -> None:
    from pfgm_fast.cli.networks import size
    from pfgm_fast.sampling import NOISE_KINDS
    from pfgm_fast.studies.exact import METHODS
    from pfgm_fast.studies.robustness import RobustnessPlan

    command, plan = (
        studies.add_parser(
            "robustness",
            help="how quality falls with noise in the steps, weights of few bits, and fewer steps",
            description="The robustness experiments of the PFGM++ paper on trained networks (--runs), or on the exact field of the data. Writes "
            "robustness.md, .json and .png; can be stopped, and goes on.",
        ),
        RobustnessPlan(),
    )
    many: dict[str, Any] = {"nargs": "*"}
    command.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of `pfgm-fast train` or checkpoints of other programs, on the same data (default: the exact field)",
    )
    command.add_argument(
        "--image-size", type=size, metavar="N|HxW", help="of checkpoints that do not tell it"
    )
    command.add_argument("--data", help="digits, or a path to images (default: the runs' own; digits)")
    command.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help="of the exact field (default: PFGM, PFGM++ with D = 1, 128, 2048, EDM)",
    )
    command.add_argument(
        "--noise",
        type=float,
        **many,
        metavar="A",
        help=f"α of the noise after each step (default {_list(plan.noise)})",
    )
    command.add_argument(
        "--noise-kinds",
        **many,
        choices=NOISE_KINDS,
        help="kernel: the method's own perturbation; gaussian: as the authors' script (default: both)",
    )
    command.add_argument(
        "--bits",
        type=positive,
        **many,
        metavar="N",
        help=f"bits of the networks' weights (default {_list(plan.bits)})",
    )
    command.add_argument(
        "--everywhere", action="store_true", help="quantise the convolutions at full resolution too"
    )
    command.add_argument(
        "--steps",
        type=positive,
        nargs="+",
        metavar="N",
        help=f"of the solver; the other knobs are turned at the most of them (default {_list(plan.steps)})",
    )
    command.add_argument(
        "--solver", default=plan.solver, choices=["euler", "heun"], help=f"default {plan.solver}"
    )
    command.add_argument(
        "--samples", type=positive, default=plan.samples, help=f"a point and seed (default {plan.samples})"
    )
    command.add_argument(
        "--seeds",
        type=positive,
        default=len(plan.seeds),
        help=f"independent repetitions (default {len(plan.seeds)})",
    )
    command.add_argument(
        "--batch", type=positive, default=plan.batch, help=f"samples at a time (default {plan.batch})"
    )
    command.add_argument(
        "--ema", type=int, default=0, help="which average of a run's weights; -1: the weights themselves"
    )
    command.add_argument("--out", type=Path, default=Path("out/study"), help="folder (default out/study)")
    add_device(command)
    command.set_defaults(run=run, shares=True, snapshot=None)


def _list(values: Any) -> str:
    return " ".join(f"{value:g}" for value in values)


def run(options: argparse.Namespace) -> None:
    from pfgm_fast.extras import wanted
    from pfgm_fast.studies.quantized import quantized
    from pfgm_fast.studies.robustness import RobustnessPlan, RobustnessStudy
    from pfgm_fast.studies.robustness_page import write_robustness

    wanted("matplotlib", FIGURES)
    names = ("noise", "noise_kinds", "bits", "steps")
    given = {n: tuple(getattr(options, n)) for n in names if getattr(options, n) is not None}
    plan = RobustnessPlan(
        everywhere=options.everywhere,
        solver=options.solver,
        samples=options.samples,
        seeds=tuple(range(options.seeds)),
        batch=options.batch,
        **given,
    )
    images, subjects = _of_runs(options) if options.runs else _of_field(options)
    shares = {s.key: quantized(s.net, 8, plan.everywhere).share for s in subjects if s.weighty and plan.bits}
    study = RobustnessStudy(images, subjects, plan, options.out, device(options))
    points = study.run()
    if points is None:
        return
    kind = "trained networks" if options.runs else "the exact field"
    write_robustness(
        options.out, points, plan, subjects, f"{kind} of {described(images, study.charges)}", shares
    )
    print((options.out / "robustness.md").read_text())
    print(f"in {options.out}: robustness.md, robustness.json, robustness.png, and the points")


def _of_field(options: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The data, and their exact field for each method."""
    from pfgm_fast import data
    from pfgm_fast.studies.claims import TITLES
    from pfgm_fast.studies.exact import make
    from pfgm_fast.studies.robustness import Subject

    images = data.load(options.data or "digits")
    charges = images.charges().to(device(options))
    names = options.methods or ("pfgm", "pfgmpp-1", "pfgmpp-128", "pfgmpp-2048", "edm")
    return images, [Subject(name, TITLES[name], make(name, charges), charges) for name in names]


def _of_runs(options: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The runs' data, which must be the same for all, and their networks."""
    from dataclasses import replace

    from pfgm_fast.cli.evaluate import data_of
    from pfgm_fast.cli.networks import config_of, trained
    from pfgm_fast.metrics.features import digest
    from pfgm_fast.studies.robustness import Subject, title_of

    if options.methods:
        raise ArgumentError("--methods are of the exact field; a run has its own")
    images, subjects = None, []
    for path in options.runs:
        own = argparse.Namespace(**{**vars(options), "run_folder": path})
        own.image_size = options.image_size if path.is_file() else None
        found = data_of(own, config_of(own))
        if images is not None and found.digest != images.digest:
            raise ArgumentError(
                f"{path} is of other data than {options.runs[0]}: {found.name}, not {images.name}"
            )
        images = images or found
        net, method, config = trained(own)
        name = path.resolve().name
        labels = images.labels if config.train.conditional else None
        if config.train.conditional and labels is None:
            raise ArgumentError(
                f"{path} is conditional, and {images.name} has no labels: name labelled images by --data"
            )
        weights = digest(
            *net.state_dict().values()
        )  # points of a run that has gone on since are other points
        subjects.append(Subject(f"{name}-{weights[:8]}", title_of(method), method, net, labels))
    titles = [subject.title for subject in subjects]
    return images, [
        replace(s, title=f"{s.title}, {path.resolve().name}") if titles.count(s.title) > 1 else s
        for s, path in zip(subjects, options.runs, strict=True)
    ]
