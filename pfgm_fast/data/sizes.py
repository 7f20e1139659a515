"""Heights and widths of a set's images before they are read, from the files' heads; and what a network can be given of them."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import Any

from PIL import Image

from pfgm_fast.data import ImageSet, load
from pfgm_fast.data.cifar import is_cifar
from pfgm_fast.data.classes import label
from pfgm_fast.data.idx import is_idx
from pfgm_fast.data.policy import decodable, orientation
from pfgm_fast.data.tree import open_tree

STEP = 4
"""Edges that are chosen are multiples of it: a network of three levels halves them twice."""
LONGEST = 64
"""Pixels of the longer edge that is chosen, at most."""
_LIES = (5, 6, 7, 8)
"""EXIF's orientations in which height and width change places."""


def load_fitting(
    spec: str, size: Any, takes: Callable[[int, int], bool], **options: Any
) -> tuple[ImageSet, Any]:
    """`load(spec, size, **options)`, and the size that the images were brought to (None: they are as they were).

    takes: whether a network takes images of a height and width. Where no size is asked for and the images differ in theirs, or have
    one that is not taken, the size is `common_size`, and a note says so.
    Raises: what `load` raises.
    """
    if size is not None:
        return load(spec, size, **options), size
    cropped = options.get("crop") is not None
    sizes = Counter() if cropped else image_sizes(spec, options.get("split"))
    if len(sizes) < 2:
        images = load(spec, **options)
        _, height, width = images.shape
        if takes(height, width):
            return images, None
        sizes = Counter({(height, width): len(images)})
    chosen = common_size(sizes)
    images = load(spec, chosen, **options)
    note = (
        f"{_spread(sizes)} pixels brought to {chosen[0]}×{chosen[1]}, the largest centred part of each "
        "(--size HxW for another size)"
    )
    return replace(images, notes=(note, *images.notes)), chosen


def image_sizes(path: str | os.PathLike[str], split: str | None = None) -> Counter[tuple[int, int]]:
    """(height, width), upright, of every image file below a folder or in a zip → how many have it; empty for other data.

    Files that are no images are left out here: `load` names them.

    Raises: DataError where the folder or zip cannot be read, or the split is not there.
    """
    path = Path(path).expanduser()
    zipped = path.suffix.lower() == ".zip" and path.is_file()
    if not zipped and (not path.is_dir() or is_idx(path) or is_cifar(path)):
        return Counter()
    tree, formats = open_tree(path), decodable()
    images = [name for name in tree.names if os.path.splitext(name)[1].lower() in formats]
    found: Counter[tuple[int, int]] = Counter()
    if not images:
        return found
    for name in label(tree, images, split).names:
        raw = tree.read(name)
        try:
            with Image.open(io.BytesIO(raw), formats=formats[os.path.splitext(name)[1].lower()]) as image:
                lies = orientation(image) in _LIES
                found[(image.width, image.height) if lies else (image.height, image.width)] += 1
        except Exception:  # a decoder may raise anything
            continue
    return found


def common_size(sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) to bring images to: the medians, reduced until the longer edge is at most 64, down to multiples of 4.

    sizes: not empty, as of `image_sizes`.
    """
    height, width = (median_low([size[axis] for size in sizes.elements()]) for axis in (0, 1))
    scale = min(1.0, LONGEST / max(height, width))
    return _down(height * scale), _down(width * scale)


def _down(edge: float) -> int:
    return max(STEP, int(edge + 1e-9) // STEP * STEP)


def _spread(sizes: Counter[tuple[int, int]]) -> str:
    """ "37×53", or "31×47 to 43×59": smallest and largest by area."""
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    ends = [f"{height}×{width}" for height, width in (by_area[0], by_area[-1])]
    return ends[0] if len(sizes) == 1 else " to ".join(ends)
