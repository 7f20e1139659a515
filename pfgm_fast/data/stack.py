"""Stack: images that come one by one become one (M, C, H, W) tensor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pfgm_fast.data.policy import ALPHA, ANIMATED, BAD_EXIF, Policy
from pfgm_fast.data.tree import some
from pfgm_fast.errors import DataError

_AT_FIRST = 256


class Stack:
    """Bytes that grow image by image; grey ones become colour with the first coloured one.

    count: how many images will come, where it is known; otherwise the memory doubles when it is full.
    """

    def __init__(self, policy: Policy, count: int | None = None) -> None:
        self._policy, self._capacity = policy, count if count is not None else _AT_FIRST
        self._filled = 0
        self._grey: list[str] = []
        self._noticed: dict[str, list[str]] = {ALPHA: [], ANIMATED: [], BAD_EXIF: []}
        self._images = np.empty((0, 1, 0, 0), np.uint8)

    def add(self, name: str, image: np.ndarray, noticed: list[str]) -> None:  # image (H, W, C)
        """Raises: DataError for an image of another height or width than the first, or where the memory does not suffice."""
        height, width, channels = image.shape
        if self._filled and (height, width) != self._images.shape[2:]:
            raise DataError(
                f"{height}×{width} pixels, the first image has {self._images.shape[2]}×{self._images.shape[3]}: "
                "give a size to bring them to one"
            )
        if self._filled == self._capacity:
            self._capacity *= 2
        if self._filled in (0, len(self._images)) or channels > self._images.shape[1]:
            self._grow(max(channels, self._images.shape[1]), height, width)
        self._images[self._filled] = image.transpose(2, 0, 1)  # one channel is spread over three
        self._filled += 1
        if channels == 1:
            self._grey.append(name)
        for what in noticed:
            self._noticed[what].append(name)

    def _grow(self, channels: int, height: int, width: int) -> None:
        shape = (self._capacity, channels, height, width)
        try:
            grown = np.empty(shape, np.uint8)
        except (MemoryError, ValueError):
            raise DataError(
                f"{shape[0]:,} images of {channels}×{height}×{width} need "
                f"{np.prod(shape, dtype=float) / 1e9:,.0f} GB of memory: give a size"
            ) from None
        if self._filled:
            grown[: self._filled] = self._images[: self._filled]
        self._images = grown

    def images(self) -> Tensor:
        """(M, C, H, W) uint8."""
        return torch.from_numpy(self._images[: self._filled])

    def notes(self) -> list[str]:
        """A sentence for each thing that was decided."""
        notes = []

        def note(text: str, names: list[str]) -> None:
            if names:
                notes.append(f"{text}: {len(names):,} of {self._filled:,} ({some(names)})")

        if self._images.shape[1] == 3 and self._policy.channels is None:
            note("grey images made colour like the others (channels=1 makes all grey)", self._grey)
        note(f"transparent images composed on the background {self._policy.background}", self._noticed[ALPHA])
        note("images with several frames or pages, of which the first is read", self._noticed[ANIMATED])
        note("images with damaged metadata, taken as they are stored", self._noticed[BAD_EXIF])
        return notes
