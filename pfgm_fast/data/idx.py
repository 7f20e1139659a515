"""idx files, MNIST's format: two zero bytes, the type (8: bytes), the number of dimensions, big-endian sizes, the data."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.errors import DataError

_BYTES = 8


def find_idx(path: Path) -> Path | None:
    """The file of images: the path itself, or in a folder the training set's before the test set's."""
    if path.is_file():
        return path if "idx3" in path.name else None
    found = sorted(path.glob("*idx3-ubyte*"), key=lambda p: (not p.name.startswith("train"), p.name))
    return found[0] if found else None


def _array(path: Path, dimensions: int) -> np.ndarray:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read or unpacked ({error})") from error
    head = 4 + 4 * dimensions
    if len(raw) < head or raw[0] or raw[1] or raw[2] != _BYTES or raw[3] != dimensions:
        raise DataError(f"{path} is not an idx file of bytes in {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", raw[4:head])
    count = int(np.prod(sizes))
    if len(raw) - head != count:
        raise DataError(
            f"{path} is truncated or damaged: sizes {sizes} need {count} bytes, {len(raw) - head} are there"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(sizes).copy()


def read_idx(path: Path) -> ImageSet:
    """Images, with the labels of the idx1 file of the same name where it stands beside."""
    images = torch.from_numpy(_array(path, 3))[:, None]
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = torch.from_numpy(_array(beside, 1).astype(np.int64)) if beside.exists() else None
    return ImageSet("mnist", images, labels, tuple(map(str, range(10))) if labels is not None else ())
