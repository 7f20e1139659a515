"""The pages of the exact and the error study: their tables and pictures, from their points alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pfgm_fast import plots
from pfgm_fast.files import write_beside
from pfgm_fast.solvers import STOCHASTIC
from pfgm_fast.studies.errors import KINDS, ErrorPoint
from pfgm_fast.studies.exact import ExactPoint, evaluations_for

LEVELS = (0.10, 0.03, 0.01)
RESOLVED = 2.0
"""An error is told from chance where it is so many times what perfect samples have."""
TITLES = {
    "pfgm": "PFGM",
    "pfgm-unheld": "PFGM, field not held",
    "pfgmpp-1": "PFGM++ D = 1",
    "pfgmpp-128": "PFGM++ D = 128",
    "pfgmpp-2048": "PFGM++ D = 2048",
    "edm": "EDM (D = ∞)",
    "ve": "VE",
    "vp": "VP",
    "subvp": "sub-VP",
}


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _of(points: Sequence[ExactPoint], method: str, solver: str) -> list[ExactPoint]:
    return [p for p in points if p.method == method and p.solver == solver]


def _number(value: float) -> str:
    return "–" if math.isinf(value) or math.isnan(value) else f"{value:.0f}"


def _spread(points: Sequence[ExactPoint], level: float) -> tuple[float, float, float]:
    """Evaluations for an error: of all seeds together, and the least and largest of one seed alone."""
    seeds = sorted({p.seed for p in points})
    alone = [evaluations_for([p for p in points if p.seed == seed], level) for seed in seeds]
    return evaluations_for(list(points), level), min(alone), max(alone)


def best(
    points: Sequence[ExactPoint], level: float, stochastic: bool, methods: Sequence[str]
) -> tuple[float, str]:
    """The fewest evaluations for an error among samplers that draw noise, or that do not, and which sampler it is."""
    found = [(math.inf, "none")]
    for method in methods:
        for solver in _unique(p.solver for p in points if p.method == method):
            if (solver in STOCHASTIC) == stochastic:
                found.append((_spread(_of(points, method, solver), level)[0], f"{TITLES[method]}, {solver}"))
    return min(found)


def ratios(points: Sequence[ExactPoint], level: float) -> list[tuple[int, float]]:
    """(seed, evaluations of the best SDE sampler over those of PFGM's best sampler) for an error, seed by seed."""
    out = []
    methods = _unique(p.method for p in points)
    for seed in sorted({p.seed for p in points}):
        own = [p for p in points if p.seed == seed]
        sde, pfgm = best(own, level, True, methods)[0], best(own, level, False, ["pfgm"])[0]
        out.append((seed, sde / pfgm if math.isfinite(pfgm) else math.nan))
    return out


def resolution_of(floor: Sequence[float]) -> float:
    """The error that perfect samples have by chance, from the excess of several draws of them (`Target.floor`)."""
    return max(1e-12, sum(v * v for v in floor) / len(floor)) ** 0.25


def levels(resolution: float) -> tuple[float, ...]:
    """The `LEVELS` that samples of this resolution tell from chance; the largest always."""
    return tuple(v for v in LEVELS if v >= RESOLVED * resolution) or LEVELS[:1]


def write_exact(folder: Path, points: Sequence[ExactPoint], what: str, samples: int) -> None:
    """exact.md, accuracy.png and steps.png in a folder."""
    resolution = resolution_of(json.loads((folder / "floor.json").read_text())["excess"])
    _plot_accuracy(folder / "accuracy.png", points, resolution)
    _plot_steps(folder / "steps.png", points)
    write_beside(folder / "exact.md", _exact_page(points, what, samples, resolution).encode())


def verdict(points: Sequence[ExactPoint], level: float) -> str:
    """One sentence: the evaluations of PFGM, of the best SDE sampler and of the best ODE for an error."""
    methods = _unique(p.method for p in points)
    pfgm, how = best(points, level, False, ["pfgm"])
    sde, sde_how = best(points, level, True, methods)
    ode, ode_how = best(points, level, False, methods)
    if math.isinf(pfgm):
        return f"An error of {level:.0%} is not reached by PFGM within the evaluations that were tried."
    own = f"An error of {level:.0%}: {how} takes {pfgm:.0f} evaluations"
    if math.isinf(sde):
        most = max((p.evaluations for p in points if p.solver in STOCHASTIC), default=0)
        return f"{own}, no SDE sampler gets there in {most}: over {most / pfgm:.0f} times as many."
    each = [ratio for _, ratio in ratios(points, level) if math.isfinite(ratio)]
    between = f" (seed by seed {min(each):.1f} to {max(each):.1f})" if each else ""
    return (
        f"{own}, the best SDE sampler ({sde_how}) {sde:.0f}: "
        f"{sde / pfgm:.1f} times as many{between}. The best ODE of all ({ode_how}) takes {ode:.0f}."
    )


def _unresolved(resolution: float) -> list[str]:
    lost = [f"{level:.0%}" for level in LEVELS if level not in levels(resolution)]
    if not lost:
        return []
    return [
        f"- {', '.join(lost)}: not told from chance by so many samples; what the table says of it is chance."
    ]


def _exact_page(points: Sequence[ExactPoint], what: str, samples: int, resolution: float) -> str:
    seeds = len({p.seed for p in points})
    lines = [
        f"# Accuracy against evaluations with the exact field: {what}",
        "",
        f"No network: every sampler is given the exact field of the data. {samples} samples a point, {seeds} seeds, "
        f"{sum(p.seconds for p in points) / 60:.0f} minutes of sampling. *Error* is the root of the energy distance between the samples and the data over the data's own "
        f"mean distance; {samples} perfect samples have {resolution:.1%} by chance. *Deviation* is an ODE's distance to its own "
        "exact solution, on the data smoothed by half their standard deviation, over the data's spread.",
        "",
        "![Error against evaluations](accuracy.png)",
        "",
        *(f"- {verdict(points, level)}" for level in levels(resolution)),
        *_unresolved(resolution),
        "",
        "| method | sampler | "
        + " | ".join(f"evaluations for {level:.0%}" for level in LEVELS)
        + " | residual at the end |",
        "|---|---|" + "---|" * (len(LEVELS) + 1),
    ]
    for method in _unique(p.method for p in points):
        for solver in _unique(p.solver for p in points if p.method == method):
            own = _of(points, method, solver)
            cells = []
            for level in LEVELS:
                together, low, high = _spread(own, level)
                cells.append(
                    _number(together) + ("" if low == high else f" ({_number(low)}…{_number(high)})")
                )
            last = max(p.evaluations for p in own)
            residual = max(p.quality.residual for p in own if p.evaluations == last)
            lines.append(f"| {TITLES[method]} | {solver} | " + " | ".join(cells) + f" | {residual:.4f} |")
    lines += [
        "",
        "In brackets: the seeds alone, where they differ. –: not within the evaluations that were tried.",
        "",
        "## Robustness to Euler's step",
        "",
        "![Deviation against steps](steps.png)",
        "",
        "| method | " + " | ".join(f"{n} steps" for n in _euler_steps(points)) + " |",
        "|---|" + "---|" * len(_euler_steps(points)),
    ]
    for method in _unique(p.method for p in points):
        cells = []
        for steps in _euler_steps(points):
            here = [p for p in _of(points, method, "euler") if p.steps == steps]
            cells.append(_euler_cell(here))
        lines.append(f"| {TITLES[method]} | " + " | ".join(cells) + " |")
    lines += ["", "Error, and in brackets the deviation, of Euler's method."]
    return "\n".join(lines) + "\n"


def _euler_cell(points: Sequence[ExactPoint]) -> str:
    if not points:
        return ""
    excess = sum(p.quality.excess for p in points) / len(points)
    deviation = sum(p.deviation or 0.0 for p in points) / len(points)
    return f"{math.sqrt(max(0.0, excess)):.3f} ({deviation:.3f})"


def _euler_steps(points: Sequence[ExactPoint]) -> list[int]:
    return sorted({p.steps for p in points if p.solver == "euler"})


def _curve(points: Sequence[ExactPoint], floor: float) -> tuple[list[int], list[float]]:
    steps = sorted({p.evaluations for p in points})
    mean = [[p.quality.excess for p in points if p.evaluations == n] for n in steps]
    return steps, [math.sqrt(max(floor, sum(v) / len(v))) for v in mean]


def _plot_accuracy(path: Path, points: Sequence[ExactPoint], resolution: float) -> None:
    methods = _unique(p.method for p in points)
    figure, axes = plots.figure_of(
        nrows=2,
        ncols=math.ceil(len(methods) / 2),
        figsize=(3.3 * math.ceil(len(methods) / 2), 6.2),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis, method in zip(axes.flat, methods, strict=False):
        for solver in _unique(p.solver for p in points if p.method == method):
            steps, error = _curve(_of(points, method, solver), resolution**2)
            style = "--" if solver in STOCHASTIC else "-"
            axis.plot(steps, error, style, marker="o", markersize=3, label=solver)
        axis.axhspan(0, resolution, color="0.9")
        axis.set(xscale="log", yscale="log", title=TITLES[method])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper right")
    for axis in list(axes.flat)[len(methods) :]:
        axis.axis("off")
    figure.supxlabel("evaluations of the field", fontsize=9)
    figure.supylabel("error of the distribution (grey: perfect samples by chance)", fontsize=9)
    figure.tight_layout()
    plots.finish(figure, path)


def _plot_steps(path: Path, points: Sequence[ExactPoint]) -> None:
    figure, axes = plots.figure_of(figsize=(6.4, 4.2))
    for method in _unique(p.method for p in points):
        own = [p for p in _of(points, method, "euler") if p.deviation is not None]
        steps = sorted({p.steps for p in own})
        mean = [[p.deviation or 0.0 for p in own if p.steps == n] for n in steps]
        axes.plot(steps, [sum(v) / len(v) for v in mean], marker="o", markersize=3, label=TITLES[method])
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="steps of Euler's method",
        ylabel="deviation from the ODE's own solution",
    )
    axes.grid(alpha=0.3)
    axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    plots.finish(figure, path)


def write_errors(folder: Path, points: Sequence[ErrorPoint], what: str, samples: int, seconds: float) -> None:
    """errors.md and errors.png in a folder."""
    kinds = [kind for kind in KINDS if any(p.kind == kind for p in points)]
    figure, axes = plots.figure_of(
        nrows=2, ncols=len(kinds), figsize=(4.2 * len(kinds), 6.6), sharex=True, squeeze=False
    )
    methods = _unique(p.method for p in points)
    for column, kind in enumerate(kinds):
        for method in methods:
            strengths, error, residual = [], [], []
            for strength in sorted({p.strength for p in points if p.strength > 0}):
                here = [p for p in points if (p.method, p.kind, p.strength) == (method, kind, strength)]
                good = [p.quality for p in here if p.quality is not None]
                if good and len(good) == len(here):
                    strengths.append(strength)
                    error.append(math.sqrt(max(1e-6, sum(q.excess for q in good) / len(good))))
                    residual.append(sum(q.residual for q in good) / len(good))
            axes[0, column].plot(strengths, error, marker="o", markersize=3, label=TITLES[method])
            axes[1, column].plot(strengths, residual, marker="o", markersize=3, label=TITLES[method])
        axes[0, column].set(xscale="log", yscale="log", title=f"error of kind: {kind}")
        axes[1, column].set(xscale="log", yscale="log", xlabel="strength, relative to the network's output")
    axes[0, 0].set_ylabel("error of the distribution")
    axes[1, 0].set_ylabel("distance to the nearest data, rms")
    axes[0, -1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    plots.finish(figure, folder / "errors.png")
    write_beside(folder / "errors.md", _errors_page(points, kinds, methods, what, samples, seconds).encode())


def _errors_page(
    points: Sequence[ErrorPoint],
    kinds: Sequence[str],
    methods: Sequence[str],
    what: str,
    samples: int,
    seconds: float,
) -> str:
    strengths = sorted({p.strength for p in points})
    lines = [
        f"# Tolerance of estimation errors: {what}",
        "",
        f"The exact field as network, plus an error of known strength in the method's own normalised output. {samples} samples a point, "
        f"{len({p.seed for p in points})} seeds; {seconds / 60:.0f} minutes. Error of the distribution, and in brackets the samples' distance "
        "to the nearest data (root mean square of an element); *lost*: samples that are not finite, or ten times the data's radius away.",
        "",
        "![Quality against strength](errors.png)",
        "",
    ]
    for kind in kinds:
        lines += [
            f"## {kind}",
            "",
            "| method | " + " | ".join(f"{s:g}" for s in strengths) + " |",
            "|---|" + "---|" * len(strengths),
        ]
        for method in methods:
            cells = []
            for strength in strengths:
                here = [p for p in points if (p.method, p.kind, p.strength) == (method, kind, strength)]
                lost = sum(p.lost for p in here)
                good = [p.quality for p in here if p.quality is not None]
                if lost or not good:
                    cells.append(f"lost {lost}")
                else:
                    error = math.sqrt(max(0.0, sum(q.excess for q in good) / len(good)))
                    cells.append(f"{error:.3f} ({sum(q.residual for q in good) / len(good):.3f})")
            lines.append(f"| {TITLES[method]} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
