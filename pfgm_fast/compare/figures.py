"""The three pictures of a comparison, one a claim, and the grid of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfgm_fast import plots
from pfgm_fast.compare.results import Result
from pfgm_fast.compare.verdicts import common_level, frechet, of, step_loss, unique, weak_loss
from pfgm_fast.plots.style import COLORS
from pfgm_fast.studies.claims import TITLES


def color(methods: Sequence[str], method: str) -> str:
    return COLORS[list(methods).index(method) % len(COLORS)]


def fewer_evaluations(path: Path, results: Sequence[Result], floor: float | None) -> None:
    """FID* against evaluations, a panel a method, every panel with PFGM's best curve behind."""
    methods = unique(r.method for r in results)
    columns = min(4, len(methods))
    rows = math.ceil(len(methods) / columns)
    figure, axes = plots.figure_of(
        nrows=rows,
        ncols=columns,
        figsize=(3.2 * columns, 2.9 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    level = common_level(results)
    for axis, method in zip(axes.flat, methods, strict=False):
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
    for axis in list(axes.flat)[len(methods) :]:
        axis.axis("off")
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


def euler_step(path: Path, results: Sequence[Result]) -> None:
    """Two panels: what fewer Euler steps cost in FID*, and how far they leave the ODE's own solution."""
    figure, (cost, away) = plots.figure_of(ncols=2, figsize=(9.6, 3.8))
    methods = unique(r.method for r in results)
    for method in methods:
        own = of(results, method, "euler")
        steps = sorted({r.steps for r in own})
        losses = [(n, step_loss(results, method, n)) for n in steps]
        losses = [(n, v) for n, v in losses if math.isfinite(v)]
        style = {"marker": "o", "markersize": 3, "color": color(methods, method), "label": TITLES[method]}
        style["linewidth"] = 2.4 if method == "pfgm" else 1.2
        cost.plot([n for n, _ in losses], [v for _, v in losses], **style)
        means = []
        for n in steps:
            found = [r.deviation for r in own if r.steps == n]
            good = [d for d in found if d is not None]
            if good and len(good) == len(found):
                means.append((n, sum(good) / len(good)))
        away.plot([n for n, _ in means], [v for _, v in means], **style)
    cost.set(
        xscale="log",
        yscale="log",
        xlabel="steps of Euler's method",
        ylabel="FID* over that of the most steps",
    )
    away.set(
        xscale="log",
        yscale="log",
        xlabel="steps of Euler's method",
        ylabel="distance from the ODE's own solution\nover the data's spread (median)",
    )
    for axis in (cost, away):
        axis.grid(alpha=0.3)
    away.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    plots.finish(figure, path)


def weak_networks(path: Path, results: Sequence[Result]) -> None:
    """FID* of the weak network over the strong one's: the mean over seeds as a bar, each seed as a dot."""
    methods = [m for m in unique(r.method for r in results) if math.isfinite(weak_loss(results, m))]
    figure, axis = plots.figure_of(figsize=(6.4, 3.4))
    every = unique(r.method for r in results)
    for place, method in enumerate(methods):
        axis.bar(place, weak_loss(results, method), width=0.6, color=color(every, method), alpha=0.75)
        for seed in sorted({r.seed for r in results}):
            value = weak_loss([r for r in results if r.seed == seed], method)
            if math.isfinite(value):
                axis.plot(place, value, "o", color="0.15", markersize=3)
    axis.axhline(1, color="0.3", linewidth=0.8)
    axis.set_xticks(
        range(len(methods)), [TITLES[m].replace(" D", "\nD").replace(" (", "\n(") for m in methods]
    )
    axis.set(yscale="log", ylabel="FID*, weak network over strong one")
    axis.grid(alpha=0.3, axis="y")
    plots.finish(figure, path)
