"""What the studies write: a picture, a table in Markdown, and the figures as JSON, all from the same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from pfgm_fast import plots
from pfgm_fast.files import write_beside
from pfgm_fast.studies.optimal_loss import OptimalLoss, edm_weight


def name_of(aug_dim: float) -> str:
    """D as people write it."""
    return "∞" if math.isinf(aug_dim) else f"{aug_dim:g}"


def write_optimal_loss(results: Sequence[OptimalLoss], folder: Path, what: str, sigma_data: float) -> None:
    """optimal-loss.{json,md,png} in a folder. what: one line on the data, for the head of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [result.to_dict() for result in results]
    content = {"data": what, "sigma_data": sigma_data, "points": rows}
    write_beside(folder / "optimal-loss.json", json.dumps(content, indent=1).encode())
    write_beside(folder / "optimal-loss.md", _table(results, what, sigma_data).encode())
    _plot(results, folder / "optimal-loss.png", sigma_data)


def _table(results: Sequence[OptimalLoss], what: str, sigma_data: float) -> str:
    aug_dims = list(dict.fromkeys(result.aug_dim for result in results))
    head = " | ".join(f"D = {name_of(d)}" for d in aug_dims)
    lines = [
        f"# The optimal loss of {what}",
        "",
        f"E‖y − E[y | x]‖²/N ± its standard error over {results[0].queries} queries, and in brackets the median effective number of "
        f"charges 1/Σw². σ_data = {sigma_data:.3f}. Measured in {sum(result.seconds for result in results):.0f} s.",
        "",
        f"| σ | {head} |",
        "|" + "---|" * (len(aug_dims) + 1),
    ]
    for sigma in dict.fromkeys(result.sigma for result in results):
        cells = []
        for aug_dim in aug_dims:
            point = next(p for p in results if p.sigma == sigma and p.aug_dim == aug_dim)
            seen = "" if point.effective is None else f" ({point.effective:.3g})"
            cells.append(f"{point.loss:.3g} ± {point.standard_error:.1g}{seen}")
        lines.append(f"| {sigma:.4g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plot(results: Sequence[OptimalLoss], path: Path, sigma_data: float) -> None:
    figure, axes = plots.figure_of(ncols=3, figsize=(15, 4.2))
    for aug_dim in dict.fromkeys(result.aug_dim for result in results):
        points = [p for p in results if p.aug_dim == aug_dim]
        sigma = [p.sigma for p in points]
        label = f"D = {name_of(aug_dim)}"
        axes[0].errorbar(
            sigma, [p.loss for p in points], yerr=[p.standard_error for p in points], label=label, capsize=2
        )
        weights = [edm_weight(s, sigma_data) for s in sigma]
        axes[1].errorbar(
            sigma,
            [w * p.loss for w, p in zip(weights, points, strict=True)],
            yerr=[w * p.standard_error for w, p in zip(weights, points, strict=True)],
            label=label,
            capsize=2,
        )
        if all(p.effective is not None for p in points):
            axes[2].plot(sigma, [p.effective for p in points], label=label)
    axes[0].set(xscale="log", yscale="log", xlabel="σ", title="optimal loss, mean square of an element")
    axes[1].set(xscale="log", xlabel="σ", title="weighted as in EDM's training loss")
    axes[2].set(xscale="log", yscale="log", xlabel="σ", title="effective number of charges, median")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    plots.finish(figure, path)
