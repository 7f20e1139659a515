"""A folder or a zip of image files; sub-folders are classes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


def _listed(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Names of the image files within, sorted, and a function that reads one."""
    if path.is_dir():
        names = (str(p.relative_to(path)) for p in path.rglob("*"))
        return _images(names), lambda name: (path / name).read_bytes()
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a zip file, or is truncated: {error}") from error
    return _images(archive.namelist()), archive.read


def _images(names: object) -> list[str]:
    return sorted(n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES)  # type: ignore[attr-defined]


def _decode(raw: bytes, where: str, size: int | None) -> np.ndarray:
    """(H, W, C) bytes; a square from the middle resized to `size` where it is given."""
    try:
        opened = Image.open(io.BytesIO(raw))
        image = opened.convert("L" if opened.mode in ("1", "L", "I", "I;16", "LA") else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where} cannot be read as an image: {error}") from error
    if size is not None and image.size != (size, size):
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge)).resize((size, size), Image.Resampling.BOX)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def read_images(path: Path, size: int | None = None) -> ImageSet:
    names, read = _listed(path)
    if not names:
        raise DataError(f"{path} holds no image files ({', '.join(sorted(SUFFIXES))})")
    stack: np.ndarray | None = None
    for i, name in enumerate(names):
        try:
            raw = read(name)
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{path}/{name} cannot be read: {error}") from error
        image = _decode(raw, f"{path}/{name}", size)
        if stack is None:
            stack = np.empty((len(names), *image.shape), np.uint8)
        if image.shape != stack.shape[1:]:
            raise DataError(
                f"{path}/{name} has shape {image.shape}, the first image {stack.shape[1:]} (H, W, C): "
                "give a size to bring them to one"
            )
        stack[i] = image
    assert stack is not None
    classes = sorted({PurePosixPath(n).parent.name for n in names})
    labels = None
    if len(classes) > 1:
        labels = torch.tensor([classes.index(PurePosixPath(n).parent.name) for n in names])
    images = torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))
    return ImageSet(path.stem, images, labels, tuple(classes) if labels is not None else ())
