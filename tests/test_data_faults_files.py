"""Faults of files, folders, archives and arrays, that users of neighbouring projects reported, each with the right value; see ROWS, the table."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfgm_fast.data import load
from pfgm_fast.errors import ArgumentError, DataError, PfgmError
from tests.data_files import encoded, idx_bytes, pixels_of, unlisted, write_idx, write_png, write_zip

ROWS = [
    # (source of the symptom, kind, test)
    ("deeplearning4j #8080", "decodable endings left out in silence", "test_every_decodable_ending"),
    ("CSI #31", "hidden and system files are images or classes", "test_hidden_files"),
    ("CSI #31", "an object's address in the message", "test_unreadable_bytes_are_named"),
    ("second list", "decompression bombs", "test_decompression_bombs"),
    ("second list", "damaged or encrypted zip members", "test_bad_zip_members"),
    ("second list", "size 0 or -3; size ignored for arrays", "test_size_of_every_kind_of_data"),
    ("second list", "NumPy scalars refused", "test_numpy_numbers"),
    ("second list", "NHWC arrays with H = 4 read as 4 channels", "test_layouts"),
    (
        "of the same kind",
        "training and test folders mixed; names of the last level",
        "test_folders_of_splits",
    ),
]


def test_the_table_names_tests() -> None:
    assert unlisted(ROWS, globals()) == set()


# ---- Which files count


def test_every_decodable_ending(tmp_path: Path) -> None:
    image = Image.fromarray(pixels_of(8, 8, 3))
    jpeg = encoded(image, "JPEG")
    for name in ("a.jfif", "b.jpg", "c.JPE", "d.Jpeg"):
        (tmp_path / name).write_bytes(jpeg)
    lossless = {
        "e.ppm": "PPM",
        "f.tga": "TGA",
        "g.bmp": "BMP",
        "h.jp2": "JPEG2000",
        "i.pcx": "PCX",
        "j.qoi": "QOI",
    }
    for name, kind in lossless.items():
        image.save(tmp_path / name, kind)
    (tmp_path / "labels.csv").write_text("a,b")
    (tmp_path / "k.heic").write_bytes(b"0000ftypheic")
    (tmp_path / "l.ps").write_bytes(b"%!PS")
    found = load(tmp_path)
    assert len(found) == 10
    assert all(
        np.array_equal(found.images[i].permute(1, 2, 0).numpy(), np.asarray(image)) for i in range(4, 10)
    )
    assert found.notes == ("left out: 3 of no image format that is read (k.heic, l.ps, labels.csv)",)
    with pytest.raises(DataError, match=r"x\.png: .*of no known format"):
        load(write_zip(tmp_path / "ps.zip", {"x.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}))


@pytest.mark.parametrize("zipped", [False, True])
def test_hidden_files(tmp_path: Path, zipped: bool) -> None:
    png = encoded(Image.fromarray(pixels_of(4, 4)))
    members = {
        "cat/a.png": png,
        "dog/b.png": png,
        "dog/.b.png": png,
        "cat/._a.png": b"\0\5\x16\7" + b"\0" * 80,
    }
    for hidden in (
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/cat/._a.png",
        "@eaDir/x.jpg",
        ".git/y.png",
    ):
        members[hidden] = png
    members |= {
        "cat/Thumbs.db": b"",
        ".DS_Store": b"",
        "desktop.ini": b"",
        "cat/.ipynb_checkpoints/z.png": png,
    }
    path = tmp_path / ("set.zip" if zipped else "set")
    if zipped:
        write_zip(path, members)
    else:
        for name, content in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        (path / "cat" / "folder.png").mkdir()  # a folder is no image
        os.symlink(path / "cat", path / "cat" / "circle")
        os.mkfifo(path / "cat" / ".pipe.png")
    found = load(path)
    assert (len(found), found.classes) == (2, ("cat", "dog"))
    assert found.labels.tolist() == [0, 1]
    assert len(found.notes) == 1
    assert f"left out: {10 if zipped else 11} hidden or kept by the system" in found.notes[0]


def test_unreadable_bytes_are_named(tmp_path: Path) -> None:
    for content in (b"\0\5\x16\7" + b"\0" * 80, b"", b"hello"):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.png: cannot be read as an image") as caught:
            load(tmp_path)
        assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("pixels", [(1200, 1000), (1800, 1600)])
def test_decompression_bombs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: tuple[int, int]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    Image.new("1", pixels).save(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=r"x\.png: .*bomb.*MAX_IMAGE_PIXELS"):
            load(tmp_path, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load(tmp_path, 8).shape == (1, 8, 8)


def test_bad_zip_members(tmp_path: Path) -> None:
    png = encoded(Image.fromarray(pixels_of(40, 40)))
    good = write_zip(tmp_path / "x.zip", {"a.png": png}).read_bytes()
    local, central = good.index(b"PK\3\4"), good.index(b"PK\1\2")

    def changed(at: int, value: bytes, mark: int = 0) -> Path:
        raw = bytearray(good)
        raw[at : at + len(value)] = value
        if mark:
            raw[central + mark : central + mark + len(value)] = value
        (tmp_path / "y.zip").write_bytes(raw)
        return tmp_path / "y.zip"

    cases = {
        "is encrypted": (local + 6, b"\1", 8),
        "Bad CRC|invalid|Error": (local + 100, b"\xff\0\xff\0"),
        "compression": (local + 8, b"\x62", 10),
        "more than the 1,073,741,824": (local + 22, b"\xff\xff\xff\x7f", 24),
    }
    for message, change in cases.items():
        path = changed(*change)
        with pytest.raises(DataError, match=rf"y\.zip/a\.png.*({message})"):
            load(path)
    for length in (10, len(good) // 2, len(good) - 1):
        (tmp_path / "y.zip").write_bytes(good[:length])
        with pytest.raises(DataError, match=r"y\.zip is not a zip file, or is truncated"):
            load(tmp_path / "y.zip")
    with pytest.raises(DataError, match="holds no image files"):
        load(write_zip(tmp_path / "z.zip", {"a.txt": b"x"}))


def test_folders_of_splits(tmp_path: Path) -> None:
    png = encoded(Image.fromarray(pixels_of(4, 4)))
    names = [
        "train/cat/1.png",
        "train/cat/old/2.png",
        "train/dog/1.png",
        "val/cat/3.png",
        "Test/dog/4.png",
        "x.png",
    ]
    for names_, below in ((names[:-1], "set/"), (names, "")):
        path = write_zip(tmp_path / "x.zip", {below + name: png for name in names_})
        found = load(path)
        assert (len(found), found.classes, found.labels.tolist()) == (3, ("cat", "dog"), [0, 0, 1])
        assert any("split 'train' is read, 3 of" in note for note in found.notes)
        assert len(load(path, split="test")) == 1
    with pytest.raises(DataError, match="has the splits test, val: say which"):
        load(write_zip(tmp_path / "x.zip", dict.fromkeys(names[3:5], png)))
    with pytest.raises(DataError, match="has no folder of the split 'test'"):
        load(write_zip(tmp_path / "x.zip", dict.fromkeys(names[:3], png)), split="test")
    nested = load(
        write_zip(tmp_path / "x.zip", dict.fromkeys(("cat/a/1.png", "cat/b/1.png", "dog/a/1.png"), png))
    )
    assert (nested.classes, nested.labels.tolist()) == (("cat", "dog"), [0, 0, 1])
    mixed = load(write_zip(tmp_path / "x.zip", dict.fromkeys(("1.png", "cat/1.png", "dog/1.png"), png)))
    assert mixed.labels is None
    assert any(note.startswith("images beside the folders") for note in mixed.notes)


# ---- Arrays, and arguments


def test_layouts(tmp_path: Path) -> None:
    def shape(array: np.ndarray, **given: object) -> tuple[int, ...]:
        np.save(tmp_path / "x.npy", array)
        found = load(tmp_path / "x.npy", **given)
        last = found.shape[0] == array.shape[-1] and array.ndim == 4 and given.get("layout") != "NCHW"
        due = array.transpose(0, 3, 1, 2) if last else array
        assert np.array_equal(found.images.numpy().reshape(due.shape), due)
        return found.shape

    assert shape(pixels_of(5, 4, 4, 3)) == (3, 4, 4)
    assert shape(pixels_of(5, 4, 6, 3)) == (3, 4, 6)
    assert shape(pixels_of(5, 4, 9, 1)) == (1, 4, 9)
    assert shape(pixels_of(5, 3, 4, 4)) == (3, 4, 4)
    assert shape(pixels_of(5, 3, 8, 9)) == (3, 8, 9)
    assert shape(pixels_of(5, 3, 3, 1)) == (1, 3, 3)
    assert shape(pixels_of(5, 4, 8, 8)) == (4, 8, 8)
    assert shape(pixels_of(5, 8, 9, 4)) == (4, 8, 9)
    assert shape(pixels_of(5, 1, 1, 1)) == (1, 1, 1)
    for ambiguous in (pixels_of(5, 3, 9, 1), pixels_of(5, 4, 4, 4), pixels_of(5, 3, 3, 3)):
        np.save(tmp_path / "x.npy", ambiguous)
        with pytest.raises(DataError, match="say layout='NHWC' or 'NCHW'"):
            load(tmp_path / "x.npy")
    assert shape(pixels_of(5, 3, 9, 1), layout="NHWC") == (1, 3, 9)
    assert shape(pixels_of(5, 3, 9, 1), layout="NCHW") == (3, 9, 1)
    with pytest.raises(ArgumentError, match="layout must be"):
        load(tmp_path / "x.npy", layout="HWC")


def test_size_of_every_kind_of_data(tmp_path: Path) -> None:
    columns = np.broadcast_to(np.repeat(np.arange(4, dtype=np.uint8) * 60, 4)[None, :, None], (8, 16, 3))
    np.savez(tmp_path / "a.npz", images=columns[None])
    (tmp_path / "b").mkdir()
    write_idx(tmp_path / "b", "train-images-idx3-ubyte", 2)
    (tmp_path / "b" / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.stack([columns[..., 0]] * 2)))
    write_png(tmp_path / "c" / "a.png", np.ascontiguousarray(columns))
    write_zip(tmp_path / "d.zip", {"a.png": (tmp_path / "c" / "a.png").read_bytes()})
    for name in ("a.npz", "b", "c", "d.zip"):
        path = tmp_path / name
        for size, due in ((4, (4, 4)), ((2, 4), (2, 4)), ("8x4", (8, 4)), ([1, 1], (1, 1))):
            assert load(path, size).shape[1:] == due
        middle = load(path, crop=8).images[0, 0]  # of 16 columns the 4 … 12
        assert torch.equal(middle, torch.from_numpy(columns[:, 4:12, 0].copy()))
        assert load(path, crop=(8, 8), size=4).shape[1:] == (4, 4)
        with pytest.raises(DataError, match="smaller than the crop 9×9"):
            load(path, crop=9)
        for wrong in (0, -3, "0x4", (4, 0), 4.0, "big", (1, 2, 3), True):
            with pytest.raises(ArgumentError, match="size must"):
                load(path, wrong)
    assert load("digits", 4).shape == (1, 4, 4)
    assert load("digits", channels=3).shape == (3, 8, 8)
    flat = np.full((2, 5, 9, 4), 77, np.uint8)
    np.save(tmp_path / "x.npy", flat)
    assert load(tmp_path / "x.npy", 3).images.unique().tolist() == [77]
    assert load(tmp_path / "x.npy", 3, channels=3).shape == (3, 3, 3)


def test_numpy_numbers(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", pixels_of(8, 8))
    for size in (np.int64(4), np.uint8(4), (np.int32(4), np.int64(4))):
        assert load(tmp_path, size).shape == (1, 4, 4)
    with pytest.raises(PfgmError, match="named by 'digits' or a path"):
        load(7)
