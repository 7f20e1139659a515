"""The three pictures of a comparison, one a claim, each with what is known without a network beside what was trained; and every sampler's
curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pfgm_fast import plots
from pfgm_fast.compare.evidence import Evidence, Study, deviation, tolerance
from pfgm_fast.compare.results import Result
from pfgm_fast.compare.verdicts import common_level, frechet, of, step_loss, unique, weak_loss
from pfgm_fast.plots.style import COLORS
from pfgm_fast.solvers import STOCHASTIC
from pfgm_fast.studies.claims import TITLES
from pfgm_fast.studies.errors import KINDS, UNHELD, ErrorPoint
from pfgm_fast.studies.exact import ExactPoint
from pfgm_fast.studies.network_error import NetworkError

BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK = COLORS
STYLES: dict[str, dict[str, Any]] = {
    "pfgm": {"color": BLUE, "linewidth": 2.4, "zorder": 5},
    UNHELD: {"color": BLUE, "linewidth": 1.2, "linestyle": ":"},
    "pfgmpp-1": {"color": SKY},
    "pfgmpp-128": {"color": GREEN},
    "pfgmpp-2048": {"color": "0.55"},
    "edm": {"color": ORANGE},
    "ve": {"color": RED},
    "vp": {"color": PINK},
    "subvp": {"color": BLACK},
}
"""The same for a method in every panel."""


def _panels(count: int, most: int = 3) -> tuple[Any, list[Any]]:
    """A figure and its panels, those without a use switched off."""
    count = max(1, count)
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure, axes = plots.figure_of(
        nrows=rows, ncols=columns, figsize=(3.7 * columns, 3.2 * rows), squeeze=False
    )
    every = list(axes.flat)
    for axis in every[count:]:
        axis.axis("off")
    return figure, every[:count]


def _finish(figure: Any, axes: Sequence[Any], path: Path) -> None:
    """One legend for all panels, on their right."""
    found: dict[str, Any] = {}
    for axis in axes:
        axis.grid(alpha=0.3)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.tight_layout()
    figure.legend(found.values(), found.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5))
    plots.finish(figure, path)


def _best_so_far(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """The least value with at most so many evaluations, at the evaluations where it falls; values that are not finite are passed over."""
    where: list[int] = []
    value: list[float] = []
    for evaluations, found in sorted(points):
        if math.isfinite(found) and (not value or found < value[-1]):
            where.append(evaluations)
            value.append(found)
    return where, value


def fewer_evaluations(path: Path, results: Sequence[Result], floor: float | None, evidence: Evidence) -> None:
    """Per method the best ODE (whole lines) and the best SDE sampler (broken) with so many evaluations: the error of the distribution with
    the exact field, a panel a study, and FID* of the trained networks."""
    figure, axes = _panels(len(evidence.exact) + bool(results), 2)
    for axis, study in zip(axes, evidence.exact, strict=False):
        _exact_panel(axis, study)
    if results:
        _trained_panel(axes[-1], results, floor)
    _finish(figure, axes, path)


def _trained_panel(axis: Any, results: Sequence[Result], floor: float | None) -> None:
    for method in unique(r.method for r in results):
        for noisy in (False, True):
            own = [r for r in of(results, method) if r.stochastic == noisy and r.solver != "rk45"]
            points = []
            for solver, steps in dict.fromkeys((r.solver, r.steps) for r in own):
                here = [r for r in own if (r.solver, r.steps) == (solver, steps)]
                points.append((max(r.evaluations for r in here), frechet(here)))
            _best_line(axis, method, noisy, points)
    if floor:
        axis.axhspan(0, floor, color="0.9")
    level = common_level(results)
    if math.isfinite(level):
        axis.axhline(level, color="0.2", linewidth=0.8)
    axis.set(
        xscale="log",
        yscale="log",
        title="trained networks",
        xlabel="evaluations",
        ylabel="FID* (line: common level)",
    )


def _exact_panel(axis: Any, study: Study) -> None:
    points = [p for p in study.points if isinstance(p, ExactPoint)]
    for method in unique(p.method for p in points):
        for noisy in (False, True):
            own = [p for p in points if p.method == method and (p.solver in STOCHASTIC) == noisy]
            found = []
            for solver, steps in dict.fromkeys((p.solver, p.steps) for p in own):
                here = [p for p in own if (p.solver, p.steps) == (solver, steps)]
                excess = sum(p.quality.excess for p in here) / len(here)
                found.append((here[0].evaluations, math.sqrt(max(excess, study.resolution**2 / 4))))
            _best_line(axis, method, noisy, found)
    axis.axhspan(0, study.resolution, color="0.9")
    axis.set(
        xscale="log",
        yscale="log",
        title=f"exact field: {study.data}",
        xlabel="evaluations",
        ylabel="error (grey: perfect samples)",
    )


def _best_line(axis: Any, method: str, noisy: bool, points: Iterable[tuple[int, float]]) -> None:
    where, value = _best_so_far(points)
    if where:
        style = {"linewidth": 1.2, "marker": "o", "markersize": 3, **STYLES[method]}
        label = TITLES[method] + (", SDE" if noisy else "")
        axis.plot(where, value, **{**style, "linestyle": "--" if noisy else "-"}, label=label)


def samplers(path: Path, results: Sequence[Result], floor: float | None) -> None:
    """FID* against evaluations, a panel a method, every panel with PFGM's best curve behind."""
    methods = unique(r.method for r in results)
    figure, axes = _panels(len(methods))
    level = common_level(results)
    for axis, method in zip(axes, methods, strict=True):
        if method != "pfgm":
            for solver in unique(r.solver for r in of(results, "pfgm") if r.solver != "rk45"):
                _line(axis, of(results, "pfgm", solver), color="0.8", linewidth=3, label="_PFGM")
        for solver in unique(r.solver for r in of(results, method)):
            own = of(results, method, solver)
            style = "--" if own[0].stochastic else "-"
            _line(axis, own, linestyle=style, marker="o", markersize=3, label=solver.replace("_", " "))
        if floor:
            axis.axhline(floor, color="0.5", linewidth=0.8, linestyle=":")
        if math.isfinite(level):
            axis.axhline(level, color="0.2", linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=TITLES[method])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper right")
    figure.supxlabel("evaluations of the network (broken: samplers that draw noise; grey: PFGM)", fontsize=9)
    figure.supylabel("FID* (line: common level; dots: real images)", fontsize=9)
    figure.tight_layout()
    plots.finish(figure, path)


