"""scikit-learn's digits, and arrays saved by NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.labels import class_indices
from pfgm_fast.errors import ArgumentError, DataError
from pfgm_fast.extras import wanted

LAYOUTS = ("NHWC", "NCHW")
# (images, labels) of a whole set, and by split: Keras' and MedMNIST's names.
WHOLE = (
    ("images", "labels"),
    ("x", "y"),
    ("data", "labels"),
    ("data", "label"),
    ("images", "label"),
    ("images", "y"),
    ("x", "labels"),
    ("x", "label"),
    ("data", "y"),
    ("arr_0", "arr_1"),
)
BY_SPLIT = {
    "train": (("x_train", "y_train"), ("X_train", "y_train"), ("train_images", "train_labels")),
    "val": (("x_val", "y_val"), ("X_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("X_test", "y_test"), ("test_images", "test_labels")),
}


def digits() -> ImageSet:
    """The 1,797 handwritten digits of scikit-learn, 8×8, their 17 levels spread over the bytes.

    Raises: MissingPackageError where scikit-learn is not installed.
    """
    wanted("sklearn", "the data set 'digits' needs")
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    return ImageSet("digits", torch.from_numpy(images), labels, tuple(map(str, range(10))))


def to_images(array: np.ndarray, name: str, layout: str | None = None) -> torch.Tensor:
    """(M, H, W), (M, H, W, C) or (M, C, H, W) bytes → (M, C, H, W); channels are 1, 3 or 4.

    layout: NHWC or NCHW. None: the one that fits; where both do, the one whose images are square, else the one that has
    not 4 channels. Raises: DataError where that decides nothing.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ArgumentError(f"layout must be NHWC, NCHW or None; got {layout!r}")
    if array.dtype != np.uint8:
        raise DataError(f"{name}: images must be uint8 (0 to 255); got {array.dtype}")
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array[:, None]))
    channels = {"NHWC": array.shape[3], "NCHW": array.shape[1]} if array.ndim == 4 else {}
    fits = [way for way in LAYOUTS if channels.get(way) in (1, 3, 4) and layout in (None, way)]
    if not fits:
        raise DataError(
            f"{name}: images must be (M, H, W), (M, H, W, C) or (M, C, H, W) with C of 1, 3 or 4; "
            f"got shape {array.shape}" + (f", layout {layout}" if layout else "")
        )
    if len(fits) == 2:
        square = [
            way for way in fits if len({*(array.shape[1:3] if way == "NHWC" else array.shape[2:])}) == 1
        ]
        fits = square if len(square) == 1 else [way for way in fits if channels[way] != 4]
    if len(fits) != 1 and array.shape[1:] != (1, 1, 1):
        raise DataError(
            f"{name}: images of shape {array.shape} can be read as (M, H, W, C) and as (M, C, H, W): say layout='NHWC' or 'NCHW'"
        )
    if fits[0] == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def read_numpy(path: Path, split: str | None = None, layout: str | None = None) -> ImageSet:
    """A .npy of images, or a .npz of images and, where there are, labels: see WHOLE and BY_SPLIT.

    Raises: DataError for a file that is damaged, holds pickles, or has no such arrays.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if split is not None:
                raise DataError(f"{path} is one array, without splits: split={split!r} cannot be read")
            return ImageSet(path.stem, to_images(loaded, str(path), layout))
        with loaded:
            return _read_npz(path, loaded, split, layout)
    except (DataError, ArgumentError):
        raise
    except Exception as error:  # a damaged archive raises what its decompressor likes
        raise DataError(
            f"{path} is not a readable NumPy file of plain arrays (no pickles): {error or type(error).__name__}"
        ) from error


def _read_npz(path: Path, arrays: np.lib.npyio.NpzFile, split: str | None, layout: str | None) -> ImageSet:
    splits = {
        name: next(pair for pair in pairs if pair[0] in arrays)
        for name, pairs in BY_SPLIT.items()
        if any(pair[0] in arrays for pair in pairs)
    }
    whole = [pair for pair in WHOLE if pair[0] in arrays]
    if split is None and whole:
        image_key = whole[0][0]
        label_key = next((label for image, label in whole if image == image_key and label in arrays), None)
    else:
        wanted = split or ("train" if "train" in splits else next(iter(splits), None))
        if wanted not in splits:
            keys = ", ".join(dict.fromkeys(pair[0] for pair in WHOLE))
            what = f"no images of the split {split!r}" if split else f"no array named {keys} or x_train"
            raise DataError(f"{path}: {what}; it holds {arrays.files}")
        image_key, label_key = splits[wanted]
    images = to_images(arrays[image_key], str(path), layout)
    labels, used = None, {image_key}
    if label_key is not None and label_key in arrays:
        found = arrays[label_key]
        if label_key != "arr_1" or found.ndim <= 2:  # np.savez(file, images, more_images) has an arr_1 too
            labels = class_indices(found, str(path))
            used.add(label_key)
    rest = [key for key in arrays.files if key not in used]
    notes = (f"{', '.join(sorted(used))} are read; left out: {', '.join(rest)}",) if rest else ()
    return ImageSet(path.stem, images, labels, notes=notes)
