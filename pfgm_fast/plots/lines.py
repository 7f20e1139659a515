"""Field lines: how the Poisson field of a data set carries points from far away to the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import log_density, poisson_field
from pfgm_fast.plots.style import figure_of, finish, pyplot

VIEWS = ("3d", "plane", "half-plane")


@torch.no_grad()
def trace_lines(
    starts: Tensor,  # (L, N + 1): x and z > 0 of each start
    charges: Charges | Tensor,  # (M, N)
    z_min: float = 1e-3,
    steps: int = 400,
    aug_dim: float = 1.0,
) -> Tensor:
    """Field lines (steps + 1, L, N + 1) of (x, z), followed against the field from each start down to z_min, by Heun's method.

    PFGM (arXiv 2209.11178) eq. 6, dx/dz = (x − m)/z, log-spaced in z from each start's own; exact for one charge, whose lines are rays.

    Args:
        starts: (L, N + 1): x and z > z_min of each.
        charges: Points (M, N), `Charges` or a tensor.
        z_min: Height > 0 where the lines end.
        steps: ≥ 1.
        aug_dim: D ∈ (0, ∞]; z is then r = σ√D (σ where D = ∞).

    Raises:
        ArgumentError: Starts with z ≤ z_min or another N than the charges', charges that are not points, values out of range.
    """
    charges = as_charges(charges)
    if charges.data.dim() != 2:
        raise ArgumentError(
            f"field lines are drawn of points, charges (M, N); these have shape {tuple(charges.shape)}"
        )
    starts = checks.batch("starts", starts)
    if starts.shape[1] != charges.dim + 1:
        raise ArgumentError(f"starts must be (L, {charges.dim + 1}): x and z; got {tuple(starts.shape)}")
    checks.positive("z_min", z_min)
    steps = checks.integer("steps", steps, 1)
    starts = starts.to(charges.value_dtype)
    x, z = starts[:, :-1], starts[:, -1]
    if not bool((z > z_min).all()):
        raise ArgumentError(
            f"every start must lie above z_min = {z_min:g}; the lowest is at z = {float(z.min()):g}"
        )
    ratio = (z / z_min).log() / steps
    lines = [starts]
    for _ in range(steps):
        lower = z * (-ratio).exp()
        slope = poisson_field(x, z, charges, aug_dim)[0] / z[:, None]
        guess = x + (lower - z)[:, None] * slope
        slope = 0.5 * (slope + poisson_field(guess, lower, charges, aug_dim)[0] / lower[:, None])
        x, z = x + (lower - z)[:, None] * slope, lower
        lines.append(torch.cat([x, z[:, None]], 1))
    return torch.stack(lines)


def field_lines(
    charges: Charges | Tensor,  # (M, 2), or (M, 1) for the half-plane
    path: str | Path | None = None,
    *,
    view: str = "3d",
    lines: int = 360,
    height: float | None = None,
    z: float | None = None,
    aug_dim: float = 1.0,
    seed: int = 0,
    title: str | None = None,
) -> Any:
    """Draw the field of a data set of points, and return matplotlib's figure; with `path` it is written there as PNG and closed.

    By Gauss's law lines that begin evenly spread end on the data as the data are distributed (PFGM, arXiv 2209.11178, theorem 1 and
    figure 1).

    Args:
        charges: Points (M, 2), or (M, 1) for the half-plane; `Charges` or a tensor.
        path: Of the PNG; None: none is written.
        view: "3d": two-dimensional data in the plane z = 0, and lines from a hemisphere around them. "plane": streamlines of −E_x in
            the plane at height `z`, over the logarithm of the density there. "half-plane": the (x, z) half-plane over one-dimensional
            data (of two dimensions the first is taken), lines from an arc.
        lines: How many, ≥ 1.
        height: Radius > 0 of the hemisphere or arc; None: 2.6 times the data's radius.
        z: Height > 0 of the plane; None: a twentieth of the data's radius.
        aug_dim: D ∈ (0, ∞] of PFGM++; z is then r = σ√D (σ where D = ∞).
        seed: Of the starts, an integer ≥ 0.
        title: Over the figure; None: none.

    Raises:
        ArgumentError: Another view, data of other dimensions, values out of range.
        MissingPackageError: Matplotlib is not installed.
    """
    charges = as_charges(charges)
    if view not in VIEWS:
        raise ArgumentError(f"view must be one of {', '.join(VIEWS)}; got {view!r}")
    wanted = (1, 2) if view == "half-plane" else (2,)
    if charges.data.dim() != 2 or charges.dim not in wanted:
        kinds = " or ".join(f"(M, {n})" for n in wanted)
        raise ArgumentError(f"the view {view!r} draws charges {kinds}; these are {tuple(charges.data.shape)}")
    lines = checks.integer("lines", lines, 1)
    if view == "half-plane" and charges.dim == 2:
        charges = Charges(charges.values()[:, :1])
    radius = math.sqrt(float(charges.sq_norms.max())) or 1.0
    reach = checks.positive("height", 2.6 * radius if height is None else height)
    if view == "3d":
        figure = _space(charges, reach, lines, aug_dim, seed, room=0.4 if title else 0.0)
    elif view == "plane":
        figure = _plane(charges, checks.positive("z", radius / 20 if z is None else z), radius, aug_dim)
    else:
        figure = _half_plane(charges, reach, lines, aug_dim)
    if title:
        figure.suptitle(title, fontsize=11)
    if path is not None:
        finish(figure, path, dpi=150, tight=view != "3d")
    return figure


def _space(charges: Charges, reach: float, lines: int, aug_dim: float, seed: int, room: float) -> Any:
    """room: inches above the lines, for a title."""
    pyplot()  # says what is missing where matplotlib is
    from matplotlib.colors import LinearSegmentedColormap
    from mpl_toolkits.mplot3d.art3d import Line3DCollection  # type: ignore[import-untyped]

    start = _hemisphere(lines, seed) * reach
    start[:, 2].clamp_(min=0.02 * reach)
    center = charges.center.double().cpu()
    start[:, :2] += center
    floor = 1e-3 * reach
    traced = trace_lines(start.to(charges.device), charges, floor, 300, aug_dim).double().cpu()
    width, height = 7.2, 5.5
    figure = pyplot().figure(figsize=(width, height + room))
    # three axes take a square, of which the lines leave the upper part empty: it lies beyond them, or the figure
    share = height / (height + room)
    axes = figure.add_axes((0.01, -0.025 * share, 0.96, 1.257 * share), projection="3d")
    points = charges.values().cpu().numpy()
    shown = points[:: max(1, len(points) // 4000)]
    pieces = torch.stack([traced[:-1], traced[1:]], 2).transpose(0, 1).reshape(-1, 2, 3)
    colors = (pieces[:, 0, 2] / floor).log() / math.log(reach / floor)
    collection = Line3DCollection(
        pieces.numpy(),
        cmap=LinearSegmentedColormap.from_list("height", ["#08304f", "#2b7bba", "#c3dcee"]),
        linewidths=0.8,
        clip_on=False,
    )
    collection.set_array(colors.numpy())
    axes.add_collection3d(collection)
    axes.computed_zorder = False  # the data lie above the lines that end on them
    axes.scatter(shown[:, 0], shown[:, 1], 0, s=2, color="#D55E00", depthshade=False, zorder=10)
    span = 0.85 * reach
    across, up = center.tolist()
    axes.set(xlim=(across - span, across + span), ylim=(up - span, up + span), zlim=(0, reach))
    axes.set_box_aspect((1, 1, 0.6), zoom=1.3)
    axes.view_init(elev=26, azim=-72)
    axes.set_axis_off()
    return figure


def _hemisphere(count: int, seed: int) -> Tensor:
    """(count, 3) float64: evenly spread over the upper half of the unit sphere, a Fibonacci spiral turned by the seed."""
    step = torch.arange(count, dtype=torch.float64) + 0.5
    turn = 2 * math.pi * float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    angle, height = turn + math.pi * (3 - math.sqrt(5)) * step, 1 - step / count
    across = (1 - height**2).sqrt()
    return torch.stack([across * angle.cos(), across * angle.sin(), height], 1)


def _plane(charges: Charges, z: float, radius: float, aug_dim: float) -> Any:
    center = charges.center.double().cpu()
    side = torch.linspace(-1.6 * radius, 1.6 * radius, 160, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), 2).reshape(-1, 2) + center
    queries = grid.to(charges.device, charges.value_dtype)
    with torch.no_grad():
        field = poisson_field(queries, z, charges, aug_dim)[0].double().cpu().view(len(side), len(side), 2)
        density = log_density(queries, z, charges, aug_dim).double().cpu().view(len(side), len(side))
    figure, axes = figure_of(figsize=(5.6, 5.2))
    across, up = (side + center[0]).numpy(), (side + center[1]).numpy()
    picture = axes.pcolormesh(across, up, density.numpy(), shading="auto", rasterized=True)
    axes.streamplot(
        across,
        up,
        -field[..., 0].numpy(),
        -field[..., 1].numpy(),
        color="w",
        linewidth=0.6,
        density=1.6,
        arrowsize=0.7,
    )
    axes.set(aspect="equal", xlabel="x₁", ylabel="x₂", title=f"−E and log density at z = {z:.3g}")
    figure.colorbar(picture, ax=axes, label="log p", shrink=0.85)
    return figure


def _half_plane(charges: Charges, reach: float, lines: int, aug_dim: float) -> Any:
    center = float(charges.center)
    angle = (torch.arange(lines, dtype=torch.float64) + 0.5) * math.pi / lines
    start = torch.stack([center + reach * angle.cos(), (reach * angle.sin()).clamp(min=0.02 * reach)], 1)
    traced = trace_lines(start.to(charges.device), charges, 1e-3 * reach, 400, aug_dim).double().cpu()
    figure, axes = figure_of(figsize=(6.4, 4))
    axes.plot(traced[..., 0].numpy(), traced[..., 1].numpy(), color="#0072B2", linewidth=0.5, alpha=0.8)
    points = charges.values().cpu().flatten()
    axes.plot(
        points.numpy(), torch.zeros(len(points)).numpy(), "|", color="#D55E00", markersize=9, clip_on=False
    )
    axes.set(
        xlabel="x",
        ylabel="z" if aug_dim == 1 else "r",
        ylim=(0, 1.02 * reach),
        title="lines end on the charges",
    )
    axes.set_aspect("equal")
    return figure