def _line(axis: Any, results: Sequence[Result], **style: Any) -> None:
    """Mean over the seeds, with bars from the least end of their intervals to the largest; points that lost samples are left out."""
    where, value, below, above = [], [], [], []
    for steps in sorted({r.steps for r in results}):
        here = [r for r in results if r.steps == steps]
        mean = frechet(here)
        if math.isfinite(mean):
            where.append(max(r.evaluations for r in here))
            value.append(mean)
            below.append(max(0.0, mean - min(r.figures.low or 0.0 for r in here)))
            above.append(max(0.0, max(r.figures.high or 0.0 for r in here) - mean))
    if where:
        axis.errorbar(where, value, yerr=[below, above], elinewidth=0.8, **style)


def euler_step(path: Path, results: Sequence[Result], evidence: Evidence) -> None:
    """How far few steps of Euler's method leave the ODE's own solution, exact field and trained, and what they cost in FID*."""
    figure, axes = _panels(len(evidence.exact) + 2 * bool(results))
    for axis, study in zip(axes, evidence.exact, strict=False):
        points = [p for p in study.points if isinstance(p, ExactPoint)]
        for method in unique(p.method for p in points):
            steps = sorted({p.steps for p in points if (p.method, p.solver) == (method, "euler")})
            _steps_line(axis, method, [(n, deviation(points, method, n)) for n in steps])
        axis.set(title=f"exact field: {study.data}", ylabel="distance from the ODE's solution")
    if results:
        _trained_steps(axes[-2], axes[-1], results)
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="steps of Euler's method")
    _finish(figure, axes, path)


