"""Options that several subcommands share."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from pfgm_fast.errors import ArgumentError
from pfgm_fast.precision import PRECISIONS
from pfgm_fast.training import RunConfig, settings
from pfgm_fast.training.settings import merged as merged
from pfgm_fast.world import launched, local_rank


def add_device(command: argparse.ArgumentParser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    command.add_argument("--device", default=default, help=f"cpu, cuda or cuda:N (here: {default})")


def add_sampling(command: argparse.ArgumentParser, count: int, steps: int = 100) -> None:
    from pfgm_fast.flows import RULES
    from pfgm_fast.solvers import SOLVERS

    command.add_argument("--count", type=positive, default=count, help=f"samples to draw (default {count})")
    command.add_argument("--solver", default="euler", choices=list(SOLVERS), help="default euler")
    command.add_argument(
        "--steps", type=positive, default=steps, help=f"steps of the solver (default {steps})"
    )
    command.add_argument(
        "--clip-denoised",
        choices=list(RULES),
        help="what is done to the denoised image in every step: box holds its values to [-1, 1], dynamic is dynamic thresholding "
        "(default: nothing beyond what the method holds)",
    )
    command.add_argument("--batch", type=positive, default=256, help="samples at a time (default 256)")
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the network; auto: bfloat16 where the device has units for it (default float32)",
    )
    command.add_argument(
        "--ema", type=int, default=0, help="which average of the weights; -1: the weights themselves"
    )
    command.add_argument(
        "--snapshot", type=positive, metavar="STEP", help="the checkpoint of this step (default: the newest)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the draws from the prior (default 0)")


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number ≥ 1, not {text!r}")
    return value


def device(options: argparse.Namespace) -> torch.device:
    try:
        found = torch.device(options.device)
    except RuntimeError as error:
        raise ArgumentError(f"--device {options.device}: {error}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: PyTorch sees no CUDA device here (see `pfgm-fast info`)")
    if found.type == "cuda" and found.index is None and launched().size > 1:
        return torch.device("cuda", local_rank())
    return found


def assignments(pairs: list[str], base: dict[str, Any] | None = None) -> dict[str, Any]:
    """`a.b=value` strings → {"a": {"b": value}}, each value of its setting's type in `RunConfig`. base: what they are laid over."""
    return settings.assignments(RunConfig, pairs, base)


FIGURES = "the study's figures need"


def described(images: Any, charges: Any) -> str:
    """A data set in a line, for the head of a study's page."""
    return f"{images.name}, {len(charges)} charges of {charges.dim} values"
