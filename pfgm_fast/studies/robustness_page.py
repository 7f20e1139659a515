"""The page of a robustness study: its tables, its picture and its figures as JSON, from the points alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfgm_fast import plots
from pfgm_fast.files import write_beside
from pfgm_fast.studies.claims import resolution_of
from pfgm_fast.studies.robustness import (
    KNOBS,
    MEASURES,
    Figure,
    RobustnessPlan,
    RobustnessPoint,
    Subject,
    over_seeds,
)

TOLD_APART = 2.0
"""Standard errors of a difference, from which on it is called one."""
SHOWN = {"FID*": "FID*", "error": "error of the distribution"}


class Results:
    """points of a plan, by subject, knob and value, as figures over the seeds."""

    def __init__(
        self, points: Sequence[RobustnessPoint], plan: RobustnessPlan, subjects: Sequence[Subject]
    ) -> None:
        self.points, self.plan, self.subjects = points, plan, subjects
        self.measures = [name for name in MEASURES if any(MEASURES[name](p) is not None for p in points)]
        self.knobs = [
            k
            for k in KNOBS
            if any(p.knob == k for p in points) and (k != "steps" or len(set(plan.steps)) > 1)
        ]

    def values(self, knob: str) -> list[float]:
        """From the baseline, where the knob does nothing, on."""
        found = {p.value for p in self.points if p.knob == knob} | {self.plan.baseline(knob)}
        return sorted(found, reverse=knob in ("steps", "bits"))

    def figure(self, subject: Subject, knob: str, value: float, measure: str) -> Figure:
        """Squares of the error stay squares (`MEASURES`): differences of them add up."""
        if value == self.plan.baseline(knob):
            knob, value = "steps", self.plan.full_steps
        own = [p for p in self.points if (p.subject, p.knob, p.value) == (subject.key, knob, value)]
        return over_seeds(own, MEASURES[measure])

    def of(self, knob: str) -> list[Subject]:
        return [s for s in self.subjects if any((p.subject, p.knob) == (s.key, knob) for p in self.points)]

    def loss(self, subject: Subject, knob: str, value: float, measure: str) -> Figure:
        """What the knob costs: the figure less the baseline's; None where either is not known."""
        here = self.figure(subject, knob, value, measure)
        before = self.figure(subject, knob, self.plan.baseline(knob), measure)
        if here.value is None or before.value is None:
            return Figure(None, 0.0, here.lost)
        return Figure(here.value - before.value, math.hypot(here.error, before.error), here.lost)


def write_robustness(
    folder: Path,
    points: Sequence[RobustnessPoint],
    plan: RobustnessPlan,
    subjects: Sequence[Subject],
    what: str,
    shares: dict[str, float],
) -> None:
    """robustness.json, robustness.md and robustness.png in a folder that has the study's floor.json. what: the data, in a line. shares: of
    each network's parameters that are quantised."""
    results, floor = Results(points, plan, subjects), json.loads((folder / "floor.json").read_text())
    content = {"data": what, "plan": plan.to_dict(), "floor": floor, "figures": _rows(results)}
    write_beside(folder / "robustness.json", (json.dumps(content, indent=1) + "\n").encode())
    _plot(folder / "robustness.png", results, chance(results, floor))
    write_beside(folder / "robustness.md", _page(results, what, floor, shares).encode())


def _rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for knob in results.knobs:
        for subject in results.of(knob):
            for value in results.values(knob):
                row: dict[str, Any] = {"subject": subject.title, "knob": knob, "value": value}
                for measure in results.measures:
                    found = results.figure(subject, knob, value, measure)
                    row |= {
                        measure: found.value,
                        f"{measure} standard error": found.error,
                        "lost": found.lost,
                    }
                rows.append(row)
    return rows


def _page(results: Results, what: str, floor: dict[str, Any], shares: dict[str, float]) -> str:
    plan = results.plan
    by_chance = [f"{SHOWN[m]} {value:.3g}" for m, value in chance(results, floor).items()]
    lines = [
        f"# Robustness: {what}",
        "",
        f"{plan.solver} with {plan.full_steps} steps where no other number stands; {plan.samples} samples a point, {len(plan.seeds)} seeds: a "
        "mean and its standard error. *FID\\** is the Fréchet distance to the data, as pictures, in the features of a classifier trained on them; "
        "*error* the root of the energy distance over the data's own mean distance, of the samples as they are. As many perfect samples have "
        f"{' and '.join(by_chance)} by chance. *Lost*: not finite, or ten times the data's radius away. "
        f"Evaluations of a sample at the most and the fewest steps: {_evaluations(results)}. "
        f"{sum(p.seconds for p in results.points) / 60:.0f} minutes.",
        "",
        "![Quality against each knob](robustness.png)",
        "",
        *_verdicts(results),
    ]
    for knob in results.knobs:
        lines += ["", f"## {KNOBS[knob][0].upper()}{KNOBS[knob][1:]}"]
        if knob == "bits":
            told = ", ".join(f"{s.title} {shares[s.key]:.0%}" for s in results.of(knob) if s.key in shares)
            where = "all convolutions" if plan.everywhere else "the convolutions below the full resolution"
            lines += ["", f"Quantised are {where}; of all parameters these are: {told}."]
        for measure in results.measures:
            lines += ["", *_table(results, knob, measure)]
    return "\n".join(lines) + "\n"


