"""What the CPU benchmarks write: one JSON line a measurement, the machine in each, and the Markdown table made of them."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import pfgm_fast as pf
from benchmarks.commit import commit

Row = dict[str, Any]
"""case, data, what; ms, p20, p80, speedup (Gram's time over this one's) and error where they were taken; best, best_peer (the same of the quickest exact peer); bar and aim; note."""


def _cpu() -> str:
    found = Path("/proc/cpuinfo")
    if found.is_file():
        lines = dict(
            line.split(":", 1) for line in found.read_text().split("\n\n")[0].splitlines() if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        sets = [
            s for s in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if s in fields.get("flags", "").split()
        ]
        return f"{fields.get('model name', 'cpu')} ({', '.join(sets)})"
    return platform.processor() or platform.machine()


def machine() -> Row:
    """What belongs into every line: processor, threads, versions, commit."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "pfgm_fast": pf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def _cell(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if row.get(key) is not None else ""


def _times(row: Row) -> str:
    if row.get("ms") is None:
        return ""
    if row.get("p20") is None:
        return f"{row['ms']:.3g}"
    return f"{row['ms']:.3g} ({row['p20']:.3g} to {row['p80']:.3g})"


def _bar(row: Row) -> str:
    """The bar, and whether it is met: at least so many times faster than the best exact peer, at most so many times `x + v`, at least a share."""
    if row.get("bar") is None:
        return ""
    measured, below = row.get(row["of"]), row.get("below", False)
    if measured is None:
        return f"{'≤' if below else '≥'} {row['bar']:.3g}: no time"
    met = measured <= row["bar"] if below else measured >= row["bar"]
    aim = f", aim {row['aim']:.3g}" if row.get("aim") is not None else ""
    return f"{'≤' if below else '≥'} {row['bar']:.3g}{aim}: {'met' if met else 'missed'}"


def _table(rows: list[Row], columns: dict[str, Any]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(str(make(row)) for make in columns.values()) + " |" for row in rows]


def markdown(facts: Row, rows: list[Row]) -> str:
    """The tables: fields, steps, the first product, accuracy."""
    lines = [
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}.",
        "Medians (20th to 80th percentile) of one interleaved run; a ratio is the median of the rounds' ratios. Errors: worst",
        "relative error of the unit direction against float64. A time of ours stands only where that error is at most 1e-5.",
    ]

    def kind(name: str) -> list[Row]:
        return [row for row in rows if row["kind"] == name]

    case, what = (lambda r: r["case"]), (lambda r: r["what"])
    error = lambda r: _cell(r, "error", ".1e")  # noqa: E731
    note = lambda r: r.get("note", "")  # noqa: E731
    speedup = lambda r: _cell(r, "speedup", ".3g")  # noqa: E731
    lines += ["", "## The field of all charges (B × M × N)", ""]
    lines += _table(
        kind("field"),
        {"case": case, "data": lambda r: r["data"], "what": what, "ms": _times, "× Gram": speedup, "× best exact peer": lambda r: f"{_cell(r, 'best', '.3g')} {r.get('best_peer', '')}".strip(), "bar": _bar, "error": error, "": note},
    )  # fmt: skip
    lines += ["", "## One Euler step of the sampler", ""]
    lines += _table(
        kind("step"),
        {"case": case, "what": what, "ms": _times, "× one x + v": lambda r: _cell(r, "of_add", ".3g"), "bar": _bar, "error": error},
    )  # fmt: skip
    lines += ["", "## The first product, as a share of the processor's measured peak", ""]
    lines += _table(
        kind("product"),
        {"case": case, "what": what, "ms": _times, "G operations/s": lambda r: _cell(r, "rate", ".4g"), "share": lambda r: _cell(r, "share", ".0%"), "bar": _bar, "": note},
    )  # fmt: skip
    lines += ["", "## Accuracy: worst error of the unit direction over each set", ""]
    lines += _accuracy(kind("accuracy"))
    return "\n".join(lines) + "\n"


def _accuracy(rows: list[Row]) -> list[str]:
    """Sets down, peers across."""
    names = list(dict.fromkeys(row["what"] for row in rows))
    sets: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        sets.setdefault((row["data"], row["case"]), {})[row["what"]] = row["error"]
    lines = ["| data | queries | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for (data, case), found in sets.items():
        cells = [f"{found[name]:.1e}" if name in found else "" for name in names]
        lines.append(f"| {data} | {case} | " + " | ".join(cells) + " |")
    return lines


def write(folder: Path, rows: list[Row]) -> str:
    """Write cpu.jsonl and cpu.md into a folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine()
    (folder / "cpu.jsonl").write_text(
        "".join(json.dumps(facts | row, ensure_ascii=False) + "\n" for row in rows)
    )
    text = markdown(facts, rows)
    (folder / "cpu.md").write_text(
        "# CPU benchmarks\n\nMade by `make bench`; nothing here is written by hand.\n\n" + text
    )
    return text
