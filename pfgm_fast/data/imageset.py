"""ImageSet: images in memory as bytes."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.data.labels import class_indices
from pfgm_fast.errors import DataError

_HASH_BLOCK = 1 << 24


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their labels.

    Args:
        images: (M, C, H, W) uint8, value = byte/127.5 − 1.
        labels: (M,) whole numbers from 0, or None.
        classes: names of the labels, where they are known.
        notes: what the reader decided or left out, one sentence each.
        flipped: the second half of the images mirrors the first (`with_flips`).

    Raises: DataError for images or labels of another shape, type or value.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    flipped: bool = False

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8 or self.images.numel() == 0:
            raise DataError(
                f"{self.name}: images must be (M, C, H, W) uint8 and not empty; "
                f"got {tuple(self.images.shape)}, {self.images.dtype}"
            )
        if self.labels is None:
            return
        labels = class_indices(self.labels, self.name)
        if labels.shape != (len(self.images),):
            raise DataError(
                f"{self.name}: {len(self.images)} images, but labels of shape {tuple(labels.shape)}"
            )
        if self.classes and int(labels.max()) >= len(self.classes):
            raise DataError(
                f"{self.name}: a label is {int(labels.max())}, but {len(self.classes)} classes are named"
            )
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    @property
    def num_classes(self) -> int:
        """K: the number of named classes, or one more than the largest label; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.classes) or int(self.labels.max()) + 1

    @functools.cached_property
    def digest(self) -> str:
        """64 hexadecimal digits that tell this set from any other: BLAKE2b of the shape, the bytes and the labels, in order.

        The name, the path, the class names and the mirror images of `with_flips` are not part of it.
        """
        count = len(self) // 2 if self.flipped else len(self)
        digest = hashlib.blake2b(digest_size=32, person=b"pfgm_fast images")
        digest.update(f"{count} {self.shape} {self.labels is not None}".encode())
        rows = max(1, _HASH_BLOCK // self.images[0].numel())
        for start in range(0, count, rows):
            digest.update(self.images[start : min(start + rows, count)].contiguous().cpu().numpy().data)
        if self.labels is not None:
            digest.update(self.labels[:count].contiguous().numpy().astype("<i8").data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        count = len(self) // 2 if self.flipped else len(self)
        classes = f"{self.num_classes} classes" if self.labels is not None else "no labels"
        return f"{self.name}: {count:,} images {'×'.join(map(str, self.shape))}, {classes}"

    def describe(self) -> str:
        """One line: name, count, shape, classes, the digest's first 12 digits."""
        return f"{self!r}, digest {self.digest[:12]}"

    def charges(self, labels: bool = False) -> Charges:
        """The whole set as charges, in bytes; with their labels where asked."""
        if labels and self.labels is None:
            raise DataError(f"{self.name} has no labels, which a class-conditional run needs")
        return Charges(self.images, labels=self.labels if labels else None)

    def select(self, index: Tensor) -> ImageSet:
        """The images at index, in that order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels, flipped=False)

    def with_flips(self) -> ImageSet:
        """Twice the set: each image and its mirror image (left to right); its digest stays that of the set itself."""
        if self.flipped:
            return self
        labels = None if self.labels is None else self.labels.repeat(2)
        return replace(
            self, images=torch.cat([self.images, self.images.flip(3)]), labels=labels, flipped=True
        )

    def split(self, count: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Two disjoint random parts, the first of `count` images."""
        if not 0 < count < len(self):
            raise DataError(f"{self.name}: cannot take {count} of {len(self)} images and leave some")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.select(order[:count]), self.select(order[count:])
