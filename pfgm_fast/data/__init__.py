"""Images as bytes from the formats that people have: load(spec) → ImageSet. docs/data.md is the policy, in words.

| spec | what is read |
|---|---|
| `digits` | scikit-learn's 1,797 handwritten digits, 8×8 |
| a folder with `*-idx3-ubyte[.gz]`, or one such file | MNIST and its like, labels from the `idx1` beside |
| a folder of CIFAR-10 or CIFAR-100 | python or binary version |
| `.npz`, `.npy` | arrays of images, and labels |
| a folder or `.zip` of images | labels of `dataset.json`, or one class a folder |
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TypeVar

from pfgm_fast.data.arrays import digits, read_numpy
from pfgm_fast.data.cifar import is_cifar, read_cifar
from pfgm_fast.data.datasets import from_dataset
from pfgm_fast.data.edm import save_zip
from pfgm_fast.data.folder import read_images
from pfgm_fast.data.geometry import parse_size
from pfgm_fast.data.idx import is_idx, read_idx
from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.data.policy import Policy
from pfgm_fast.data.stream import ImageStream, of_folder, of_npy, of_set
from pfgm_fast.errors import ArgumentError, DataError

_LOG = logging.getLogger("pfgm_fast.data")
Found = TypeVar("Found", ImageSet, ImageStream)


def load(
    spec: str | os.PathLike[str],
    size: int | str | tuple[int, int] | None = None,
    *,
    crop: int | str | tuple[int, int] | None = None,
    channels: int | None = None,
    split: str | None = None,
    layout: str | None = None,
    background: int | tuple[int, int, int] = 255,
) -> ImageSet:
    """Read a data set. What was decided or left out is in the result's `notes`, and is logged once, as a warning.

    Args:
        spec: `digits`, or a path; see the table of this module.
        size: N, (H, W) or "HxW": each image's largest centred rectangle of that shape is resized to it.
        crop: N, (H, W) or "HxW": cut this many pixels out of the centre first (CelebA: 140, then size 64).
        channels: 1 makes every image grey, 3 coloured; None: coloured where any is.
        split: train, val or test of a set that has them; None: the training set.
        layout: NHWC or NCHW of arrays, where their shape does not tell.
        background: grey or (r, g, b) of 0 to 255, seen through transparent pixels.

    Raises: DataError naming the file and what was expected; ArgumentError for an argument that is none of these.
    """
    policy = Policy.of(size, crop, channels, background)
    return _told(_read(spec, policy, split, layout))


def stream(
    spec: str | os.PathLike[str],
    size: int | str | tuple[int, int] | None = None,
    *,
    crop: int | str | tuple[int, int] | None = None,
    channels: int | None = None,
    split: str | None = None,
    layout: str | None = None,
    background: int | tuple[int, int, int] = 255,
) -> ImageStream:
    """The same for images that need not fit in memory: a folder, a zip or a .npy file is read image by image when it is asked for
    (`data.stream`); what has another form is read into memory as `load` does. Arguments and errors are those of `load`."""
    policy = Policy.of(size, crop, channels, background)
    path = _path(spec)
    if path is not None and path.suffix.lower() == ".npy" and path.is_file():
        return _told(of_npy(path, policy, layout))
    zipped = path is not None and path.suffix.lower() == ".zip" and path.is_file()
    if path is not None and (zipped or (path.is_dir() and not is_idx(path) and not is_cifar(path))):
        return _told(of_folder(path, policy, split))
    return of_set(_told(_read(spec, policy, split, layout)))


def _told(found: Found) -> Found:
    for note in found.notes:
        _LOG.warning("%s: %s", found.name, note)
    return found


def _path(spec: object) -> Path | None:
    """The path that a spec names, where there is something; None for anything else, which `_read` judges."""
    try:
        path = Path(spec).expanduser()  # type: ignore[arg-type]
        return path if str(spec) != "digits" and path.exists() else None
    except (OSError, RuntimeError, ValueError, TypeError):
        return None


def _read(spec: str | os.PathLike[str], policy: Policy, split: str | None, layout: str | None) -> ImageSet:
    if not isinstance(spec, (str, os.PathLike)):
        raise ArgumentError(f"a data set is named by 'digits' or a path; got a {type(spec).__name__}")
    if str(spec) == "digits":
        if split is not None:
            raise DataError(f"digits has no splits: split={split!r} cannot be read")
        return policy.of_arrays(digits())
    path = Path(spec)
    try:
        path = path.expanduser()
        there, folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be looked at: {error}") from error
    if not there:
        raise DataError(f"no data at {path}: give 'digits', or a path to images (see pfgm_fast.data)")
    try:
        suffix = path.suffix.lower()
        if suffix in (".npz", ".npy") and not folder:
            return policy.of_arrays(read_numpy(path, split, layout))
        if suffix == ".zip" and not folder:
            return read_images(path, policy, split)
        if is_idx(path):
            return policy.of_arrays(read_idx(path, split))
        if folder:
            cifar = is_cifar(path)
            return policy.of_arrays(read_cifar(path, split)) if cifar else read_images(path, policy, split)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise DataError(f"{path} is of no kind that can be read: .zip, .npz, .npy, an idx file, or a folder")


__all__ = ["ImageSet", "ImageStream", "from_dataset", "load", "of_set", "parse_size", "save_zip", "stream"]
