"""ImageSet: images in memory as bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """images (M, C, H, W) uint8, value = byte/127.5 − 1; labels (M,) int64 or None; classes: names of the labels."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8 or self.images.numel() == 0:
            raise DataError(
                f"{self.name}: images must be (M, C, H, W) uint8 and not empty; "
                f"got {tuple(self.images.shape)}, {self.images.dtype}"
            )
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise DataError(
                f"{self.name}: {len(self.images)} images, but labels of shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def charges(self, labels: bool = False) -> Charges:
        """The whole set as charges, in bytes; with their labels where asked."""
        if labels and self.labels is None:
            raise DataError(f"{self.name} has no labels, which a class-conditional run needs")
        return Charges(self.images, labels=self.labels if labels else None)

    def select(self, index: Tensor) -> ImageSet:
        """The images at index, in that order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels)

    def with_flips(self) -> ImageSet:
        """Twice the set: each image and its mirror image (left to right)."""
        labels = None if self.labels is None else self.labels.repeat(2)
        return replace(self, images=torch.cat([self.images, self.images.flip(3)]), labels=labels)

    def split(self, count: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Two disjoint random parts, the first of `count` images."""
        if not 0 < count < len(self):
            raise DataError(f"{self.name}: cannot take {count} of {len(self)} images and leave some")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.select(order[:count]), self.select(order[count:])
