"""CIFAR-10 as its authors publish it: the python version (pickles) and the binary version."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGE = 3 * 32 * 32


def _batches(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("data_batch_*") if p.suffix in ("", ".bin"))


def is_cifar(path: Path) -> bool:
    return bool(_batches(path))


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers: a pickle from the net must not run code."""

    _allowed = frozenset({"_reconstruct", "ndarray", "dtype", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a batch of CIFAR-10's python version: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _IMAGE:
        raise DataError(f"{path}: expected rows of {_IMAGE} bytes; got {images.shape}, {images.dtype}")
    return images, labels


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % (_IMAGE + 1):
        raise DataError(
            f"{path} is truncated: {raw.size} bytes are not a multiple of {_IMAGE + 1} (label and image)"
        )
    rows = raw.reshape(-1, _IMAGE + 1)
    return rows[:, 1:].copy(), rows[:, 0].astype(np.int64)


def read_cifar(path: Path) -> ImageSet:
    """The 50,000 training images of a folder `cifar-10-batches-py` or `cifar-10-batches-bin`."""
    parts = [_read_binary(p) if p.suffix == ".bin" else _read_python(p) for p in _batches(path)]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    return ImageSet("cifar10", torch.from_numpy(images), torch.from_numpy(labels), CLASSES)
