"""ImageStream: images that stay where they are, a folder, a zip or a .npy file, and are read by their numbers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfgm_fast.data.arrays import to_images
from pfgm_fast.data.classes import label
from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.policy import Policy, decodable, decode
from pfgm_fast.data.tree import Tree, open_tree
from pfgm_fast.errors import DataError

_DIGESTED = 64
_READERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False, repr=False)
class ImageStream:
    """M images of one shape, in an order of their own; as an `ImageSet` but for the images themselves, which `read` gives.

    one: the bytes (C, H, W) uint8 of image i < count. count: of the images; with `with_flips` the stream is twice as long.
    digest: of the names and of 64 images spread evenly: a change elsewhere is not seen.
    """

    name: str
    shape: tuple[int, ...]  # (C, H, W)
    count: int
    one: Callable[[int], np.ndarray]
    digest: str
    labels: Tensor | None = None  # (M,)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    flipped: bool = False

    def __len__(self) -> int:
        return 2 * self.count if self.flipped else self.count

    @property
    def num_classes(self) -> int:
        """K: the number of named classes, or one more than the largest label; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.classes) or int(self.labels.max()) + 1

    def read(self, index: Tensor) -> Tensor:
        """(K, C, H, W) uint8 of the images at index (K,), decoded by several threads.

        Raises: DataError naming the file that cannot be read, or is of another shape than the first.
        """
        out = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        rows = index.tolist()

        def fill(place: int) -> None:
            image = torch.from_numpy(np.array(self.one(rows[place] % self.count)))
            out[place] = image.flip(2) if rows[place] >= self.count else image

        with ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(fill, range(len(rows))))
        return out

    def with_flips(self) -> ImageStream:
        """Twice the stream: after the images their mirror images (left to right); the digest stays."""
        labels = None if self.labels is None else self.labels.repeat(2)
        return self if self.flipped else replace(self, labels=labels, flipped=True)

    def sample(self, count: int) -> ImageSet:
        """`count` of the images, or all of fewer, spread evenly, in memory."""
        index = torch.linspace(0, self.count - 1, min(count, self.count), dtype=torch.float64).round().long()
        labels = None if self.labels is None else self.labels[index]
        return ImageSet(self.name, self.read(index), labels, self.classes, self.notes)

    def __repr__(self) -> str:
        classes = f"{self.num_classes} classes" if self.labels is not None else "no labels"
        return f"{self.name}: {self.count:,} images {'×'.join(map(str, self.shape))}, {classes}, streamed"

    def describe(self) -> str:
        """One line: name, count, shape, classes, the digest's first 12 digits."""
        return f"{self!r}, digest {self.digest[:12]}"


def of_folder(path: Path, policy: Policy, split: str | None) -> ImageStream:
    """A folder's or a zip's image files by the policy. Where it does not say the channels, they are three if one of 64 images spread evenly
    is coloured.

    Raises: DataError where there are none, or one of the 64 cannot be read.
    """
    tree, formats = open_tree(path), decodable()
    images = [name for name in tree.names if _suffix(name) in formats]
    if not images:
        raise DataError(f"{path} holds no image files (see docs/data.md)")
    chosen = label(tree, images, split)
    names = list(chosen.names)
    looked = [_decoded(tree, names[i], formats, policy) for i in _spread(len(names))]
    if policy.channels is None:
        policy = replace(policy, channels=max(image.shape[0] for image in looked))
    shape = _decoded(tree, names[0], formats, policy).shape

    def one(i: int) -> np.ndarray:
        image = _decoded(tree, names[i], formats, policy)
        if image.shape != shape:
            raise DataError(f"{tree.where(names[i])}: {image.shape}, the first image is {shape}: give a size")
        return image

    digest = _digest([len(names), *shape, *names], (tree.read(names[i]) for i in _spread(len(names))))
    return ImageStream(
        path.stem, shape, len(names), one, digest, chosen.labels, chosen.classes, tuple(chosen.notes)
    )


def of_npy(path: Path, policy: Policy, layout: str | None) -> ImageStream:
    """Images of a .npy file, (M, H, W), (M, H, W, C) or (M, C, H, W) uint8, through a memory map. Raises: DataError."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as images: {error}") from error
    if mapped.ndim not in (3, 4) or not mapped.size:
        raise DataError(f"{path} must hold (M, H, W[, C]) or (M, C, H, W), M ≥ 1; it holds {mapped.shape}")

    def one(i: int) -> np.ndarray:
        image = to_images(np.array(mapped[i : i + 1]), path.name, layout)[0]
        return policy.of_array(image.permute(1, 2, 0).numpy()).transpose(2, 0, 1)

    parts = (mapped[i].tobytes() for i in _spread(len(mapped)))
    return ImageStream(path.stem, one(0).shape, len(mapped), one, _digest([mapped.shape, layout], parts))


def of_set(images: ImageSet) -> ImageStream:
    """A set that is in memory already."""
    return ImageStream(
        images.name, images.shape, len(images), lambda i: images.images[i].numpy(), images.digest,
        images.labels, images.classes, images.notes,
    )  # fmt: skip


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _spread(count: int) -> list[int]:
    return sorted({round(k * (count - 1) / (_DIGESTED - 1)) for k in range(_DIGESTED)})


def _decoded(tree: Tree, name: str, formats: dict[str, tuple[str, ...]], policy: Policy) -> np.ndarray:
    """(C, H, W) bytes of one file."""
    try:
        return decode(tree.read(name), formats[_suffix(name)], policy)[0].transpose(2, 0, 1)
    except DataError as error:
        raise DataError(f"{tree.where(name)}: {error}") from error


def _digest(facts: list[object], parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=32, person=b"pfgm_fast stream")
    digest.update(repr(facts).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
