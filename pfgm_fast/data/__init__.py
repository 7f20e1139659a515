"""Images as bytes from the formats that people have: load(spec) → ImageSet.

| spec | what is read |
|---|---|
| `digits` | scikit-learn's 1,797 handwritten digits, 8×8 |
| a folder with `*-idx3-ubyte[.gz]`, or one such file | MNIST and its like, labels from the `idx1` beside |
| a folder with `data_batch_*` or `data_batch_*.bin` | CIFAR-10, python or binary version |
| `.npz`, `.npy` | arrays of images |
| a folder or `.zip` of images | one class a sub-folder, where there are sub-folders |
"""

from __future__ import annotations

from pathlib import Path

from pfgm_fast.data.arrays import digits, read_numpy
from pfgm_fast.data.cifar import is_cifar, read_cifar
from pfgm_fast.data.folder import read_images
from pfgm_fast.data.geometry import parse_size
from pfgm_fast.data.idx import find_idx, read_idx
from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.errors import DataError


def load(spec: str | Path, size: int | None = None) -> ImageSet:
    """Read a data set. size: height and width that images of a folder or zip are cropped and resized to.

    Raises: DataError naming the file and what was expected.
    """
    if str(spec) == "digits":
        return digits()
    path = Path(spec).expanduser()
    if not path.exists():
        raise DataError(f"no data at {path}: give 'digits', or a path to images (see pfgm_fast.data)")
    if path.suffix in (".npz", ".npy"):
        return read_numpy(path)
    if path.suffix == ".zip":
        return read_images(path, size)
    idx = find_idx(path)
    if idx is not None:
        return read_idx(idx)
    if path.is_dir():
        return read_cifar(path) if is_cifar(path) else read_images(path, size)
    raise DataError(f"{path} is of no kind that can be read: .zip, .npz, .npy, an idx file, or a folder")


__all__ = ["ImageSet", "load", "parse_size"]