def chance(results: Results, floor: dict[str, Any]) -> dict[str, float]:
    """What perfect samples have, by measure: their mean FID*, and the root of the excess's root mean square."""
    out = {}
    for measure in results.measures:
        if measure == "FID*":
            out[measure] = sum(floor["frechet"]) / len(floor["frechet"])
        else:
            out[measure] = resolution_of(floor["excess"])
    return out


def _evaluations(results: Results) -> str:
    told = []
    for subject in results.subjects:
        own = {
            p.value: p.evaluations for p in results.points if (p.subject, p.knob) == (subject.key, "steps")
        }
        told.append(f"{subject.title} {own[max(own)]}, {own[min(own)]}")
    return "; ".join(told)


def _table(results: Results, knob: str, measure: str) -> list[str]:
    values = results.values(knob)
    lines = [
        f"| {SHOWN[measure]} | " + " | ".join(f"{v:g}" for v in values) + " |",
        "|---|" + "---|" * len(values),
    ]
    for subject in results.of(knob):
        cells = [_cell(results.figure(subject, knob, value, measure), measure) for value in values]
        lines.append(f"| {subject.title} | " + " | ".join(cells) + " |")
    return lines


def _cell(figure: Figure, measure: str) -> str:
    if figure.value is None:
        return f"lost {figure.lost}"
    shown = figure.root() if measure == "error" else figure
    lost = f", {figure.lost} lost" if figure.lost else ""
    return f"{shown.value:.3g}{_bar(shown)}{lost}"


def _bar(figure: Figure) -> str:
    """Its standard error, where there is one."""
    return f" ± {figure.error:.1g}" if figure.error else ""


def _verdicts(results: Results) -> list[str]:
    """What each knob costs at its worst, and whether smaller D costs less than D = ∞, as the paper has it."""
    measure, lines = results.measures[0], list[str]()
    if len(results.plan.seeds) < 2:
        lines.append("- One seed: there are no error bars, and nothing is told apart.")
    squared = " squared" * (measure == "error")
    for knob in results.knobs:
        subjects, values = results.of(knob), results.values(knob)
        worst = values[-1]
        costs = [(s, results.loss(s, knob, worst, measure)) for s in subjects]
        told = [
            f"{s.title} {c.value:+.3g}{_bar(c)}" if c.value is not None else f"{s.title} lost {c.lost}"
            for s, c in sorted(costs, key=lambda pair: math.inf if pair[1].value is None else pair[1].value)
        ]
        lines.append(f"- {KNOBS[knob]}, {worst:g}: {SHOWN[measure]}{squared} changes by {', '.join(told)}.")
        limit = next((s for s in subjects if _aug_dim(s) == math.inf), None)
        for subject in subjects:
            if limit is None or len(results.plan.seeds) < 2 or not 0 < _aug_dim(subject) < math.inf:
                continue
            words = [_compared(results, subject, limit, knob, value, measure) for value in values[1:]]
            said = ", ".join(
                f"{words.count(w)} {w}" for w in ("less", "more", "not told apart") if w in words
            )
            lines.append(f"  {subject.title} against D = ∞, of {len(words)} settings: costs {said}.")
    return lines


def _aug_dim(subject: Subject) -> float:
    """D of PFGM++ and EDM; 0 for other methods."""
    return float(getattr(subject.method, "aug_dim", 0.0))


def _compared(
    results: Results, subject: Subject, limit: Subject, knob: str, value: float, measure: str
) -> str:
    mine, theirs = (results.loss(s, knob, value, measure) for s in (subject, limit))
    if mine.value is None or theirs.value is None:
        return "not told apart" if mine.value is theirs.value else "more" if mine.value is None else "less"
    difference = mine.value - theirs.value
    if abs(difference) <= TOLD_APART * math.hypot(mine.error, theirs.error):
        return "not told apart"
    return "less" if difference < 0 else "more"


def _plot(path: Path, results: Results, least: dict[str, float]) -> None:
    """Grey: what perfect samples have; an error below it is drawn at its edge."""
    knobs, measures = results.knobs, results.measures
    figure, axes = plots.figure_of(
        nrows=len(measures), ncols=len(knobs), figsize=(3.6 * len(knobs), 3.1 * len(measures)), squeeze=False
    )
    for row, measure in enumerate(measures):
        for column, knob in enumerate(knobs):
            axis, values = axes[row, column], results.values(knob)
            for subject in results.of(knob):
                found = [results.figure(subject, knob, value, measure) for value in values]
                shown = [f.root() if measure == "error" else f for f in found]
                at = [k for k, f in enumerate(shown) if f.value is not None]
                axis.errorbar(
                    at,
                    [_drawn(shown[k], measure, least) for k in at],
                    yerr=[shown[k].error for k in at],
                    marker="o",
                    markersize=3,
                    capsize=2,
                    linewidth=1.2,
                    label=subject.title,
                )
            axis.set_xticks(
                range(len(values)), ["full" if v == 32 and knob == "bits" else f"{v:g}" for v in values]
            )
            axis.set(yscale="log", xlabel=KNOBS[knob] if row == len(measures) - 1 else None)
            axis.axhspan(0, least[measure], color="0.9")
            axis.set_ylim(bottom=0.5 * least[measure])
            axis.grid(alpha=0.3)
        axes[row, 0].set_ylabel(SHOWN[measure])
    axes[0, -1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    plots.finish(figure, path)


def _drawn(figure: Figure, measure: str, least: dict[str, float]) -> float:
    value = figure.value or 0.0
    return max(least[measure], value) if measure == "error" else value
