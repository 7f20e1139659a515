"""CIFAR-10 and CIFAR-100 as their authors publish them: the python versions (pickles) and the binary versions."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.labels import class_indices
from pfgm_fast.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGE = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """Files of the two splits; the key or column of the labels; the file with the classes' names."""

    name: str
    train: str
    test: str
    key: bytes
    label_bytes: int
    names: str

    def files(self, folder: Path, split: str) -> list[Path]:
        pattern = {"train": self.train, "test": self.test}.get(split)
        if pattern is None:
            raise DataError(f"{folder}: CIFAR has the splits train and test; got {split!r}")
        suffixes = ("", ".bin")
        return sorted(p for p in folder.glob(pattern) if p.suffix in suffixes and p.is_file())


_VERSIONS = (
    _Version("cifar10", "data_batch_*", "test_batch*", b"labels", 1, ""),
    _Version("cifar100", "train", "test", b"fine_labels", 2, "meta"),
    _Version("cifar100", "train.bin", "test.bin", b"fine_labels", 2, "fine_label_names.txt"),
)


def _version(folder: Path) -> _Version | None:
    for version in _VERSIONS:
        named = not version.names or (folder / version.names).is_file()
        if named and (version.files(folder, "train") or version.files(folder, "test")):
            return version
    return None


def is_cifar(path: Path) -> bool:
    """Whether the folder holds batches of CIFAR-10 or CIFAR-100."""
    return _version(path) is not None


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What `_codecs.encode` does in pickles of bytes; other codecs, some of which decompress, are refused."""
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding}")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers: a pickle from the net must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric"):
            found = _NUMPY.get(name)
            if found is not None:
                return found
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")


# What NumPy's own pickles name, whichever version wrote them.
_NUMPY = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(0).__reduce__()[0],
    "scalar": np.int64(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
}


def _unpickled(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="bytes").load()
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}, not a dict")
        return found
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise DataError(
            f"{path} is not a batch of CIFAR's python version: {error or type(error).__name__}"
        ) from error


def _read_python(path: Path, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    batch = {k.encode() if isinstance(k, str) else k: v for k, v in _unpickled(path).items()}
    missing = [key for key in (b"data", version.key) if key not in batch]
    if missing:
        raise DataError(f"{path} is not a batch of CIFAR's python version: it has no {missing[0].decode()!r}")
    images = batch[b"data"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_IMAGE,):
        got = f"{images.shape}, {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{path}: expected rows of {_IMAGE} bytes; got {got}")
    labels = class_indices(batch[version.key], str(path)).numpy()
    if len(labels) != len(images):
        raise DataError(f"{path}: {len(images)} images, but {len(labels)} labels")
    return images, labels


def _read_binary(path: Path, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    row = _IMAGE + version.label_bytes
    if raw.size == 0 or raw.size % row:
        raise DataError(
            f"{path} is truncated: {raw.size} bytes are not a multiple of {row} (label and image)"
        )
    rows = raw.reshape(-1, row)
    return rows[:, version.label_bytes :].copy(), rows[:, version.label_bytes - 1].astype(np.int64)


def _classes(folder: Path, version: _Version) -> tuple[str, ...]:
    if not version.names:
        return CLASSES
    path = folder / version.names
    if path.suffix == ".txt":
        names = path.read_text(errors="replace").split()
    else:
        found = _unpickled(path)
        names = found.get(b"fine_label_names", found.get("fine_label_names", []))
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise DataError(f"{path}: expected a list of the classes' names")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else name for name in names)


def read_cifar(path: Path, split: str | None = None) -> ImageSet:
    """The images of a folder such as `cifar-10-batches-py`, `-bin`, `cifar-100-python`, `-binary`, with their (fine) labels.

    split: train (50,000 images) or test (10,000). Raises: DataError for a missing split, a damaged or malicious file, labels that
    are no class indices.
    """
    version = _version(path)
    assert version is not None, "is_cifar decides"
    files = version.files(path, split or "train")
    if not files:
        raise DataError(f"{path} has no files of the split {split or 'train'!r}")
    parts = [(_read_binary if file.suffix == ".bin" else _read_python)(file, version) for file in files]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    return ImageSet(version.name, torch.from_numpy(images), labels, _classes(path, version))
