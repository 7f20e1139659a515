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
GPUS = ROOT / "benchmarks" / "results"
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
    return lines + [line for path in sorted(GPUS.glob("cpu-*.jsonl")) for line in ("", _elsewhere(path))]


def _elsewhere(path: Path) -> str:
    """One line of another processor's run: ours against the best exact peer, case by case, and which bars it misses."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    facts = rows[0]
    ours = [
        row for row in rows if row["kind"] == "field" and row["what"].startswith("ours") and row.get("ms")
    ]
    cases: dict[str, list[str]] = {}
    for row in ours:
        missed = "" if row["best"] >= row["bar"] else " (missed)"
        cases.setdefault(row["case"], []).append(f"{row['best']:.2f}×{missed}")
    told = "; ".join(f"{case}: {', '.join(found)}" for case, found in cases.items())
    page = path.with_suffix(".md").relative_to(ROOT)
    return (
        f"{facts['cpu']}, {facts['threads']} threads: the same cases against the best exact peer, floats and bytes where both are asked "
        f"for, with the same bars: {told} ([all tables]({page}))."
    )


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
    """The verdicts of docs/reports/claims, and what it and every claims-* (other data) say of trained networks."""
    page, others = REPORTS / "claims" / "report.md", sorted(REPORTS.glob("claims-*/report.md"))
    said = _said(page)
    for other in others:
        name, place = other.parent.name.removeprefix("claims-"), other.relative_to(ROOT)
        first, *more = _said(other)
        said += [f"[Beside it, {name}]({place}): {first}", *more]
    return [
        *_table(page),
        "",
        *(f"- {line}" for line in said),
        "",
        "![Error against evaluations: exact field and trained networks](docs/reports/claims/evaluations.png)",
        "",
        "[The report](docs/reports/claims/report.md) has a picture and the numbers of each claim, all points, and the caveats.",
    ]


def _said(page: Path) -> list[str]:
    """The lines of a page about trained networks; whether they were trained enough comes first."""
    begins = ("**Not trained", "**Trained enough", "With trained networks")
    return [line for line in page.read_text().splitlines() if line.startswith(begins)]


MILLISECONDS = {
    "128 x 4096 x 3072": 0.08,
    "128 x 50000 x 3072": 0.30,
    "1024 x 50000 x 3072": 1.2,
    "4096 x 4096 x 2": 0.05,
}
"""GPU case → the time that the field of a call may take."""
COPY = {"16 x 16384 x 196608": 0.7, "Euler step 8192 x 3072": 0.8, "Euler step 256 x 196608": 0.8}
"""GPU case → the share of the measured copy bandwidth that is asked for."""
EAGER = 2.5
"""How much faster than the eager float32 pipeline a GPU's sampler and training step shall be."""


def gpu() -> list[str]:
    """What `make gpu` brought back: one table a GPU."""
    lines: list[str] = []
    for path in sorted(GPUS.glob("*/gpu.jsonl")):
        lines += ["", *_gpu([json.loads(line) for line in path.read_text().splitlines()], path.parent)]
    return lines[1:] or ["No GPU has run this code yet."]


def _gpu(rows: list[Row], folder: Path) -> list[str]:
    facts = rows[0]
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if "ms" in row:
            cases.setdefault(row["case"].removeprefix("target ").replace(" x ", " × "), {})[row["what"]] = row
    place = folder.relative_to(ROOT)
    lines = [
        f"{facts['device']}, torch {facts['torch']}, CUDA {facts['cuda']}, commit {facts['commit']}: `make gpu`, medians of one interleaved run; all tables in "
        f"[{place}]({place}/gpu.md). As a graph: the same call captured in a CUDA graph, without what Python costs.",
        "",
        "| case | a call | as a graph | bar | against Gram, cuBLAS float32 | against the authors' formula | against our Triton | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, found in cases.items():
        if "cuda" not in found:
            continue
        ours, graph = found["cuda"], found.get("cuda, graph")
        others = [found.get(name) for name in ("Gram, cuBLAS float32", "the authors' formula", "triton")]
        captured = f"{graph['ms']:.3g} ms" if graph else ""
        lines.append(
            f"| {case} | {ours['ms']:.3g} ms | {captured} | {_gpu_bar(case, ours, graph)} | "
            + " | ".join(f"{peer['speedup']:.1f}×" if peer else "" for peer in others)
            + f" | {ours['error']:.0e} |"
        )
    for case, found in cases.items():
        if any(name.startswith("eager") for name in found):
            first, *_, last = found.values()
            lines += [
                "",
                f"{case}: {first['ms']:.3g} ms ({first['what']}), {last['speedup']:.1f} times faster than {last['what']} (bar: ≥ {EAGER}).",
            ]
    return lines


def _gpu_bar(case: str, ours: Row, graph: Row | None) -> str:
    plain = case.replace(" × ", " x ")
    if plain in MILLISECONDS:
        met = [
            name
            for name, row in (("", ours), (" as a graph", graph))
            if row and row["ms"] <= MILLISECONDS[plain]
        ]
        return f"≤ {MILLISECONDS[plain]} ms: {'met' + met[0] if met else 'missed'}"
    if plain in COPY:
        share = max(row["share_of_copy"] for row in (ours, graph) if row)
        return f"≥ {COPY[plain]:.0%} of a copy: {share:.0%}, {'met' if share >= COPY[plain] else 'missed'}"
    return ""


def pipeline() -> list[str]:
    """Images per second of the whole pipeline, ours beside the plain one."""
    facts = json.loads((GPUS / "pipeline.json").read_text())
    threads = "one thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    lines = [
        f"{facts['processor']}, {threads}, torch {facts['torch']}: `python -m benchmarks.bench_pipeline`. Plain: the same UNet in plain PyTorch, "
        "float32, the target by the authors' formula; ours in bfloat16, which this processor has units for "
        "([layouts and precisions](benchmarks/results/layouts.md), [what bfloat16 does to the samples](docs/reports/precision/README.md)).",
        "",
        "| images/s | ours | plain | faster (bar) |",
        "|---|---|---|---|",
    ]
    return lines + [
        f"| {row['preset']}, {row['what']} | {row['ours images/s']:.3g} | {row['plain images/s']:.3g} | {row['speedup']:.2f}× (≥ {row['bar']:.3g}) |"
        for row in facts["rows"]
    ]


BLOCKS = {"cpu": cpu, "demo": demo, "pipeline": pipeline, "claims": claims, "gpu": gpu}


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
