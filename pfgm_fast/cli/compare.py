"""pfgm-fast compare: PFGM and PFGM++ against diffusion, trained on the same network, data and budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pfgm_fast.cli.options import add_device, device, positive
from pfgm_fast.precision import PRECISIONS


def add(commands: Any) -> None:
    from pfgm_fast.studies.exact import METHODS

    command = commands.add_parser(
        "compare",
        help="PFGM and PFGM++ against diffusion, trained: same network, data and budget; a page with three verdicts",
        description="Trains a network a method and seed (and weaker ones) on labelled images, checks that each method's samplers agree, "
        "samples over solvers and numbers of evaluations, and writes report.md with its pictures. Says at its start how long it "
        "will take; may be stopped: the same command goes on.",
    )
    command.add_argument("--data", required=True, help="labelled images, as for train")
    command.add_argument("--size", help="images are resized to this, N or HxW (MNIST on a CPU: 16)")
    command.add_argument("--out", type=Path, required=True, help="folder of the runs and the report")
    command.add_argument(
        "--plan",
        choices=("digits", "mnist", "cifar10"),
        help="network, updates and samples (default: by the images' size; cifar10 is for a GPU)",
    )
    command.add_argument("--methods", nargs="+", choices=METHODS, help="default: the plan's")
    command.add_argument("--seeds", type=positive, help="networks of each kind (default: the plan's, 3)")
    command.add_argument(
        "--steps", type=positive, help="training updates of each strong model (default: the plan's)"
    )
    command.add_argument(
        "--width", type=positive, help="features of the strong network (default: the plan's)"
    )
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the networks, trained and sampled (default: the plan's)",
    )
    command.add_argument("--samples", type=positive, help="drawn for each point (default: the plan's)")
    command.add_argument(
        "--studies",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders of `study exact` and `study errors`, whose findings the page takes in",
    )
    command.add_argument("--page", action="store_true", help="write the page from what stands, and no more")
    command.add_argument("--estimate", action="store_true", help="say how long it will take, and no more")
    add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from pfgm_fast import compare, data
    from pfgm_fast.extras import wanted
    from pfgm_fast.training.watch import duration

    wanted("matplotlib", "the report's figures need")  # not after hours
    images = data.load(options.data, options.size)
    name = options.plan or compare.plan_for(images)
    given: dict[str, Any] = {
        key: getattr(options, key)
        for key in ("steps", "width", "precision", "samples")
        if getattr(options, key) is not None
    }
    if options.methods:
        given["methods"] = tuple(options.methods)
    if options.seeds:
        given["seeds"] = tuple(range(options.seeds))
    plan = replace(compare.PLANS[name], **given)

    def page(results: list[compare.Result]) -> Path:
        chosen = {**given, "size": options.size, "plan": options.plan, "seeds": options.seeds}
        chosen["methods"] = " ".join(options.methods or ())
        said = "".join(f" --{key} {value}" for key, value in chosen.items() if value)
        command = f"pfgm-fast compare --data {Path(options.data).name}{said} --out {options.out}"
        return compare.write_report(plan, results, images.name, options.out, options.studies, command)

    comparison = compare.Comparison(plan, images, options.data, options.out, device(options))
    if options.page:
        print(page(comparison.results()))
        return
    training, sampling = comparison.costs().of(plan)
    print(
        f"{images.describe()}\nplan {name}: {len(plan.models())} networks, {sum(len(list(plan.points(m))) for m in plan.models())} points "
        f"of {plan.samples} samples\nin all about {duration(training)} of training and {duration(sampling)} of sampling and measuring on this machine, as busy as it is now",
        flush=True,
    )
    if options.estimate:
        return

    print(page(comparison.run(page)))
