"""scikit-learn's digits, and arrays saved by NumPy."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.errors import DataError

IMAGE_KEYS = ("images", "x", "data", "x_train", "arr_0")
LABEL_KEYS = ("labels", "y", "label", "y_train", "arr_1")


def digits() -> ImageSet:
    """The 1,797 handwritten digits of scikit-learn, 8×8, their 17 levels spread over the bytes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    return ImageSet("digits", torch.from_numpy(images), labels, tuple(map(str, range(10))))


def to_images(array: np.ndarray, name: str) -> torch.Tensor:
    """(M, H, W), (M, H, W, C) or (M, C, H, W) bytes → (M, C, H, W); channels are 1, 3 or 4."""
    if array.dtype != np.uint8:
        raise DataError(f"{name}: images must be uint8 (0 to 255); got {array.dtype}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3, 4):
        raise DataError(
            f"{name}: images must be (M, H, W), (M, H, W, C) or (M, C, H, W) with C of 1, 3 or 4; "
            f"got shape {array.shape}"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


def read_numpy(path: Path) -> ImageSet:
    """A .npy of images, or a .npz with `images` (or x, data, arr_0) and, where there are, `labels` (or y, arr_1)."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return ImageSet(path.stem, to_images(loaded, str(path)))
        with loaded:
            key = next((k for k in IMAGE_KEYS if k in loaded), None)
            if key is None:
                raise DataError(f"{path}: no array named {', '.join(IMAGE_KEYS)}; it holds {loaded.files}")
            images = to_images(loaded[key], str(path))
            label_key = next((k for k in LABEL_KEYS if k in loaded), None)
            labels = None
            if label_key is not None:
                labels = torch.from_numpy(loaded[label_key].reshape(-1).astype(np.int64))
            return ImageSet(path.stem, images, labels)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is not a readable NumPy file of plain arrays (no pickles): {error}"
        ) from error
