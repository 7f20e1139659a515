"""idx files, MNIST's format: two zero bytes, the type (8: bytes), the number of dimensions, big-endian sizes, the data."""

from __future__ import annotations

import gzip
import math
import re
import struct
from pathlib import Path

import numpy as np
import torch

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.tree import some
from pfgm_fast.errors import DataError

_BYTES = 8
_IMAGES = re.compile(r"idx3", re.IGNORECASE)
_DIGITS = tuple(map(str, range(10)))
# Names of the labels of the sets that publish such files, by what is left of the folder's name.
KNOWN = {
    "mnist": _DIGITS,
    "qmnist": _DIGITS,
    "emnistdigits": _DIGITS,
    "emnistmnist": _DIGITS,
    "fashionmnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}


def is_idx(path: Path) -> bool:
    """Whether the path is an idx file of images, or a folder that has one, or torchvision's `raw` folder with one."""
    return bool(_IMAGES.search(path.name)) if path.is_file() else bool(_image_files(path))


def _image_files(folder: Path) -> list[Path]:
    """One file a set of images: of x and x.gz the unpacked one."""
    for place in (folder, folder / "raw"):
        found: dict[str, Path] = {}
        for path in sorted(place.glob("*idx3*")):
            if path.is_file() and not path.name.startswith("."):
                found.setdefault(path.name.removesuffix(".gz"), path)
        if found:
            return list(found.values())
    return []


def _split(path: Path) -> str | None:
    name = path.name.lower()
    return "train" if "train" in name else "test" if re.search("t10k|test", name) else None


def _choose(folder: Path, split: str | None) -> tuple[Path, tuple[str, ...]]:
    """The file of the split (the training set, unless told), and what is said about the others."""
    files = _image_files(folder)
    if split is None:
        chosen = files if len(files) == 1 else [path for path in files if _split(path) == "train"]
    else:
        chosen = [path for path in files if _split(path) == split]
    if len(chosen) != 1:
        what = f"of the split {split!r}" if split else "of images to choose"
        raise DataError(
            f"{folder}: there is no single file {what} among {', '.join(path.name for path in files)}; "
            "say split='train' or 'test', or give the file's path"
        )
    rest = [path.name for path in files if path != chosen[0]]
    if not rest:
        return chosen[0], ()
    return chosen[0], (f"{chosen[0].name} is read; left out: {some(rest)} (choose by split=)",)


def _array(path: Path, dimensions: int) -> np.ndarray:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except Exception as error:  # damaged gzip data raises several kinds
        raise DataError(f"{path}: cannot be read or unpacked ({error})") from error
    head = 4 + 4 * dimensions
    if len(raw) < head or raw[0] or raw[1] or raw[2] != _BYTES or raw[3] != dimensions:
        raise DataError(f"{path} is not an idx file of bytes in {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", raw[4:head])
    count = math.prod(sizes)
    if len(raw) - head != count:
        raise DataError(
            f"{path} is truncated or damaged: sizes {sizes} need {count} bytes, {len(raw) - head} are there"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(sizes).copy()


def read_idx(path: Path, split: str | None = None) -> ImageSet:
    """Images of an idx3 file, or of a folder with some, with the labels of the idx1 file of the same name beside it.

    split: train or test; None: the training set where the folder has both. Raises: DataError where the choice is not clear or a
    file is damaged.
    """
    notes: tuple[str, ...] = ()
    if path.is_file():
        if split is not None and split != _split(path):
            raise DataError(f"{path} is one file, not known to be of the split {split!r}")
        file = path
    else:
        file, notes = _choose(path, split)
    images = torch.from_numpy(_array(file, 3))[:, None]
    beside = file.with_name(re.sub("idx3", "idx1", file.name.replace("images", "labels")))
    packed = beside.with_name(beside.name + ".gz"), beside.with_name(beside.name.removesuffix(".gz"))
    found = next((p for p in (beside, *packed) if p != file and p.is_file()), None)
    if found is None:
        return ImageSet(_name(file), images, notes=(*notes, f"no labels: {beside.name} is not there"))
    labels = torch.from_numpy(_array(found, 1).astype(np.int64))
    classes = _classes(file)
    if len(labels) and int(labels.max()) >= len(classes):
        classes = ()  # another set than the name says
    return ImageSet(_name(file), images, labels, classes, notes)


def _folder(file: Path) -> Path:
    folder = file.resolve().parent
    return folder.parent if folder.name == "raw" else folder


def _name(file: Path) -> str:
    """The prefix of EMNIST's and QMNIST's files, or the folder's name."""
    prefix = re.match(r"(.+?)[-_](?:train|test|t10k)", file.name)
    return prefix[1] if prefix else _folder(file).name


def _classes(file: Path) -> tuple[str, ...]:
    """The labels' names: of EMNIST's mapping file, or of a set that is recognised by its folder's or file's name; or none."""
    prefix = re.match(r"(.+?)[-_](?:train|test|t10k)", file.name)
    if prefix and (mapping := file.with_name(f"{prefix[1]}-mapping.txt")).is_file():
        return _mapped(mapping)
    name = prefix[1] if prefix else _folder(file).name
    letters = re.sub("t10k|train|test|data|raw|[^a-z]", "", name.lower())
    return KNOWN.get(letters, ())


def _mapped(mapping: Path) -> tuple[str, ...]:
    """EMNIST's mapping: a line a label, with the code of its character."""
    try:
        rows = [tuple(map(int, line.split())) for line in mapping.read_text().splitlines() if line.strip()]
        names = {row[0]: chr(row[1]) for row in rows}
        return tuple(names.get(i, f"({i})") for i in range(max(names) + 1)) if max(names) < 1000 else ()
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{mapping} is no list of labels and character codes: {error}") from None
