"""Whether bfloat16 changes what networks draw: two comparisons that differ in --precision alone, point by point over their seeds.

    pfgm-fast compare --data digits --methods pfgm edm --out out/float32
    pfgm-fast compare --data digits --methods pfgm edm --precision bfloat16 --out out/bfloat16
    python -m benchmarks.precision out/float32 out/bfloat16 [--out docs/reports/precision/README.md]

The same seeds draw the same batches and starts, so a point's difference is taken seed by seed; its error is that of the mean over the seeds.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student

from pfgm_fast.compare.results import Result
from pfgm_fast.files import write_beside
from pfgm_fast.studies.points import PointFile

FIGURES = ("frechet", "energy")
LEVEL = 0.95
"""Of the intervals of the differences."""


def results(folder: Path) -> dict[str, Result]:
    found = PointFile(folder / "points.jsonl", Result.from_dict).points
    if not found:
        raise SystemExit(
            f"no points in {folder / 'points.jsonl'}: make them with `pfgm-fast compare --out {folder}`"
        )
    return found


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean of the differences and half the width of its interval (Student's t); infinite for one seed."""
    count = len(differences)
    if count < 2:
        return differences[0], math.inf
    return fmean(differences), student.ppf((1 + LEVEL) / 2, count - 1) * stdev(differences) / math.sqrt(count)


def table(first: dict[str, Result], second: dict[str, Result]) -> tuple[list[str], int, int]:
    """Lines of the table; how many differences were compared, and how many of their intervals leave out 0."""
    groups: dict[tuple[str, bool, str, int], list[tuple[Result, Result]]] = defaultdict(list)
    for key, one in first.items():
        if key in second:
            groups[one.method, one.weak, one.solver, one.steps].append((one, second[key]))
    lines = [
        "| network | sampler | seeds | FID*, float32 | bfloat16 | difference | energy distance, float32 | bfloat16 | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    compared = apart = 0
    for (method, weak, solver, steps), pairs in groups.items():
        cells = [f"{method}{', weak' if weak else ''}", f"{solver}, {steps} steps", str(len(pairs))]
        for name in FIGURES:
            both = [(getattr(a.figures, name), getattr(b.figures, name)) for a, b in pairs]
            if any(value is None for pair in both for value in pair):
                cells += [
                    "lost" if any(p[i] is None for p in both) else f"{fmean(p[i] for p in both):.3g}"
                    for i in (0, 1)
                ]
                cells.append("")
                continue
            mean, half = interval([b - a for a, b in both])
            compared += 1
            apart += abs(mean) > half
            cells += [f"{fmean(p[i] for p in both):.3g}" for i in (0, 1)]
            cells.append(f"{mean:+.2g} ± {half:.2g}{' **' if abs(mean) > half else ''}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines, compared, apart


def page(folders: Iterable[Path]) -> str:
    lines, compared, apart = table(*(results(folder) for folder in folders))
    return "\n".join(
        [
            "# Networks in bfloat16 and in float32",
            "",
            "Trained and sampled under autocast, or not; all else alike (`pfgm-fast compare --data digits`; then `python -m benchmarks.precision`).",
            f"Differences are means over the seeds with their {LEVEL:.0%} intervals; ** marks those that leave out 0: {apart} of {compared}, where "
            f"{(1 - LEVEL) * compared:.0f} would by chance.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs=2, type=Path, metavar="FOLDER", help="float32's, then bfloat16's")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = page(options.folders)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_beside(options.out, text.encode())


if __name__ == "__main__":
    main()
