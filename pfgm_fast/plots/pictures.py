"""Pictures: grids of images, trajectories, loss curves. Matplotlib draws, Pillow writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.files import beside
from pfgm_fast.plots.style import figure_of, finish


def to_bytes(images: Tensor) -> np.ndarray:
    """Images (M, C, H, W) in [−1, 1] → (M, H, W, 3) uint8; values outside are clipped.

    Args:
        images: (M, C, H, W), float; of one channel it is repeated, of more than three the first three are shown.

    Raises:
        ArgumentError: Values that are not finite, with how many images hold some: a picture would hide them.
    """
    bad = int((~images.detach().flatten(1).isfinite().all(1)).sum())
    if bad:
        raise ArgumentError(
            f"{bad} of {len(images)} images hold values that are not finite (NaN or infinite)"
        )
    scaled = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    array = scaled.to(dtype=scaled.dtype).numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    return np.repeat(array, 3, axis=3) if array.shape[3] == 1 else array[..., :3]


def image_grid(
    images: Tensor, columns: int | None = None, zoom: int | None = None, gap: int = 1
) -> np.ndarray:
    """Images as one picture (H', W', 3) uint8, row by row.

    Args:
        images: (M, C, H, W) in [−1, 1].
        columns: ≥ 1; None: as many as rows.
        zoom: Pixels ≥ 1 a pixel; None: tiles of at least 32 pixels.
        gap: Pixels ≥ 0 between the tiles.

    Raises:
        ArgumentError: Values that are not finite; columns, zoom or gap out of range.
    """
    tiles = to_bytes(images)
    count, height, width, _ = tiles.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else checks.integer("columns", columns, 1)
    zoom = max(1, 32 // height) if zoom is None else checks.integer("zoom", zoom, 1)
    gap = checks.integer("gap", gap, 0)
    tiles = tiles.repeat(zoom, axis=1).repeat(zoom, axis=2)
    rows = math.ceil(count / columns)
    picture = np.full(
        (rows * (height * zoom + gap) + gap, columns * (width * zoom + gap) + gap, 3), 40, np.uint8
    )
    for i, tile in enumerate(tiles):
        top = gap + (i // columns) * (height * zoom + gap)
        left = gap + (i % columns) * (width * zoom + gap)
        picture[top : top + height * zoom, left : left + width * zoom] = tile
    return picture


def save_image(picture: np.ndarray, path: str | Path) -> None:
    """Write a picture as a PNG, whole or not there.

    Args:
        picture: (H, W, 3) uint8.
        path: Of the file; its folder exists.

    Raises:
        OSError: It cannot be written.
    """
    with beside(Path(path)) as partial:
        Image.fromarray(picture).save(partial, format="PNG")


def compare_grids(panels: Sequence[tuple[str, Tensor]], path: str | Path, columns: int = 8) -> None:
    """Write grids of images side by side, each under its title, as a PNG.

    Args:
        panels: Title and images (M, C, H, W) in [−1, 1] of each.
        path: Of the PNG.
        columns: Of each grid, ≥ 1.

    Raises:
        ArgumentError: Values that are not finite; columns out of range.
        MissingPackageError: Matplotlib is not installed.
    """
    figure, axes = figure_of(ncols=len(panels), figsize=(4.2 * len(panels), 4.6 * 1.0), squeeze=False)
    for axis, (title, images) in zip(axes[0], panels, strict=True):
        axis.imshow(image_grid(images, columns))
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    finish(figure, path)


def loss_curve(
    steps: Sequence[float],
    losses: Sequence[float],
    path: str | Path,
    measured: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Write the losses of a training over its updates, logarithmic, as a PNG.

    Args:
        steps: Updates, ≥ 0.
        losses: Of each of the steps.
        path: Of the PNG.
        measured: (update ≥ 0, a perfect network's loss, the excess of the trained one's over it) where they were measured
            (`training.optimal`); drawn beside.

    Raises:
        MissingPackageError: Matplotlib is not installed.
    """
    figure, axes = figure_of(figsize=(5, 3.2))
    axes.plot(steps, losses, label="training loss")
    if measured:
        at, optimal, left = zip(*measured, strict=True)
        axes.plot(at, optimal, "--", label="of a perfect network")
        axes.plot(at, left, label="left to learn")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set(xlabel="update", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    finish(figure, path)


def trajectories(
    path_taken: Sequence[tuple[float, Tensor]],  # [(z, x (B, *shape)), …]
    data: Charges | Tensor,  # (M, *shape)
    path: str | Path,
) -> None:
    """Write the ways from the prior to the data, as a PNG.

    Of points in the plane, (B, 2): their paths over the data. Of images (B, C, H, W): ‖x‖ against z; the projection on two principal axes
    of the data; a few samples on their way, each image scaled to its own range.

    Args:
        path_taken: [(z, x (B, *shape)), …], as `sample(…, record=True).path` is.
        data: (M, *shape), `Charges` or a tensor.
        path: Of the PNG.

    Raises:
        ArgumentError: An empty path, or one of another shape than the data.
        MissingPackageError: Matplotlib is not installed.
    """
    import torch

    data = data.values() if isinstance(data, Charges) else data
    if not path_taken or path_taken[0][1].shape[1:] != data.shape[1:]:
        what = f"of shape {tuple(path_taken[0][1].shape)}" if path_taken else "empty"
        raise ArgumentError(
            f"path_taken must hold samples of the data's shape {tuple(data.shape[1:])}; it is {what}"
        )
    if data.shape[1:] == (2,):
        from pfgm_fast.plots.motion import paths_of_points

        paths_of_points(path_taken, data, path)
        return
    data = data.cpu()
    flat = data.flatten(1).float()
    center = flat.mean(0)
    _, _, axes_ = torch.linalg.svd(flat - center, full_matrices=False)
    times = [t for t, _ in path_taken]
    states = torch.stack([x.flatten(1).cpu() for _, x in path_taken])
    figure, axes = figure_of(nrows=1, ncols=3, figsize=(14, 4))
    axes[0].plot(times, states.norm(dim=2)[:, :64].numpy(), lw=0.6, alpha=0.6)
    axes[0].set(xscale="log", yscale="log", xlabel="z", ylabel="‖x‖", title="from the prior to the data")
    axes[0].invert_xaxis()
    plane = (flat - center) @ axes_[:2].T
    walk = (states - center) @ axes_[:2].T
    near = [i for i, t in enumerate(times) if t <= max(times[-1], 2.0)]
    axes[1].scatter(*plane.T.numpy(), s=3, color="0.75", label="data")
    for k in range(min(48, walk.shape[1])):
        axes[1].plot(*walk[near, k].T.numpy(), lw=0.5, alpha=0.7)
    axes[1].scatter(*walk[-1].T.numpy(), s=6, color="k", label="samples", zorder=3)
    axes[1].set(title="z ≤ 2, on two principal axes of the data")
    axes[1].legend(fontsize=8)
    shown = [round(i * (len(times) - 1) / 9) for i in range(10)]
    rows = []
    for k in range(min(8, states.shape[1])):
        for i in shown:
            image = path_taken[i][1][k].cpu()
            largest = float(image.abs().max())
            rows.append(image / largest if largest > 1.2 else image)
    axes[2].imshow(image_grid(torch.stack(rows), columns=10))
    axes[2].set_title("z = " + ", ".join(f"{times[i]:.2g}" for i in shown), fontsize=7)
    axes[2].axis("off")
    finish(figure, path)
