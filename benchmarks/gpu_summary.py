"""summary.md: every part of `make gpu` in one file, with what failed in it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plan_table(parts: Sequence[Any]) -> str:
    lines = ["part        planned  at most"]
    lines += [f"{part.name:<11} {part.planned:5.0f} s  {part.limit:5.0f} s   {part.what}" for part in parts]
    planned, limit = sum(part.planned for part in parts), sum(part.limit for part in parts)
    return "\n".join([*lines, f"{'together':<11} {planned:5.0f} s  {limit:5.0f} s"])


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("$ ")), "")


def json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def sanitizer_verdict(text: str) -> str:
    return next(
        (line.strip("= ") for line in reversed(text.splitlines()) if "SUMMARY" in line), "it gave no summary"
    )


def load(out: Path) -> dict[str, dict[str, Any]]:
    """Part → outcome, of the runs before."""
    try:
        return json.loads((out / "parts.json").read_text())
    except (OSError, ValueError):
        return {}


def write(out: Path, parts: Sequence[Any], outcomes: dict[str, dict[str, Any]], rehearsal: bool) -> None:
    """parts.json, which the next run reads, and summary.md."""
    (out / "parts.json").write_text(json.dumps(outcomes, indent=1))
    lines = ["# What the GPU suite found", ""]
    if rehearsal:
        lines += ["**A rehearsal without a GPU: it shows that the suite runs, and nothing else.**", ""]
    lines += [
        "Planned: estimates for a data-centre GPU. At most: a part's own limit and what earlier ones left over.",
        "",
        "| part | state | seconds | planned | at most | |",
        "|---|---|---|---|---|---|",
    ]
    for part in parts:
        found = outcomes.get(part.name)
        if found is None:
            lines.append(
                f"| {part.name} | not run yet | | {part.planned:.0f} | {part.limit:.0f} | {part.what} |"
            )
        else:
            lines.append(
                f"| {part.name} | {found['state']} | {found['seconds']:.0f} | {part.planned:.0f} "
                f"| {found.get('limit', part.limit):.0f} | {found['what']} |"
            )
    for part in parts:
        found = outcomes.get(part.name)
        if found is not None and found["state"] == "FAILED":
            lines += ["", f"## {part.name}", "", *_failures(out, part.name)]
    for title, file in (
        ("The machine", "machine.log"),
        ("Selftest", "selftest.log"),
        ("Benchmarks", "gpu.md"),
    ):
        path = out / file
        if path.exists():
            text = path.read_text(errors="replace")
            if file == "selftest.log":  # the table at its end
                text = "\n".join(line for line in text.splitlines() if line.startswith("|"))
            table = file != "machine.log"
            lines += ["", f"## {title}", "", *([text] if table else ["```", text.rstrip(), "```"])]
    (out / "summary.md").write_text("\n".join(lines) + "\n")


def _failures(out: Path, name: str) -> list[str]:
    """The failed tests with the error that each ended in; of other parts the end of their log."""
    failed = [line for line in json_lines(out / f"{name}.jsonl") if line["outcome"] == "failed"]
    if failed:
        return [f"- `{line['node']}`: {_error(line.get('text', ''))[:300]}" for line in failed]
    log = out / f"{name}.log"
    text = log.read_text(errors="replace").splitlines()[-30:] if log.exists() else []
    return ["```", *text, "```"]


def _error(text: str) -> str:
    """The last line that pytest marks with E, else the last."""
    lines = [line.strip() for line in text.strip().splitlines()] or [""]
    return next((line[2:].strip() for line in reversed(lines) if line.startswith("E ")), lines[-1])
