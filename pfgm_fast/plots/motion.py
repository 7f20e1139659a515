"""Samples on their way: an animated GIF of images or points, and the paths of points in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.files import beside
from pfgm_fast.plots.pictures import image_grid
from pfgm_fast.plots.style import COLORS, figure_of, finish

Path_ = Sequence[tuple[float, Tensor]]
"""[(z, x (B, *shape)), …], as `sample(…, record=True).path` is."""
MARGIN = 1.6
"""Half the window's width over the largest distance of the data from their middle."""
PIXELS = 384
"""Edge of an animation of points."""
HELD = 1.2
"""Seconds for which the last picture stays."""


def animation(
    path_taken: Path_,  # [(z, x (B, *shape)), …]
    path: str | Path,
    data: Charges | Tensor | None = None,  # (M, 2), of points
    *,
    frames: int = 48,
    seconds: float = 4.0,
    columns: int | None = None,
    zoom: int | None = None,
) -> None:
    """Write samples on their way from the prior to the data as an animated GIF that repeats.

    Images become grids as of `image_grid`, each image scaled to its own range while it is beyond [−1, 1]; points become dots over the
    data, which also set the window (without them the last points do).

    Args:
        path_taken: [(z, x), …], x (B, C, H, W) of 1 or 3 channels, or points (B, 2): `sample(..., record=True).path`.
        path: Of the GIF.
        data: Points (M, 2), `Charges` or a tensor.
        frames: Pictures at most, ≥ 1, evenly spread over the steps.
        seconds: That a run takes, > 0; the last picture stays 1.2 s longer.
        columns, zoom: Of the grid, ≥ 1, as in `image_grid`.

    Raises:
        ArgumentError: An empty path, samples of another shape, values that are not finite, frames or seconds out of range.
    """
    if not path_taken:
        raise ArgumentError("path_taken is empty: sample with record=True")
    frames = checks.integer("frames", frames, 1)
    checks.positive("seconds", seconds)
    shown = _spread(path_taken, frames)
    shape = tuple(shown[0][1].shape)
    if not all(bool(x.isfinite().all()) for _, x in shown):
        raise ArgumentError("path_taken holds values that are not finite (NaN or infinite)")
    if len(shape) == 4 and shape[1] in (1, 3):
        pictures = [image_grid(_in_range(x), columns, zoom) for _, x in shown]
    elif len(shape) == 2 and shape[1] == 2:
        pictures = _dots(shown, _points(data))
    else:
        raise ArgumentError(f"images (B, C, H, W) or points (B, 2) can be animated; these are {shape}")
    first, *more = [Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE) for picture in pictures]
    each = max(20, round(1000 * seconds / len(pictures)))
    durations = [each] * len(more) + [round(each + 1000 * HELD)]
    with beside(Path(path)) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=more, duration=durations, loop=0)


def paths_of_points(path_taken: Path_, data: Charges | Tensor, path: str | Path, limit: int = 400) -> None:
    """Paths of points (B, 2) from the prior to their ends over the data (M, 2), in the window of the data; at most `limit` of them."""
    from matplotlib.collections import LineCollection

    points = _points(data)
    assert points is not None
    states = torch.stack([x.double().cpu() for _, x in path_taken])[:, :limit]
    middle, reach = _window(points)
    figure, axes = figure_of(figsize=(5.2, 5.2))
    lines = states.transpose(0, 1).numpy()
    axes.add_collection(LineCollection(list(lines), colors=COLORS[0], linewidths=0.5, alpha=0.6))
    axes.plot(*points.T.numpy(), ".", color="0.72", markersize=2, label="data", zorder=0)
    axes.plot(*states[-1].T.numpy(), ".", color=COLORS[1], markersize=3, label="samples", zorder=3)
    (left, low), (right, high) = (middle - reach).tolist(), (middle + reach).tolist()
    axes.set(xlim=(left, right), ylim=(low, high), aspect="equal", xlabel="x₁", ylabel="x₂")
    axes.set_title(f"from z = {path_taken[0][0]:.3g} to {path_taken[-1][0]:.3g}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=3)
    finish(figure, path)


def _spread(path_taken: Path_, count: int) -> Path_:
    """At most `count` of them, the first and the last among them (of one: the last)."""
    last = len(path_taken) - 1
    return [path_taken[i] for i in sorted({round(last - k * last / max(1, count - 1)) for k in range(count)})]


def _in_range(images: Tensor) -> Tensor:
    """Images (B, C, H, W), those with values beyond ±1.2 divided by their largest."""
    largest = images.detach().float().abs().amax((1, 2, 3), keepdim=True)
    return images.detach().float() / torch.where(largest > 1.2, largest, torch.ones_like(largest))


def _points(data: Any) -> Tensor | None:
    """(M, 2) float64 on the CPU."""
    if data is None:
        return None
    values = data.values() if isinstance(data, Charges) else checks.tensor("data", data)
    if values.dim() != 2 or values.shape[1] != 2 or len(values) == 0:
        raise ArgumentError(f"data must be points (M, 2); got {tuple(values.shape)}")
    return values.detach().double().cpu()


def _window(points: Tensor) -> tuple[Tensor, float]:
    """The middle (2,) of points and half the width of a window around them."""
    middle = (points.amax(0) + points.amin(0)) / 2
    return middle, MARGIN * float((points - middle).norm(dim=1).max()) or 1.0


def _dots(shown: Path_, points: Tensor | None) -> list[np.ndarray]:
    """Pictures (PIXELS, PIXELS, 3) of points, over the data where there are."""
    middle, reach = _window(shown[-1][1].detach().double().cpu() if points is None else points)
    ground = np.full((PIXELS, PIXELS, 3), 255, np.uint8)
    if points is not None:
        _stamp(ground, points, middle, reach, (190, 190, 190))
    color = ImageColor.getrgb(COLORS[0])
    pictures = []
    for z, x in shown:
        picture = ground.copy()
        _stamp(picture, x.detach().double().cpu(), middle, reach, color[:3])
        image = Image.fromarray(picture)
        ImageDraw.Draw(image).text((8, 6), f"z = {z:.3g}", fill=(60, 60, 60))
        pictures.append(np.asarray(image))
    return pictures


def _stamp(picture: np.ndarray, points: Tensor, middle: Tensor, reach: float, color: tuple[int, ...]) -> None:
    """A dot of 3 × 3 pixels at each of points (B, 2) that lies in the window."""
    places = ((points - middle) / (2 * reach) * (PIXELS - 1) + (PIXELS - 1) / 2).round()
    inside = ((places >= 1) & (places <= PIXELS - 2)).all(1)
    across, up = places[inside].long().numpy().T
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            picture[PIXELS - 1 - up + i, across + j] = color
