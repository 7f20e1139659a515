"""Sizes of images: what `size` and `crop` may be."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

from pfgm_fast.errors import ArgumentError

LARGEST_EDGE = 16_384


def parse_size(size: object, name: str = "size") -> tuple[int, int]:
    """(height, width) from N, (H, W), or the texts "N" and "HxW".

    Raises: ArgumentError for anything else, or an edge outside 1 … 16,384.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX×]\s*(\d{1,9}))?\s*", size)
        edges: Sequence[object] = () if match is None else (int(match[1]), int(match[2] or match[1]))
    else:
        edges = size if isinstance(size, (tuple, list)) else (size, size)
    try:
        if any(isinstance(edge, bool) for edge in edges):
            raise TypeError
        height, width = (operator.index(edge) for edge in edges)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be N, HxW or (H, W) in whole pixels; got {size!r}") from None
    if not (1 <= height <= LARGEST_EDGE and 1 <= width <= LARGEST_EDGE):
        raise ArgumentError(f"{name} must have edges of 1 to {LARGEST_EDGE} pixels; got {size!r}")
    return height, width
