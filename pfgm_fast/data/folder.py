"""A folder or a zip of image files, read by the policy of `policy.py` and labelled by `classes.py`."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from pfgm_fast.data.classes import DATASET_JSON, label
from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.policy import Policy, decodable, decode
from pfgm_fast.data.stack import Stack
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
    stack = Stack(policy, len(chosen.names))
    for name in chosen.names:
        raw = tree.read(name)
        try:
            stack.add(name, *decode(raw, formats[_suffix(name)], policy))
        except DataError as error:
            raise DataError(f"{tree.where(name)}: {error}") from error
    notes = [*chosen.notes, *stack.notes(), *([out] if out else [])]
    return ImageSet(path.stem, stack.images(), chosen.labels, chosen.classes, tuple(notes))


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
