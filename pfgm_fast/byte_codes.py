"""Floats that are bytes' values, found again as bytes: images are mostly given as floats, and kernels read bytes faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_SAMPLED = 1 << 16
_COMMON = ((127.5, -1.0), (255.0, 0.0), (1.0, 0.0))
"""(divisor, offset) of images in [−1, 1], in [0, 1], and of whole numbers."""


class ByteCodes(NamedTuple):
    """`codes / divisor + offset`, two roundings in float32, is every value to the bit."""

    codes: Tensor  # (M, N) uint8
    divisor: float
    offset: float

    def put(self, index: Tensor, values: Tensor) -> ByteCodes | None:
        """These with the bytes of values (K, N) at index (K,), in place; None where one of them is no byte's of this grid."""
        found = _codes(values, self.divisor, self.offset)
        if found is None:
            return None
        self.codes[index] = found
        return self


def _codes(values: Tensor, divisor: float, offset: float) -> Tensor | None:
    """The bytes of values, or None where a value is no byte's."""
    whole = values.sub(offset).mul_(divisor).round_().clamp_(0, 255)  # NaN stays, and equals nothing
    codes = whole.to(torch.uint8)
    return codes if torch.equal(whole.div_(divisor).add_(offset), values) else None


def _grids(sample: Tensor) -> Iterator[tuple[float, float]]:
    """What the values may be a grid of: what images are stored as, or the smallest step that occurs, from the least value on."""
    yield from _COMMON
    levels = sample.unique()
    if 2 <= len(levels) <= 256 and bool(levels.isfinite().all()):
        halves = round(2.0 / float(levels.double().diff().min()))
        if halves > 0:
            yield halves / 2, float(levels[0])


def byte_codes(values: Tensor, blocks: list[slice]) -> ByteCodes | None:
    """The bytes whose values these (M, N) are, or None where they are none: a sample says which divisor and offset, and every
    value must then agree to the bit. float32; `blocks` cut the rows."""
    sample = values[: max(1, _SAMPLED // values.shape[1])].flatten()
    for divisor, offset in _grids(sample):
        if _codes(sample, divisor, offset) is None:
            continue
        codes = torch.empty(values.shape, dtype=torch.uint8)
        for block in blocks:
            found = _codes(values[block], divisor, offset)
            if found is None:
                break
            codes[block] = found
        else:
            return ByteCodes(codes, divisor, offset)
    return None