def _trained_steps(away: Any, cost: Any, results: Sequence[Result]) -> None:
    for method in unique(r.method for r in results):
        own = of(results, method, "euler")
        steps = sorted({r.steps for r in own})
        _steps_line(cost, method, [(n, step_loss(results, method, n)) for n in steps])
        means = []
        for n in steps:
            found = [r.deviation for r in own if r.steps == n]
            good = [d for d in found if d is not None]
            means.append((n, sum(good) / len(good) if good and len(good) == len(found) else math.nan))
        _steps_line(away, method, means)
    away.set(title="trained networks", ylabel="distance from the ODE's solution")
    cost.set(title="trained networks", ylabel="FID* over that of the most steps")


def _steps_line(axis: Any, method: str, points: Iterable[tuple[int, float]]) -> None:
    good = [(n, v) for n, v in points if math.isfinite(v)]
    style = {"linewidth": 1.2, "marker": "o", "markersize": 3, **STYLES[method]}
    axis.plot([n for n, _ in good], [v for _, v in good], **style, label=TITLES[method])


def weak_networks(
    path: Path, results: Sequence[Result], evidence: Evidence, networks: Sequence[NetworkError] = ()
) -> None:
    """The error of the distribution against the strength of an injected error, a panel a kind, with the errors of the trained networks as
    ticks below; and FID* of the weak network over the strong one's: the mean over seeds as a bar, each seed as a dot."""
    panels = [
        (study, kind)
        for study in evidence.errors
        for kind in KINDS
        if any(isinstance(p, ErrorPoint) and p.kind == kind for p in study.points)
    ]
    figure, axes = _panels(len(panels) + bool(results))
    for axis, (study, kind) in zip(axes, panels, strict=False):
        points = [p for p in study.points if isinstance(p, ErrorPoint)]
        strengths = sorted({p.strength for p in points if p.strength > 0})
        for method in unique(p.method for p in points):
            _steps_line(axis, method, [(s, tolerance(points, method, kind, s)) for s in strengths])  # type: ignore[misc]
        for error in networks:
            found = error.amplitude if kind == "amplitude" else error.relative
            method = method_of(error.key)
            ends = axis.get_xaxis_transform()
            if strengths[0] / 2 <= found <= 2 * strengths[-1]:
                axis.plot([found] * 2, [0, 0.06], transform=ends, color=STYLES[method]["color"], linewidth=1)
        axis.set(
            xscale="log",
            yscale="log",
            title=f"injected, {kind}: {study.data}",
            xlabel="strength (ticks: trained networks)",
            ylabel="error of the distribution",
        )
    if results:
        _bars(axes[-1], results)
    _finish(figure, axes, path)


def method_of(key: str) -> str:
    """The method of a model's key."""
    return key.rsplit("-", 1)[0].removesuffix("-weak")


def _bars(axis: Any, results: Sequence[Result]) -> None:
    methods = [m for m in unique(r.method for r in results) if math.isfinite(weak_loss(results, m))]
    for place, method in enumerate(methods):
        axis.bar(place, weak_loss(results, method), width=0.6, color=STYLES[method]["color"], alpha=0.75)
        for seed in sorted({r.seed for r in results}):
            value = weak_loss([r for r in results if r.seed == seed], method)
            if math.isfinite(value):
                axis.plot(place, value, "o", color="0.15", markersize=3)
    axis.axhline(1, color="0.3", linewidth=0.8)
    names = [TITLES[m].replace(" D", "\nD").replace(" (", "\n(") for m in methods]
    axis.set_xticks(range(len(methods)), names, fontsize=6)
    axis.set(yscale="log", title="trained networks", ylabel="FID*, weak network over strong one")
