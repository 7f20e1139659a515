"""Faults of pixels (ranges, orientation, transparency, colour) that users of neighbouring projects reported, each with the right value; see ROWS, the table."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfgm_fast.data import load
from pfgm_fast.errors import ArgumentError, DataError
from tests.data_files import encoded, only_image, pixels_of, unlisted, write_png

ROWS = [
    # (source of the symptom, kind, test)
    ("Pillow #3011, #2574", "16-bit grey clipped to 255", "test_sixteen_bits"),
    ("Pillow #5991", "big-endian 16 bits, 12 bits, white is zero", "test_sixteen_bit_tiff"),
    ("Pillow #3011", "floats become 0 and 1; integers without a range", "test_floats_and_wide_integers"),
    ("torchvision #7977", "EXIF orientation ignored", "test_orientation"),
    ("sd-scripts #1316, #1269", "the colour under alpha 0 is the picture", "test_transparency"),
    ("denoising-diffusion-pytorch #89", "grey beside colour refused", "test_grey_beside_colour"),
    ("pytorch-fid #35", "a grey palette counts as colour", "test_grey_palettes"),
    ("of the same kind", "animated files, truncated files", "test_frames_and_truncation"),
]


def test_the_table_names_tests() -> None:
    assert unlisted(ROWS, globals()) == set()


# ---- 16 bits


def test_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    found = only_image(tmp_path)
    assert found.shape == (64, 64, 1)
    assert np.array_equal(found[..., 0], ramp >> 8)
    assert float((found == 255).mean()) == 1 / 256
    (tmp_path / "x.png").unlink()
    (tmp_path / "x.pgm").write_bytes(b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes())
    assert np.array_equal(only_image(tmp_path)[..., 0], ramp >> 8)


def _tiff(values: np.ndarray, order: str, photometric: int = 1, bits: int = 16) -> bytes:
    """A TIFF of one strip, as its specification lays it out."""
    height, width = values.shape
    data = values.astype(f"{order}u2").tobytes()
    if bits == 12:  # two values in three bytes, upper bits first
        a, b = values.reshape(-1, 2).astype(np.uint32).T
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, height),
    ]
    entries.append((279, len(data)))
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    return head + struct.pack(f"{order}I", 8 + len(data)) + data + directory + b"\0\0\0\0"


@pytest.mark.parametrize(
    ("order", "photometric", "bits"), [("<", 1, 16), (">", 1, 16), ("<", 0, 16), ("<", 1, 12)]
)
def test_sixteen_bit_tiff(tmp_path: Path, order: str, photometric: int, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (6, 8)).astype(np.uint16)
    (tmp_path / "x.tif").write_bytes(_tiff(values, order, photometric, bits))
    upper = (values >> (bits - 8)).astype(np.uint8)
    assert np.array_equal(only_image(tmp_path)[..., 0], upper if photometric else 255 - upper)


def test_floats_and_wide_integers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 6), dtype=np.float32)
    values[0, :2] = 0, 1
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert np.array_equal(only_image(tmp_path)[..., 0], np.rint(values * 255))
    for wrong in (values * 255, values - 0.5, np.where(values > 0.5, np.nan, values)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "x.tif")
        with pytest.raises(DataError, match=r"x\.tif: mode F \(float\) holds values from .* only 0 to 1"):
            load(tmp_path)
    Image.fromarray(np.arange(30, dtype=np.int32).reshape(5, 6) * 9999).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: mode I of a TIFF file .* has no range that is known"):
        load(tmp_path)


# ---- What a viewer shows


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_orientation(tmp_path: Path) -> None:
    upright = pixels_of(6, 9, 3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    for number, array in stored.items():
        exif = Image.Exif()
        exif[0x0112] = number
        for ending, kind in ((".png", "PNG"), (".webp", "WEBP"), (".tif", "TIFF")):
            raw = encoded(
                Image.fromarray(np.ascontiguousarray(array)),
                kind,
                exif=exif,
                **({"lossless": True} if kind == "WEBP" else {}),
            )
            path = tmp_path / f"{number}{ending}" / f"a{ending}"
            path.parent.mkdir()
            path.write_bytes(raw)
            assert np.array_equal(only_image(path.parent), upright), (number, ending)
    (tmp_path / "bad").mkdir()
    write_png(tmp_path / "bad" / "a.png", upright, exif=b"Exif\0\0II*\0broken")
    assert np.array_equal(only_image(tmp_path / "bad"), upright)


@pytest.mark.parametrize("ground", [None, 0, (10, 200, 30)])
def test_transparency(tmp_path: Path, ground: int | tuple[int, int, int] | None) -> None:
    given = {} if ground is None else {"background": ground}
    below = np.broadcast_to(np.array(255 if ground is None else ground), 3)

    def composed(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        return np.rint(colour * (alpha / 255.0) + below * (1 - alpha / 255.0))

    rgba, key, levels = pixels_of(6, 8, 4), (255, 0, 255), np.arange(48, dtype=np.uint8).reshape(6, 8) // 3
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    rgb = pixels_of(6, 8, 3)
    rgb[2, 3] = key
    palette = Image.fromarray(levels).convert("P")
    palette.putpalette(pixels_of(256, 3).tobytes())
    coloured = pixels_of(256, 3)[levels]
    alphas = pixels_of(48)
    cases = {
        "RGBA": (encoded(Image.fromarray(rgba)), rgba[..., :3], rgba[..., 3:]),
        "LA": (encoded(Image.fromarray(rgba[..., 2:])), rgba[..., 2:3], rgba[..., 3:]),
        "key": (
            encoded(Image.fromarray(rgb), transparency=key),
            rgb,
            255.0 * (rgb != key).any(-1, keepdims=True),
        ),
        "grey key": (
            encoded(Image.fromarray(levels), transparency=5),
            levels[..., None],
            255.0 * (levels != 5)[..., None],
        ),
        "palette key": (encoded(palette, transparency=4), coloured, 255.0 * (levels != 4)[..., None]),
        "palette alphas": (
            encoded(palette, transparency=alphas.tobytes()),
            coloured,
            alphas[levels][..., None],
        ),
        "16-bit key": (
            encoded(Image.fromarray(levels.astype(np.uint16) * 257), transparency=5 * 257),
            levels[..., None],
            255.0 * (levels != 5)[..., None],
        ),
    }
    for name, (raw, colour, alpha) in cases.items():
        (tmp_path / "a.png").write_bytes(raw)
        found = load(tmp_path, **given)
        got = found.images[0].permute(1, 2, 0).numpy().astype(float)
        assert np.abs(got - composed(colour, alpha)).max() <= 0.5 + 1e-9, name
        assert any("transparent" in note for note in found.notes), name
    opaque = rgba.copy()
    opaque[..., 3] = 255
    write_png(tmp_path / "a.png", opaque)
    assert np.array_equal(only_image(tmp_path), rgba[..., :3])
    assert load(tmp_path).notes == ()


def test_grey_beside_colour(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey, colour = pixels_of(4, 4), pixels_of(4, 4, 3)
    for name, array in (("a", grey), ("b", colour), ("c", grey)):
        write_png(tmp_path / f"{name}.png", array)
    with caplog.at_level(logging.WARNING, "pfgm_fast.data"):
        found = load(tmp_path)
    assert np.array_equal(found.images[[0, 2]].numpy(), np.broadcast_to(grey, (2, 3, 4, 4)))
    assert np.array_equal(found.images[1].permute(1, 2, 0).numpy(), colour)
    said = [record.getMessage() for record in caplog.records if "grey" in record.getMessage()]
    assert len(said) == 1
    assert ": 2 of 3 (a.png, c.png)" in said[0]
    made_grey = load(tmp_path, channels=1)
    assert made_grey.shape == (1, 4, 4)
    assert np.array_equal(made_grey.images[1, 0].numpy(), np.asarray(Image.fromarray(colour).convert("L")))
    (tmp_path / "b.png").unlink()
    assert load(tmp_path).shape == (1, 4, 4)
    assert load(tmp_path, channels=3).shape == (3, 4, 4)
    for wrong in (2, 4, 0, True, "rgb"):
        with pytest.raises(ArgumentError, match="channels must be"):
            load(tmp_path, channels=wrong)


def test_grey_palettes(tmp_path: Path) -> None:
    grey = pixels_of(6, 6) // 4
    palette = Image.fromarray(grey).convert("P")
    levels = np.repeat(np.arange(256)[:, None], 3, 1)
    palette.putpalette(levels.astype(np.uint8).tobytes())
    for kind in ("png", "gif"):
        (tmp_path / kind).mkdir()
        palette.save(tmp_path / kind / f"a.{kind}")
        assert np.array_equal(only_image(tmp_path / kind)[..., 0], grey)
        assert load(tmp_path / kind).shape == (1, 6, 6)
    palette.putpalette(pixels_of(768).tobytes())
    palette.save(tmp_path / "png" / "a.png")
    assert load(tmp_path / "png").shape == (3, 6, 6)
    (tmp_path / "cmyk").mkdir()
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk" / "a.tif")
    assert only_image(tmp_path / "cmyk")[0, 0].tolist() == [255, 0, 0]
    (tmp_path / "one").mkdir()
    bits = pixels_of(5, 7) > 127
    Image.fromarray(bits).save(tmp_path / "one" / "a.png")
    assert np.array_equal(only_image(tmp_path / "one")[..., 0], bits * 255)


def test_frames_and_truncation(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels_of(6, 6, seed=i) // 64 * 64) for i in range(3)]
    for kind in ("gif", "png", "tif"):
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / f"a.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        found = load(tmp_path / kind)
        assert np.array_equal(found.images[0, 0].numpy(), np.asarray(frames[0]))
        assert any("several frames" in note for note in found.notes)
    raw = encoded(Image.fromarray(pixels_of(40, 40, 3)), "JPEG")
    for length in (10, 200, len(raw) // 2):
        (tmp_path / "jpg").mkdir(exist_ok=True)
        (tmp_path / "jpg" / "a.jpg").write_bytes(raw[:length])
        with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
            load(tmp_path / "jpg")
