"""A fuzz of the image reader: what is written losslessly is read right, and whatever is broken is a DataError.

PFGM_FAST_FUZZ sets the number of examples of each test (default: 1,000 each).
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pfgm_fast.data import load
from pfgm_fast.errors import DataError

EXAMPLES = settings(
    max_examples=int(os.environ.get("PFGM_FAST_FUZZ", "1000")),
    deadline=None,
    derandomize="PFGM_FAST_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
# format → the modes that it keeps without loss
LOSSLESS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F", "CMYK", "I", "YCbCr"),
    "BMP": ("1", "L", "P", "RGB"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("L", "P", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "GIF": ("L", "P"),
    "PCX": ("1", "L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "ICO": ("RGBA",),
    "JPEG": (),
}
LOSSY = {"JPEG": ("L", "RGB", "CMYK")}
SUFFIX = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif"}
OPTIONS = {"WEBP": {"lossless": True, "exact": True}}


def _picture(mode: str, height: int, width: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "1":
        return Image.fromarray(rng.random((height, width)) < 0.5)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(-5, 70000, (height, width)).astype(np.int32))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), dtype=np.float32))
    bands = len(Image.new(mode, (1, 1)).getbands())
    raw = rng.integers(0, 256, (height, width, bands), dtype=np.uint8).tobytes()
    picture = Image.frombytes(mode, (width, height), raw)
    if mode == "P":
        picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return picture


def _due(picture: Image.Image) -> np.ndarray | None:
    """(H, W, C) bytes by the policy, computed from the picture's own samples; None: to be refused."""
    values = np.asarray(picture)
    if picture.mode == "I":
        return None
    if picture.mode == "I;16":
        return (values // 256).astype(np.uint8)[..., None]
    if picture.mode == "F":
        return np.rint(values * 255.0).astype(np.uint8)[..., None]
    if picture.mode == "1":
        return values[..., None] * np.uint8(255)
    if picture.mode == "P":
        return np.asarray(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)[values]
    if picture.mode in ("LA", "RGBA"):
        alpha = values[..., -1:] / 255.0
        return np.floor(values[..., :-1] * alpha + 255 * (1 - alpha) + 0.5 - 1e-9).astype(np.uint8)
    if picture.mode in ("CMYK", "YCbCr"):
        return np.asarray(picture.convert("RGB"))
    return values[..., None] if values.ndim == 2 else values


def _encode(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    options = dict(OPTIONS.get(kind, {}))
    if kind == "ICO":
        options["sizes"] = [picture.size]
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@st.composite
def _pictures(draw: st.DrawFn, formats: dict[str, tuple[str, ...]]) -> tuple[str, Image.Image, bytes]:
    kind = draw(st.sampled_from(sorted(kind for kind, modes in formats.items() if modes)))
    mode = draw(st.sampled_from(formats[kind]))
    picture = _picture(
        mode, draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(0, 2**32 - 1))
    )
    return kind, picture, _encode(picture, kind)


def _write(folder: Path, zipped: bool, members: dict[str, bytes]) -> Path:
    if zipped:
        with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return folder / "set.zip"
    for name, content in members.items():
        (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / name).write_bytes(content)
    return folder / "set"


@EXAMPLES
@given(picture=_pictures(LOSSLESS), zipped=st.booleans(), below=st.sampled_from(["", "a/", "a/b c/"]))
def test_what_is_written_is_read(picture: tuple[str, Image.Image, bytes], zipped: bool, below: str) -> None:
    kind, image, raw = picture
    suffix = SUFFIX.get(kind, f".{kind.lower()}")
    with tempfile.TemporaryDirectory() as folder:
        path = _write(Path(folder), zipped, {f"{below}x{suffix}": raw, f"{below}.x{suffix}": raw})
        due = _due(image)
        try:
            found = load(path)
        except DataError as error:
            assert due is None, error
            return
    assert due is not None
    got = found.images[0].permute(1, 2, 0).numpy()
    if due.shape[-1] == 3 and got.shape[-1] == 1:  # a palette whose used colours are grey
        assert image.mode == "P"
    assert got.shape[:2] == due.shape[:2]
    # Composing rounds halves one way or the other; JPEG 2000's colour transform is exact.
    assert np.abs(got.astype(int) - due).max() <= (1 if image.mode in ("LA", "RGBA") else 0), (
        kind,
        image.mode,
    )
    assert found.labels is None


@st.composite
def _damage(draw: st.DrawFn, raw: bytes) -> bytes:
    if draw(st.booleans()):
        return raw
    damaged = bytearray(raw)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(damaged) - 1, 0)))
        damaged[at : at + 1] = draw(st.sampled_from([b"", b"\0", b"\xff", b"\x80\1", bytes([at % 256])]))
    return bytes(damaged[: draw(st.integers(0, len(damaged)))] if draw(st.booleans()) else damaged)


@EXAMPLES
@given(data=st.data())
def test_whatever_is_broken_is_a_data_error(data: st.DataObject) -> None:
    members: dict[str, bytes] = {}
    both = {kind: LOSSLESS.get(kind, ()) + LOSSY.get(kind, ()) for kind in LOSSLESS}
    for i in range(data.draw(st.integers(1, 3))):
        kind, _, raw = data.draw(_pictures(both))
        suffix = data.draw(
            st.sampled_from([SUFFIX.get(kind, f".{kind.lower()}"), ".png", ".tga", ".pcd", ".im", ".txt"])
        )
        where = data.draw(
            st.sampled_from(["", "a/", "b/", "train/a/", "test/b/", "__MACOSX/", "00000/", "../", "./"])
        )
        members[f"{where}{i}{suffix}"] = data.draw(_damage(raw))
    if data.draw(st.integers(0, 7)) == 0:
        pairs = [
            [name, data.draw(st.sampled_from([0, 1, -1, 1.5, None, "cat", [0, 1], 2**70]))]
            for name in members
        ]
        members["dataset.json"] = data.draw(_damage(json.dumps({"labels": pairs}).encode()))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zipped = data.draw(st.booleans())
        path = _write(Path(folder), zipped, members)
        if zipped and data.draw(st.integers(0, 3)) == 0:
            path.write_bytes(data.draw(_damage(path.read_bytes())))
        size = data.draw(st.sampled_from([None, 4, (3, 5), (3, 5)]))
        split = data.draw(st.sampled_from([None] * 8 + ["train", "test"]))
        try:
            found = load(path, size, **({"split": split} if split else {}))
        except DataError as error:
            assert "set" in str(error)  # the file is named
            assert " at 0x" not in str(error)
            return
    assert found.shape[0] in (1, 3)
    assert size is None or found.shape[1:] == ((4, 4) if size == 4 else size)
    assert found.labels is None or len(found.labels) == len(found)
