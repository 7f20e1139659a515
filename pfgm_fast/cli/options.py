"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from pfgm_fast.errors import ArgumentError


def add_device(command: argparse.ArgumentParser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    command.add_argument("--device", default=default, help=f"cpu, cuda or cuda:N (here: {default})")


def add_sampling(command: argparse.ArgumentParser, count: int, steps: int = 100) -> None:
    from pfgm_fast.solvers import SOLVERS

    command.add_argument("--count", type=positive, default=count, help=f"samples to draw (default {count})")
    command.add_argument("--solver", default="euler", choices=list(SOLVERS), help="default euler")
    command.add_argument(
        "--steps", type=positive, default=steps, help=f"steps of the solver (default {steps})"
    )
    command.add_argument("--batch", type=positive, default=256, help="samples at a time (default 256)")
    command.add_argument(
        "--ema", type=int, default=0, help="which average of the weights; -1: the weights themselves"
    )
    command.add_argument(
        "--snapshot", type=positive, metavar="STEP", help="the checkpoint of this step (default: the newest)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the draws from the prior (default 0)")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be ≥ 1, not {value}")
    return value


def device(options: argparse.Namespace) -> torch.device:
    try:
        found = torch.device(options.device)
    except RuntimeError as error:
        raise ArgumentError(f"--device {options.device}: {error}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: PyTorch sees no CUDA device here (see `pfgm-fast info`)")
    return found


def assignments(pairs: list[str]) -> dict[str, Any]:
    """`a.b=value` strings → {"a": {"b": value}}; values are JSON, or else plain text."""
    result: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ArgumentError(f"--set takes name=value, such as train.lr=1e-4; got {pair!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        place = result
        *outer, last = name.split(".")
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
    return result


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """base with changes laid over it, level by level."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(out[key] or {}, value) if isinstance(value, dict) and key in out else value
    return out
