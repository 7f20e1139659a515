"""Class labels: whole numbers 0 … K − 1, wherever they were read from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pfgm_fast.errors import DataError

_LARGEST = 2**31 - 1


def class_indices(values: ArrayLike | Tensor, name: str) -> Tensor:
    """Labels as (M,) int64, each 0 ≤ label < 2³¹; not every class up to the largest need occur.

    values: (M,) or (M, 1) whole numbers of any numeric type, or (M, K) one-hot rows. name: what the message begins with.
    Raises: DataError naming the first label that is no class index.
    """
    try:
        found = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: labels are no array of numbers: {error}") from None
    if found.size == 0:
        raise DataError(f"{name}: there are no labels; got shape {found.shape}")
    if found.dtype.kind not in "iuf":
        raise DataError(
            f"{name}: labels must be whole numbers from 0; got {found.dtype}, such as {found.flat[0]!r}"
        )
    if found.ndim == 2 and found.shape[1] > 1:
        return torch.from_numpy(_from_one_hot(found, name))
    if found.ndim == 2:
        found = found[:, 0]
    if found.ndim != 1:
        raise DataError(f"{name}: labels must have shape (M,) or be one-hot (M, K); got {found.shape}")
    good = (found >= 0) & (found <= _LARGEST)
    if found.dtype.kind == "f":
        good &= found == np.floor(found)
    if not good.all():
        at = int(np.argmin(good))
        raise DataError(f"{name}: labels must be whole numbers from 0; labels[{at}] is {found[at].item()!r}")
    return torch.from_numpy(found.astype(np.int64))


def _from_one_hot(rows: np.ndarray, name: str) -> np.ndarray:
    index = rows.argmax(1)
    wrong = (rows != np.eye(rows.shape[1], dtype=rows.dtype)[index]).any(1)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{name}: labels of shape {rows.shape} must be one-hot rows; row {at} is {rows[at][:8].tolist()}"
        )
    return index.astype(np.int64)
