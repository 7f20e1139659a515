"""The README's figures, from the results that are committed: `python -m benchmarks.readme` writes them, `--check` compares.

A block between `<!-- NAME:begin -->` and `<!-- NAME:end -->` belongs to this script; nothing in it is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "cpu.jsonl"
REPORTS = ROOT / "docs" / "reports"

Row = dict[str, Any]


def cpu() -> list[str]:
    """The field and the step, ours beside the alternatives."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    facts = rows[0]
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "field":
            cases.setdefault(row["case"], {})[row["what"]] = row
    lines = [
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}: `make bench`, one interleaved run, medians; all tables in "
        "[benchmarks/results/cpu.md](benchmarks/results/cpu.md). The field of M charges at B queries of the training distribution, against "
        "the quickest exact peer of each case: Gram (the best plain PyTorch: two products of BLAS, in place), the same by JAX's jit, or where D = ∞ PyTorch's attention; "
        "the last column has Gram's errors. What would take more than half of the free memory does not fit.",
        "",
        "| B × M × N | charges | time | against the best exact peer (bar) | against the authors' formula | error | Gram's error |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, found in cases.items():
        for dtype in ("float32", "uint8"):
            row = found.get(f"ours, {dtype}")
            if row is not None and row.get("ms") is not None:
                authors = _against(found.get("the authors' formula"), row)
                # results of before the other peers have Gram alone
                best, peer = row.get("best", row["speedup"]), row.get("best_peer", "Gram")
                lines.append(
                    f"| {case} | {dtype} | {row['ms']:.3g} ms | {best:.2f}× {peer} (≥ {row['bar']:.3g}) | {authors} "
                    f"| {row['error']:.0e} | {found['Gram']['error']:.0e} |"
                )
    steps = {row["case"]: row for row in rows if row["kind"] == "step" and row["what"].startswith("ours")}
    lines += [""] + [
        f"One Euler step of the sampler, {case}: {row['of_add']:.2f} times one `x + v` of PyTorch (bar: ≤ {row['bar']:.3g})."
        for case, row in steps.items()
        if row.get("bar") is not None
    ]
    return lines


def _against(peer: Row | None, ours: Row) -> str:
    if peer is None:
        return ""
    if peer.get("ms") is None:
        return str(peer["note"])
    return f"{peer['ms'] / ours['ms']:,.0f}×"


def _table(path: Path) -> list[str]:
    """The first Markdown table of a report."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return lines[start:end]


def demo() -> list[str]:
    report = REPORTS / "digits" / "report.md"
    trained = next(line for line in report.read_text().splitlines() if "images/s" in line)
    return [
        f"`make demo` ([its report](docs/reports/digits/report.md)): {trained}",
        "",
        *_table(report),
        "",
        "![From the prior to the digits](docs/reports/digits/trajectories.png)",
    ]


def claims() -> list[str]:
    return [
        *_table(REPORTS / "claims" / "report.md"),
        "",
        "![Error against evaluations, exact field](docs/reports/claims/evaluations.png)",
        "",
        "[The report](docs/reports/claims/report.md) has a picture and the numbers of each claim, what was not run, and the caveats.",
    ]


BLOCKS = {"cpu": cpu, "demo": demo, "claims": claims}


def written(text: str) -> str:
    """The README with every block made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"README.md must hold the marks of the block {name!r} once")
        block = "\n".join(make())
        text = pattern.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
    return text


def main() -> int:
    before = README.read_text()
    after = written(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
