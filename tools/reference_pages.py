"""Writes docs/settings.md and docs/command-line.md from the dataclasses and the parser: `python -m tools.reference_pages`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from pfgm_fast.cli import parser
from pfgm_fast.methods import METHODS
from pfgm_fast.nn import UNetConfig
from pfgm_fast.training.config import RunConfig, TrainConfig
from pfgm_fast.training.settings import describe, fields_of

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = "<!-- Made by `python -m tools.reference_pages`; changes belong into the docstrings and the parser. -->\n\n"

UNSAID = {
    "seed": "of the network's weights, the order of the data and every draw",
    "channels_last": "memory layout of the network and its images",
    "compile": "the network goes through `torch.compile`",
    "dropout": "share of features that is dropped in a residual block, in training",
    "beta_min": "β(0)",
    "beta_max": "β(1)",
}
"""What the docstrings leave to the name."""


def meanings(kind: type, names: list[str]) -> dict[str, str]:
    """name → what the docstrings of a dataclass and its bases say after "name: " or "name, other: ", up to the next such heading."""
    out: dict[str, str] = {}
    any_name = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    heading = re.compile(rf"(?:^|(?<=[.;:)] ))((?:{any_name})(?:, (?:{any_name}))*): ")
    for base in kind.__mro__:
        text = " ".join((base.__dict__.get("__doc__") or "").split())
        text = re.split(r" Raises: ", text)[0]
        found = list(heading.finditer(text))
        for this, following in zip(found, [*found, None][1:], strict=True):
            said = text[this.end() : following.start() if following else len(text)].strip()
            for name in this[1].split(", "):
                out.setdefault(name, said)
        for name in names:
            sentence = re.search(rf"[^.]*(?<![a-zA-Z_]){name}(?![a-zA-Z_])[^.]*\.(?=\s|$)", text)
            if sentence and name not in UNSAID:
                out.setdefault(name, sentence[0].strip())
    return {**{name: said for name, said in UNSAID.items() if name in names}, **out}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(kind: Any, prefix: str) -> str:
    hints = fields_of(kind)
    said = meanings(kind, list(hints))
    rows = ["| name | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if not field.init or dataclasses.is_dataclass(hints[field.name]):
            continue
        needed = field.default is dataclasses.MISSING
        default = "needed" if needed else "`inf`" if field.default == math.inf else f"`{field.default}`"
        meaning = _cell(said.get(field.name, ""))
        rows.append(
            f"| `{prefix}{field.name}` | {_cell(describe(hints[field.name]))} | {default} | {meaning} |"
        )
    return "\n".join(rows) + "\n"


def settings_page() -> str:
    parts = [
        HEAD + "# Settings\n",
        "Every setting of a run, as `--set NAME=VALUE`, `--config FILE` and `config.json` take it. [Runs](runs.md) says how they are read.\n",
        "## The run\n\n" + table(RunConfig, ""),
        "## `train`\n\n" + table(TrainConfig, "train."),
        "## `network`\n\n" + table(UNetConfig, "network."),
    ]
    for name, kind in METHODS.items():
        parts.append(
            f"## `method.name={name}`\n\n{' '.join((kind.__doc__ or '').split(' Args:')[0].split())}\n\n{table(kind, 'method.')}"
        )
    return "\n".join(parts)


def _subcommands(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    groups = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: command for group in groups for name, command in group.choices.items()}


def _command(of: argparse.ArgumentParser, title: str, level: int) -> str:
    parts = [f"{'#' * level} `{title}`\n", (of.description or "").strip() + "\n"]
    rows = []
    for action in of._actions:
        if isinstance(action, (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)):
            continue
        value = action.metavar or (
            "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
        )
        name = ", ".join(action.option_strings) or action.dest
        shown = f"{name} {value}" if action.option_strings and action.nargs != 0 else name
        said = (action.help or "") % {"default": action.default, "prog": of.prog}
        said = re.sub(r" \(here: .*\)", "", said)  # what is here is not so elsewhere
        rows.append(f"| `{_cell(shown)}` | {_cell(said)} |")
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]) + "\n")
    parts += [
        _command(below, f"{title} {name}", min(level + 1, 4)) for name, below in _subcommands(of).items()
    ]
    return "\n".join(parts)


def command_page() -> str:
    top = parser()
    return (
        HEAD
        + "# Command line\n\n"
        + "`python -m pfgm_fast` is the same.\n\n"
        + "\n".join(_command(command, f"pfgm-fast {name}", 2) for name, command in _subcommands(top).items())
    )


PAGES = {"settings.md": settings_page, "command-line.md": command_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
