"""report.md and its plots, from the figures of a comparison."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from pfgm_fast.compare.plan import TITLES, Plan
from pfgm_fast.files import write_beside
from pfgm_fast.plots import figure_of, finish

COLORS = {"pfgm": "tab:blue", "ve": "tab:orange", "vp": "tab:green"}
LINES = {"euler": "-", "heun": "--", "rk45": ":"}
SDE = ("euler_maruyama", "reverse_diffusion", "predictor_corrector")
Points = list[dict[str, Any]]


def write_report(plan: Plan, points: Points, data: str, folder: Path) -> Path:
    """Write report.md with quality against evaluations and time, step robustness, weak networks, sample grids; returns its path."""
    strong = [p for p in points if not p["model"].endswith("-weak")]
    _curves(strong, "evaluations", "evaluations of the network a sample", folder / "quality-evaluations.png")
    _curves(strong, "seconds_per_sample", "seconds a sample", folder / "quality-time.png")
    floor = json.loads((folder / "floor.json").read_text())
    lines = [
        f"# PFGM against diffusion on {data}",
        "",
        f"The same DDPM++ (width {plan.width}, {plan.steps} updates of {plan.batch}, the same seed and optimiser) trained as PFGM, VE "
        f"and VP; {plan.samples} samples a point. FID* is the Fréchet distance in the features of a classifier that was trained on "
        f"the same data, not Inception's; lower is better. {plan.samples} real images against all give {floor['frechet']:.2f}. "
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}.",
        "",
        *_finding(strong),
        "",
        "![quality against evaluations](quality-evaluations.png)",
        "",
        "![quality against time](quality-time.png)",
        "",
        "## All points",
        "",
        *_table(strong),
        "",
        "## Robustness to the Euler step",
        "",
        "FID* at fewer steps over FID* at 100 Euler steps of the same model's ODE:",
        "",
        *_ratios(strong),
        "",
        "## A weak network",
        "",
        "Half the width, half the updates. FID* with Euler steps of the ODE, and over the strong network's:",
        "",
        *_weak(points),
        "",
        "## Samples",
        "",
        *_grids(strong),
    ]
    path = folder / "report.md"
    write_beside(path, ("\n".join(lines) + "\n").encode())
    return path


def _curves(points: Points, axis: str, label: str, path: Path) -> None:
    figure, axes = figure_of(figsize=(6.5, 4.2))
    for model, title in TITLES.items():
        for solver, line in LINES.items():
            mine = sorted(
                (p for p in points if (p["model"], p["solver"]) == (model, solver)), key=lambda p: p[axis]
            )
            if mine:
                axes.plot(
                    [p[axis] for p in mine],
                    [p["frechet"] for p in mine],
                    line,
                    marker="o",
                    ms=4,
                    color=COLORS[model],
                    label=f"{title}, {solver}",
                )
        noisy = [p for p in points if p["model"] == model and p["solver"] in SDE]
        if noisy:
            axes.scatter(
                [p[axis] for p in noisy],
                [p["frechet"] for p in noisy],
                marker="x",
                s=45,
                color=COLORS[model],
                label=f"{title}, SDE samplers",
            )
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="FID* (lower is better)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    finish(figure, path)


def _finding(points: Points) -> list[str]:
    """One sentence: the best PFGM within 50 evaluations against the best long SDE sampler."""
    quick = min(
        (p for p in points if p["model"] == "pfgm" and p["evaluations"] <= 50), key=lambda p: p["frechet"]
    )
    long = min((p for p in points if p["solver"] in SDE), key=lambda p: p["frechet"])
    word = "at least as good as" if quick["frechet"] <= long["frechet"] else "not as good as"
    return [
        f"**PFGM with {quick['evaluations']} evaluations ({quick['solver']}) reaches FID* {quick['frechet']:.2f}: {word} the best SDE "
        f"sampler here ({TITLES[long['model']]}, {long['solver'].replace('_', ' ')}, {long['evaluations']} evaluations: "
        f"{long['frechet']:.2f}), with {long['evaluations'] / quick['evaluations']:.0f} times fewer evaluations.**"
    ]


def _table(points: Points) -> list[str]:
    lines = [
        "| model | solver | evaluations | seconds a sample | FID* | precision | recall | energy distance | neighbour ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for p in points:
        lines.append(
            f"| {TITLES[p['model']]} | {p['solver'].replace('_', ' ')} | {p['evaluations']} | {p['seconds_per_sample']:.3f} "
            f"| {p['frechet']:.2f} | {p['precision']:.2f} | {p['recall']:.2f} | {p['energy']:.3f} | {p['neighbor_ratio']:.2f} |"
        )
    return lines


def _ratios(points: Points) -> list[str]:
    steps = (10, 20, 50)
    lines = ["| model | " + " | ".join(f"{n} steps" for n in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for model, title in TITLES.items():
        found = {p["steps"]: p["frechet"] for p in points if (p["model"], p["solver"]) == (model, "euler")}
        lines.append(f"| {title} | " + " | ".join(f"{found[n] / found[100]:.2f}" for n in steps) + " |")
    return lines


def _weak(points: Points) -> list[str]:
    lines = ["| model | 20 steps | 100 steps | 100 steps over the strong network's |", "|---|---|---|---|"]
    found = {(p["model"], p["steps"]): p["frechet"] for p in points if p["solver"] == "euler"}
    for model, title in TITLES.items():
        few, many = found[f"{model}-weak", 20], found[f"{model}-weak", 100]
        lines.append(f"| {title} | {few:.2f} | {many:.2f} | {many / found[model, 100]:.2f} |")
    return lines


def _grids(points: Points) -> list[str]:
    lines = []
    for model, title in TITLES.items():
        best = min((p for p in points if p["model"] == model), key=lambda p: p["frechet"])
        name = best["key"].replace("/", "-")
        lines += [
            f"{title}, {best['solver'].replace('_', ' ')}, {best['evaluations']} evaluations:",
            "",
            f"![{name}](grids/{name}.png)",
            "",
        ]
    return lines
