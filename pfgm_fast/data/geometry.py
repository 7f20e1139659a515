"""Sizes of images: what `size` and `crop` may be, and the one way in which an image is brought to them."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

from PIL import Image

from pfgm_fast.errors import ArgumentError, DataError

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


def centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The rectangle of height × width around the centre; of two middles the one nearer to the upper left corner."""
    if image.size == (width, height):
        return image
    if height > image.height or width > image.width:
        raise DataError(
            f"an image of {image.height}×{image.width} pixels is smaller than the crop {height}×{width}"
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred rectangle of the shape height : width, resized by Lanczos' filter, as EDM's and StyleGAN's tools do."""
    if image.size == (width, height):
        return image
    scale = min(image.height / height, image.width / width)
    tall = min(max(round(height * scale), 1), image.height)
    wide = min(max(round(width * scale), 1), image.width)
    return centre_crop(image, tall, wide).resize((width, height), Image.Resampling.LANCZOS)
