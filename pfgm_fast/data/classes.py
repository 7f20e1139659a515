"""Where the images of a folder or zip get their labels from: `dataset.json`, or else the folders.

In this order: `dataset.json` (EDM's and StyleGAN's) rules; folders named train, val and test are splits; folders that
only spread many files (EDM's 00000/img00000000.png, FFHQ's 01000/01234.png) say nothing; otherwise the first level of
folders are the classes, as for torchvision's ImageFolder.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.data.labels import class_indices
from pfgm_fast.data.tree import Tree, shown, some
from pfgm_fast.errors import DataError

DATASET_JSON = "dataset.json"
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass
class Labelled:
    """names: the images to read; labels: (M,) int64 of them; classes: the labels' names; notes: what was decided."""

    names: list[str]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def label(tree: Tree, images: list[str], split: str | None) -> Labelled:
    """Which of the images belong to the split, and their labels. Raises: DataError for a wrong `dataset.json` or split."""
    described = [name for name in tree.names if PurePosixPath(name).name == DATASET_JSON]
    if described:
        if split is not None:
            raise DataError(f"{tree.where(described[0])} names no splits: split={split!r} cannot be read")
        return _from_dataset_json(tree, images, described)
    prefix = _common_folder(images)
    kept, notes = _of_split(tree, images, prefix, split)
    prefix = _common_folder(kept)
    inside = [name[len(prefix) :] for name in kept]
    folders = [name.split("/")[0] if "/" in name else None for name in inside]
    found = {folder for folder in folders if folder is not None}
    if not found:
        return Labelled(kept, notes=notes)
    if _only_storage(inside):
        notes.append(
            f"folders that only spread the files (EDM's or FFHQ's names) and are no classes: {len(found):,}"
        )
        return Labelled(kept, notes=notes)
    beside = [name for name, folder in zip(kept, folders, strict=True) if folder is None]
    if beside:
        notes.append(
            f"images beside the folders, so that the folders are no classes: {len(beside):,} ({some(beside)})"
        )
        return Labelled(kept, notes=notes)
    classes = sorted(found, key=int if all(re.fullmatch("[0-9]{1,18}", f) for f in found) else None)
    index = {name: i for i, name in enumerate(classes)}
    if any(name.count("/") > 1 for name in inside):
        notes.append("folders inside the class folders are no classes of their own")
    labels = torch.tensor([index[folder] for folder in folders if folder is not None])
    return Labelled(kept, labels, tuple(map(shown, classes)), notes)


def _common_folder(names: list[str]) -> str:
    """The folders that all names lie in, with a `/` at the end, or nothing."""
    parts = [name.split("/")[:-1] for name in (min(names), max(names))]  # of sorted names the extremes decide
    shared = []
    for a, b in zip(*parts, strict=False):
        if a != b:
            break
        shared.append(a)
    return "".join(f"{part}/" for part in shared)


def _of_split(tree: Tree, images: list[str], prefix: str, split: str | None) -> tuple[list[str], list[str]]:
    """The images of one split where folders are named for splits (the training set, unless told), and notes."""
    if split is not None and split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(sorted(set(SPLITS.values())))}; got {split!r}")
    wanted = SPLITS[split] if split else None
    within = [SPLITS[part.lower()] for part in prefix.split("/") if part.lower() in SPLITS]
    parts: dict[str | None, list[str]] = {}
    for name in images:
        first, slash, _ = name[len(prefix) :].partition("/")
        parts.setdefault(first if slash else None, []).append(name)
    folders = [folder for folder in parts if folder is not None]
    by_split = {SPLITS[folder.lower()]: folder for folder in folders if folder.lower() in SPLITS}
    if len(folders) < 2 or len(by_split) < len(folders):
        if wanted is not None and wanted not in within:
            raise DataError(f"{tree.path} has no folder of the split {split!r}")
        return images, []
    chosen = wanted or ("train" if "train" in by_split else None)
    if chosen not in by_split:
        raise DataError(
            f"{tree.path} has the splits {', '.join(sorted(by_split))}"
            + (", not " + repr(split) if split else ": say which by split=")
        )
    kept = parts[by_split[chosen]]
    rest = sorted(
        f"{folder}/" if folder else names[0] for folder, names in parts.items() if names is not kept
    )
    return kept, [
        f"split {chosen!r} is read, {len(kept):,} of {len(images):,} images; left out: {', '.join(map(shown, rest))} "
        "(choose by split=)"
    ]


def _only_storage(names: list[str]) -> bool:
    """EDM's and StyleGAN's 00012/img00012345.png, FFHQ's 12000/12345.png: five digits that follow from the file's number."""
    for name in names:
        match = re.fullmatch(r"([0-9]{5})/(?:img([0-9]{8})|([0-9]{5}))\.[A-Za-z0-9]+", name)
        if match is None:
            return False
        folder, number = int(match[1]), int(match[2] or match[3])
        if folder != (number // 1000 if match[2] else number // 1000 * 1000):
            return False
    return True


def _from_dataset_json(tree: Tree, images: list[str], described: list[str]) -> Labelled:
    where = tree.where(described[0])
    root = described[0][: -len(DATASET_JSON)]
    if len(described) > 1:
        raise DataError(
            f"{tree.path} has several {DATASET_JSON}: {some(described)}; give the path of one set"
        )
    outside = [name for name in images if not name.startswith(root)]
    if outside:
        raise DataError(f"{where} says nothing of images outside its folder, such as {shown(outside[0])}")
    try:
        content: Any = json.loads(tree.read(described[0]))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(content, dict) or "labels" not in content:
        raise DataError(f'{where} must hold {{"labels": [[file, class], …]}} or {{"labels": null}}')
    pairs = content["labels"]
    if not pairs:
        if pairs is not None and pairs != []:
            raise DataError(f'{where}: "labels" must be a list of [file, class], or null; got {pairs!r}')
        return Labelled(images)
    given: dict[str, Any] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise DataError(f"{where}: labels must be a list of [file, class], or null; got {str(pair)[:80]}")
        name = root + pair[0].replace("\\", "/")
        if given.setdefault(name, pair[1]) != pair[1]:
            raise DataError(f"{where}: {pair[0]} has two labels, {given[name]} and {pair[1]}")
    missing = [name for name in images if name not in given]
    if missing:
        raise DataError(f"{where}: images without a label: {len(missing):,} ({some(missing)})")
    labels = class_indices([given[name] for name in images], where)
    names = content.get("classes")  # ours: EDM's tools write no names
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        names = []
    classes = tuple(names) if len(names) > int(labels.max()) else ()
    absent = sorted(set(given) - set(images))
    notes = [f"labels of files that are not there: {len(absent):,} ({some(absent)})"] if absent else []
    return Labelled(images, labels, classes, notes)
