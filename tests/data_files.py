"""Small image files for the tests of data, and the check of their tables."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pfgm_fast.data import load


def pixels_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_png(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.fromarray(array), **options))
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def only_image(path: Path) -> np.ndarray:
    """(H, W, C) of the one image below path."""
    (image,) = load(path).images
    return image.permute(1, 2, 0).numpy()


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, name: str, count: int, largest: int = 9) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress if name.endswith(".gz") else bytes
    labels = np.arange(count, dtype=np.uint8) % (largest + 1)
    (folder / name).write_bytes(packed(idx_bytes(pixels_of(count, 5, 4))))
    (folder / name.replace("images", "labels").replace("idx3", "idx1")).write_bytes(packed(idx_bytes(labels)))


def unlisted(rows: list[tuple[str, str, str]], names: Iterable[str]) -> set[str]:
    """Tests among `names` that a table (source, kind, test) lacks, and what it has beside them."""
    return {name for *_, name in rows} ^ {
        n for n in names if n.startswith("test_") and n != "test_the_table_names_tests"
    }
