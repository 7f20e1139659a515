"""Data sets as EDM, PFGM++ and StyleGAN keep them: a zip of 00000/img00000000.png … with `dataset.json`."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from pfgm_fast.data.classes import DATASET_JSON
from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.errors import DataError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same images give the same file


def save_zip(images: ImageSet, path: str | Path) -> Path:
    """Write a set so that EDM's code and `load` read it: uncompressed PNGs, stored, labels in `dataset.json`.

    `load(save_zip(images, path))` has the same bytes, labels, class names and digest; the mirror images of `with_flips` are not
    written. The file is there whole or not at all. Raises: DataError for images that are neither grey nor RGB or a path that is no
    .zip; OSError as the disk gives it.
    """
    from pfgm_fast.files import beside

    path = Path(path).expanduser()
    if path.suffix.lower() != ".zip":
        raise DataError(f"{path}: the file's name must end with .zip")
    if images.shape[0] not in (1, 3):
        raise DataError(
            f"{images.name}: images of {images.shape[0]} channels have no place in an EDM zip (1 or 3)"
        )
    count = len(images) // 2 if images.flipped else len(images)
    names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(count)]
    labels = None
    if images.labels is not None:
        labels = [[name, label] for name, label in zip(names, images.labels.tolist(), strict=False)]
    with beside(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(names, images.images, strict=False):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), _png(image.permute(1, 2, 0).cpu().numpy()))
        content = {"labels": labels, **({"classes": list(images.classes)} if images.classes else {})}
        archive.writestr(zipfile.ZipInfo(DATASET_JSON, _EPOCH), json.dumps(content))
    return path


def _png(image: np.ndarray) -> bytes:  # (H, W, C)
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
