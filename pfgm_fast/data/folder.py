"""A folder or a zip of image files, read by the policy of `policy.py` and labelled by `classes.py`."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from pfgm_fast.data.classes import DATASET_JSON, label
from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.policy import ALPHA, ANIMATED, BAD_EXIF, Policy, decodable, decode
from pfgm_fast.data.tree import Tree, open_tree, some
from pfgm_fast.errors import DataError


def read_images(path: Path, policy: Policy, split: str | None = None) -> ImageSet:
    """Raises: DataError naming the first file that cannot be read, or that has another size than the first."""
    tree, formats = open_tree(path), decodable()
    images = [name for name in tree.names if _suffix(name) in formats]
    out = _left_out(tree, images)
    if not images:
        raise DataError(
            f"{path} holds no image files (.png, .jpg, .webp, .tif and {len(formats) - 4} other endings)"
            + (f"; {out}" if out else "")
        )
    chosen = label(tree, images, split)
    stack = _Stack(tree, len(chosen.names), policy)
    for name in chosen.names:
        raw = tree.read(name)
        try:
            stack.add(name, *decode(raw, formats[_suffix(name)], policy))
        except DataError as error:
            raise DataError(f"{tree.where(name)}: {error}") from error
    notes = [*chosen.notes, *stack.notes(), *([out] if out else [])]
    return ImageSet(path.stem, torch.from_numpy(stack.images), chosen.labels, chosen.classes, tuple(notes))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _left_out(tree: Tree, images: list[str]) -> str:
    """One sentence on the files that are not read, or nothing."""
    read = {*images, *(name for name in tree.names if PurePosixPath(name).name == DATASET_JSON)}
    other = [name for name in tree.names if name not in read]
    parts = []
    if other:
        parts.append(f"{len(other):,} of no image format that is read ({some(other)})")
    if tree.hidden:
        parts.append(f"{len(tree.hidden):,} hidden or kept by the system ({some(tree.hidden)})")
    return "left out: " + "; ".join(parts) if parts else ""


class _Stack:
    """(M, C, H, W) bytes that grow image by image; grey ones become colour with the first coloured one."""

    def __init__(self, tree: Tree, count: int, policy: Policy) -> None:
        self._tree, self._count, self._policy = tree, count, policy
        self._filled = 0
        self._grey: list[str] = []
        self._noticed: dict[str, list[str]] = {ALPHA: [], ANIMATED: [], BAD_EXIF: []}
        self.images = np.empty((0, 1, 0, 0), np.uint8)

    def add(self, name: str, image: np.ndarray, noticed: list[str]) -> None:  # image (H, W, C)
        height, width, channels = image.shape
        if self._filled == 0:
            self.images = self._empty(channels, height, width)
        if (height, width) != self.images.shape[2:]:
            raise DataError(
                f"{height}×{width} pixels, the first image has "
                f"{self.images.shape[2]}×{self.images.shape[3]}: give a size to bring them to one"
            )
        if channels > self.images.shape[1]:
            grey = self.images[: self._filled]
            self.images = self._empty(channels, height, width)
            self.images[: self._filled] = grey
        self.images[self._filled] = image.transpose(2, 0, 1)  # one channel is spread over three
        self._filled += 1
        if channels == 1:
            self._grey.append(name)
        for what in noticed:
            self._noticed[what].append(name)

    def _empty(self, channels: int, height: int, width: int) -> np.ndarray:
        shape = (self._count, channels, height, width)
        try:
            return np.empty(shape, np.uint8)
        except (MemoryError, ValueError):
            raise DataError(
                f"{shape[0]:,} images of {channels}×{height}×{width} need "
                f"{np.prod(shape, dtype=float) / 1e9:,.0f} GB of memory: give a size"
            ) from None

    def notes(self) -> list[str]:
        notes = []

        def note(text: str, names: list[str]) -> None:
            if names:
                notes.append(f"{text}: {len(names):,} of {self._count:,} ({some(names)})")

        if self.images.shape[1] == 3 and self._policy.channels is None:
            note("grey images made colour like the others (channels=1 makes all grey)", self._grey)
        note(f"transparent images composed on the background {self._policy.background}", self._noticed[ALPHA])
        note("images with several frames or pages, of which the first is read", self._noticed[ANIMATED])
        note("images with damaged metadata, taken as they are stored", self._noticed[BAD_EXIF])
        return notes
