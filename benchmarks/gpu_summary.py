"""summary.md: every part of `make gpu` in one file, with what failed in it. Standard library only."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plan_table(stages: Sequence[Sequence[Any]], beside: bool) -> str:
    """A line a part, those that run side by side marked; then the sums, of each stage the longest part's."""
    lines = ["part              planned  at most"]
    for stage in stages:
        for i, part in enumerate(stage):
            mark = (
                "   "
                if not beside or len(stage) == 1
                else " ┐ "
                if i == 0
                else " ┘ "
                if part is stage[-1]
                else " │ "
            )
            lines.append(f"{part.name:<16} {part.planned:6.0f} s {part.limit:6.0f} s {mark}{part.what}")
    over = max if beside else sum
    planned, limit = (
        sum(over(getattr(part, what) for part in stage) for stage in stages) for what in ("planned", "limit")
    )
    how = "side by side where marked" if beside else "one after another"
    return "\n".join([*lines, f"{'together':<16} {planned:6.0f} s {limit:6.0f} s    {how}"])


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


def write(
    out: Path, work: Path, parts: Sequence[Any], outcomes: dict[str, dict[str, Any]], rehearsal: bool
) -> None:
    """Into out: parts.json, which the next run reads, summary.md, and details.zip of all that is in work."""
    (out / "parts.json").write_text(json.dumps(outcomes, indent=1))
    lines = ["# What the GPU suite found", ""]
    if rehearsal:
        lines += ["**A rehearsal without a GPU: it shows that the suite runs, and nothing else.**", ""]
    lines += [
        "Planned: estimates for an NVIDIA H200 with 16 processors. At most: a part's own limit and what earlier ones left over. Beside: how",
        "many other parts ran at the same time. Logs and records are in details.zip.",
        "",
        "| part | state | seconds | planned | at most | beside | |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        found = outcomes.get(part.name)
        if found is None:
            lines.append(
                f"| {part.name} | not run yet | | {part.planned:.0f} | {part.limit:.0f} | | {part.what} |"
            )
        else:
            lines.append(
                f"| {part.name} | {found['state']} | {found['seconds']:.0f} | {part.planned:.0f} "
                f"| {found.get('limit', part.limit):.0f} | {found.get('beside') or ''} | {found['what']} |"
            )
    for part in parts:
        found = outcomes.get(part.name)
        if found is not None and found["state"] == "FAILED":
            lines += ["", f"## {part.name}", "", *_failures(work, part.name)]
    for title, path in (
        ("The machine", work / "machine.log"),
        ("Selftest", work / "selftest.log"),
        ("Selftest of Triton", work / "selftest-triton.log"),
        ("Benchmarks", out / "gpu.md"),
    ):
        if path.exists():
            text = path.read_text(errors="replace")
            if path.name.startswith("selftest"):  # the table at its end
                text = "\n".join(line for line in text.splitlines() if line.startswith("|"))
            table = path.name != "machine.log"
            lines += ["", f"## {title}", "", *([text] if table else ["```", text.rstrip(), "```"])]
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    _pack(work, out / "details.zip")


def _pack(folder: Path, path: Path) -> None:
    """The folder's files in one: a borrowed machine may give back eight."""
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file():
                archive.write(file, file.name)
    partial.replace(path)


def unpack(out: Path, work: Path) -> None:
    """Logs and records of the runs before, which their parts' next run replaces."""
    if (out / "details.zip").exists():
        with zipfile.ZipFile(out / "details.zip") as archive:
            archive.extractall(work)


def _failures(work: Path, name: str) -> list[str]:
    """The failed tests with the error that each ended in; of other parts the end of their log."""
    failed = [line for line in json_lines(work / f"{name}.jsonl") if line["outcome"] == "failed"]
    if failed:
        return [f"- `{line['node']}`: {_error(line.get('text', ''))[:300]}" for line in failed]
    log = work / f"{name}.log"
    text = log.read_text(errors="replace").splitlines()[-30:] if log.exists() else []
    return ["```", *text, "```"]


def _error(text: str) -> str:
    """The last line that pytest marks with E, else the last."""
    lines = [line.strip() for line in text.strip().splitlines()] or [""]
    return next((line[2:].strip() for line in reversed(lines) if line.startswith("E ")), lines[-1])
