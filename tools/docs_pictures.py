"""The pictures of docs/mathematics.md: `python -m tools.docs_pictures`. Field lines of 2,000 charges on a heart, and how the solvers
converge on the closed-form denoiser of a Gaussian mixture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pfgm_fast as pf

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    t = 2 * math.pi * torch.rand(2000, generator=generator)
    heart = torch.stack([16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos()], 1)
    charges = pf.Charges(heart / 10)
    for view, lines in (("plane", 360), ("half-plane", 60)):
        pf.plots.field_lines(charges, PICTURES / f"field-{view}.png", view=view, lines=lines)
    convergence(PICTURES / "convergence.png")


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """D(x; σ) (B, 2) of three Gaussians of width 1/4, in closed form."""
    means = torch.tensor([[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], dtype=x.dtype)
    total = (sigma.square() + 0.25**2)[:, None]
    weights = torch.softmax(-torch.cdist(x, means).square() / (2 * total), 1)
    return (sigma.square()[:, None] * (weights @ means) + 0.25**2 * x) / total


def convergence(path: Path) -> None:
    """Root mean square error of 100 samples over evaluations, on EDM's grid, against UniPC of order 4 with 2,000."""
    x0 = 80 * torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def drawn(solver: str, steps: int, **options: Any) -> pf.Samples:
        return pf.sample(pf.Denoiser(mixture), (100, 2), solver, steps, method=pf.EDM(), x0=x0, **options)

    fine = drawn("unipc", 2000, order=4).x
    figure, axis = pf.plots.figure_of(figsize=(6, 4.2))
    for solver, label in (
        ("euler", "Euler"),
        ("heun", "Heun"),
        ("dpm_solver++", "DPM-Solver++ 2M"),
        ("unipc", "UniPC 3"),
    ):
        found = [drawn(solver, steps) for steps in (5, 10, 20, 40, 80, 160, 320)]
        errors = [float((out.x - fine).square().mean().sqrt()) for out in found]
        order = math.log2(errors[-2] / errors[-1])
        axis.plot([out.nfe for out in found], errors, "o-", ms=3, label=f"{label}: order {order:.2f}")
        print(f"{label}: " + ", ".join(f"{out.nfe} {e:.3g}" for out, e in zip(found, errors, strict=True)))
    axis.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="error, root mean square")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    pf.plots.finish(figure, path)


if __name__ == "__main__":
    main()
