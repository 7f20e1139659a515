"""Faults of data that users of neighbouring projects reported, each with the right value; see ROWS, the table."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfgm_fast.data import ImageSet, load
from pfgm_fast.errors import ArgumentError, DataError, PfgmError

ROWS = [
    # (source of the symptom, kind, test)
    ("Pillow #3011, #2574", "16-bit grey clipped to 255", "test_sixteen_bits"),
    ("Pillow #5991", "big-endian 16 bits, 12 bits, white is zero", "test_sixteen_bit_tiff"),
    ("Pillow #3011", "floats become 0 and 1; integers without a range", "test_floats_and_wide_integers"),
    ("stylegan2-ada-pytorch #18", "dataset.json ignored, storage folders are classes", "test_dataset_json"),
    (
        "stylegan2-ada-pytorch #18",
        "labels null or absent make storage folders classes",
        "test_storage_folders",
    ),
    ("EDM's dataset tool", "dataset.json that contradicts the files", "test_wrong_dataset_json"),
    ("torchvision #2630", "the test set is read for the training set", "test_idx_splits"),
    ("torchvision #2630", "class names invented", "test_idx_class_names"),
    ("torchvision #7977", "EXIF orientation ignored", "test_orientation"),
    ("sd-scripts #1316, #1269", "the colour under alpha 0 is the picture", "test_transparency"),
    ("denoising-diffusion-pytorch #89", "grey beside colour refused", "test_grey_beside_colour"),
    ("pytorch-fid #35", "a grey palette counts as colour", "test_grey_palettes"),
    ("deeplearning4j #8080", "decodable endings left out in silence", "test_every_decodable_ending"),
    ("CSI #31", "hidden and system files are images or classes", "test_hidden_files"),
    ("CSI #31", "an object's address in the message", "test_unreadable_bytes_are_named"),
    ("second list", "decompression bombs", "test_decompression_bombs"),
    ("second list", "damaged or encrypted zip members", "test_bad_zip_members"),
    ("second list", "size 0 or -3; size ignored for arrays", "test_size_of_every_kind_of_data"),
    ("second list", "label words in CIFAR pickles", "test_cifar_labels"),
    ("second list", "labels -1 or 1.5", "test_labels_of_arrays"),
    ("second list", "NumPy scalars refused", "test_numpy_numbers"),
    ("second list", "NHWC arrays with H = 4 read as 4 channels", "test_layouts"),
    (
        "of the same kind",
        "training and test folders mixed; names of the last level",
        "test_folders_of_splits",
    ),
    ("of the same kind", "animated files, truncated files", "test_frames_and_truncation"),
]


def test_the_table_names_tests() -> None:
    assert {name for *_, name in ROWS} == {
        n for n in globals() if n.startswith("test_") and n != "test_the_table_names_tests"
    }


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(Image.fromarray(array), **options))
    return path


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _image(path: Path) -> np.ndarray:
    """(H, W, C) of the one image below path."""
    (image,) = load(path).images
    return image.permute(1, 2, 0).numpy()


# 16 bits


def test_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    found = _image(tmp_path)
    assert found.shape == (64, 64, 1)
    assert np.array_equal(found[..., 0], ramp >> 8)
    assert float((found == 255).mean()) == 1 / 256
    (tmp_path / "x.png").unlink()
    (tmp_path / "x.pgm").write_bytes(b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes())
    assert np.array_equal(_image(tmp_path)[..., 0], ramp >> 8)


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
    assert np.array_equal(_image(tmp_path)[..., 0], upper if photometric else 255 - upper)


def test_floats_and_wide_integers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 6), dtype=np.float32)
    values[0, :2] = 0, 1
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert np.array_equal(_image(tmp_path)[..., 0], np.rint(values * 255))
    for wrong in (values * 255, values - 0.5, np.where(values > 0.5, np.nan, values)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "x.tif")
        with pytest.raises(DataError, match=r"x\.tif: mode F \(float\) holds values from .* only 0 to 1"):
            load(tmp_path)
    Image.fromarray(np.arange(30, dtype=np.int32).reshape(5, 6) * 9999).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: mode I of a TIFF file .* has no range that is known"):
        load(tmp_path)


# Labels


def _edm_members(count: int, per_folder: int = 2) -> dict[str, bytes]:
    pixels = _pixels(count, 4, 4, 3)
    return {
        f"{i // per_folder:05d}/img{i:08d}.png": _encoded(Image.fromarray(pixels[i])) for i in range(count)
    }


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("below", ["", "ffhq/"])
def test_dataset_json(tmp_path: Path, unpacked: bool, below: str) -> None:
    members, labels = _edm_members(6), [3, 0, 3, 1, 0, 1]
    named = [[name, label] for name, label in zip(members, labels, strict=True)]
    members["dataset.json"] = json.dumps({"labels": named[::-1]}).encode()
    path = _zip(tmp_path / "set.zip", {below + name: content for name, content in members.items()})
    if unpacked:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "set")
        path = tmp_path / "set"
    found = load(path)
    assert found.labels.tolist() == labels
    assert found.classes == ()
    assert not any("dataset.json" in note for note in found.notes)
    one_hot = [[name, np.eye(4, dtype=int)[label].tolist()] for name, label in named]
    if not unpacked:
        members["dataset.json"] = json.dumps({"labels": one_hot}).encode()
        assert load(_zip(tmp_path / "hot.zip", members)).labels.tolist() == labels


def test_storage_folders(tmp_path: Path) -> None:
    for content in ('{"labels": null}', '{"labels": []}'):
        path = _zip(tmp_path / "null.zip", {**_edm_members(6), "dataset.json": content.encode()})
        assert load(path).labels is None
    png = _encoded(Image.fromarray(_pixels(4, 4)))
    edm = [f"{i // 1000:05d}/img{i:08d}.png" for i in (0, 1, 1000, 2500)]
    ffhq = [f"{i // 1000 * 1000:05d}/{i:05d}.png" for i in (0, 1, 1000, 2500)]
    for names in (edm, ffhq):
        assert load(_zip(tmp_path / "bare.zip", dict.fromkeys(names, png))).labels is None
    classes = load(_zip(tmp_path / "classes.zip", dict.fromkeys(("0/1.png", "10/2.png", "9/1.png"), png)))
    assert classes.classes == ("0", "9", "10")
    assert classes.labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold"),
        ('{"names": []}', "must hold"),
        ('{"labels": {"a": 1}}', "list of"),
        (
            '{"labels": [["00000/img00000000.png", 0]]}',
            r"images without a label: 5 \(00000/img00000001\.png, ",
        ),
        ("-1", r"labels must be whole numbers from 0; labels\[5\] is -1"),
        ("0.5", r"labels\[5\] is 0\.5"),
        ('"cat"', "labels must be whole numbers"),
        ("null", "labels must be whole numbers"),
        ("[0.2, 0.8]", "labels"),
    ],
)
def test_wrong_dataset_json(tmp_path: Path, content: str, message: str) -> None:
    members = _edm_members(6)
    if content[0] not in "{[" or content.startswith("[0"):
        labels = json.dumps([[name, 0] for name in list(members)[:5]])[:-1]
        content = f'{{"labels": {labels}, ["{list(members)[5]}", {content}]]}}'
    members["dataset.json"] = content.encode()
    with pytest.raises(DataError, match=message) as caught:
        load(_zip(tmp_path / "x.zip", members))
    assert "dataset.json" in str(caught.value)


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _write_idx(folder: Path, name: str, count: int, largest: int = 9) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress if name.endswith(".gz") else bytes
    labels = np.arange(count, dtype=np.uint8) % (largest + 1)
    (folder / name).write_bytes(packed(_idx(_pixels(count, 5, 4))))
    (folder / name.replace("images", "labels").replace("idx3", "idx1")).write_bytes(packed(_idx(labels)))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("emnist-letters-train-images-idx3-ubyte", "emnist-letters-test-images-idx3-ubyte"),
        ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
        ("train-images.idx3-ubyte", "t10k-images.idx3-ubyte"),
    ],
)
def test_idx_splits(tmp_path: Path, train: str, test: str) -> None:
    _write_idx(tmp_path, train, 9)
    _write_idx(tmp_path, test, 2)
    found = load(tmp_path)
    assert (len(found), len(found.labels)) == (9, 9)
    assert any(test in note for note in found.notes)
    assert len(load(tmp_path, split="test")) == 2
    assert len(load(tmp_path, split="train")) == 9
    with pytest.raises(DataError, match="no single file of the split 'val'"):
        load(tmp_path, split="val")
    assert len(load(tmp_path / test)) == 2
    _write_idx(tmp_path, "emnist-balanced-train-images-idx3-ubyte", 3)
    if "emnist" in train:
        with pytest.raises(DataError, match="no single file"):
            load(tmp_path)


def test_idx_class_names(tmp_path: Path) -> None:
    def names(folder: str, prefix: str = "", largest: int = 9) -> tuple[str, ...]:
        _write_idx(tmp_path / folder, f"{prefix}train-images-idx3-ubyte", 30, largest)
        return load(tmp_path / folder).classes

    assert names("MNIST/raw") == tuple("0123456789")
    assert names("fashion-mnist")[0] == "T-shirt/top"
    assert names("FashionMNIST/raw")[9] == "Ankle boot"
    assert names("KMNIST")[1] == "ki"
    assert names("pictures") == ()
    assert names("mnist", largest=11) == ()  # not what the folder's name says
    assert names("emnist", "emnist-letters-", largest=26) == ()
    mapping = tmp_path / "emnist" / "emnist-letters-mapping.txt"
    mapping.write_text("".join(f"{i} {64 + i} {96 + i}\n" for i in range(1, 27)))
    assert load(tmp_path / "emnist").classes[:3] == ("(0)", "A", "B")


def test_cifar_labels(tmp_path: Path) -> None:
    def write(labels: object, folder: str = "py", name: str = "data_batch_1", key: bytes = b"labels") -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        batch = {b"data": _pixels(3, 3072), key: labels}
        (tmp_path / folder / name).write_bytes(pickle.dumps(batch))
        return tmp_path / folder

    for labels in (
        [b"cat", b"dog", b"cat"],
        ["cat", "dog", "cat"],
        [0, -1, 2],
        [0, 1.5, 2],
        [0, 1],
        None,
        [[0], [1, 2]],
    ):
        with pytest.raises(DataError, match=r"data_batch_1.*label"):
            load(write(labels))
    with pytest.raises(DataError, match="a label is 12, but 10 classes"):
        load(write([0, 12, 1]))
    write([7, 8, 9], name="test_batch")
    assert load(write([0, np.int64(1), 2])).labels.tolist() == [0, 1, 2]
    assert load(tmp_path / "py", split="test").labels.tolist() == [7, 8, 9]
    for split, labels in (("train", [99, 0, 5]), ("test", [1, 2, 3])):
        write(labels, "c100", split, b"fine_labels")
    (tmp_path / "c100" / "meta").write_bytes(
        pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]})
    )
    found = load(tmp_path / "c100")
    assert (found.labels.tolist(), found.classes[99]) == ([99, 0, 5], "c99")
    assert load(tmp_path / "c100", split="test").labels.tolist() == [1, 2, 3]
    (tmp_path / "py" / "data_batch_1").write_bytes(b"c_codecs\nencode\n(V\\u0041\nVzip\ntR.")
    with pytest.raises(DataError, match="encodes text as zip"):
        load(tmp_path / "py")


def test_labels_of_arrays(tmp_path: Path) -> None:
    images = _pixels(3, 4, 4)
    for labels in (
        [0, -1, 1],
        [0, 1.5, 1],
        [0, np.nan, 1],
        ["a", "b", "c"],
        [[0, 1], [1, 1], [1, 0]],
        [2**40, 0, 0],
    ):
        np.savez(tmp_path / "x.npz", images=images, labels=np.array(labels))
        with pytest.raises(DataError, match=r"x\.npz.*labels"):
            load(tmp_path / "x.npz")
    for labels in ([0, 4, 1], [0.0, 4.0, 1.0], [[0], [4], [1]], np.eye(5)[[0, 4, 1]]):
        np.savez(tmp_path / "x.npz", images=images, labels=np.array(labels))
        assert load(tmp_path / "x.npz").labels.tolist() == [0, 4, 1]
    np.savez(
        tmp_path / "x.npz",
        x_train=images,
        y_train=np.array([0, 1, 2]),
        x_test=images[:1],
        y_test=np.array([9]),
    )
    assert load(tmp_path / "x.npz").labels.tolist() == [0, 1, 2]
    assert load(tmp_path / "x.npz", split="test").labels.tolist() == [9]
    np.savez(tmp_path / "x.npz", images, images)
    assert load(tmp_path / "x.npz").labels is None
    with pytest.raises(DataError, match=r"labels\[1\] is -1"):
        ImageSet("x", torch.from_numpy(images[:, None]), torch.tensor([0, -1, 1]))


# What a viewer shows


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_orientation(tmp_path: Path) -> None:
    upright = _pixels(6, 9, 3)
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
            raw = _encoded(
                Image.fromarray(np.ascontiguousarray(array)),
                kind,
                exif=exif,
                **({"lossless": True} if kind == "WEBP" else {}),
            )
            path = tmp_path / f"{number}{ending}" / f"a{ending}"
            path.parent.mkdir()
            path.write_bytes(raw)
            assert np.array_equal(_image(path.parent), upright), (number, ending)
    (tmp_path / "bad").mkdir()
    _png(tmp_path / "bad" / "a.png", upright, exif=b"Exif\0\0II*\0broken")
    assert np.array_equal(_image(tmp_path / "bad"), upright)


@pytest.mark.parametrize("ground", [None, 0, (10, 200, 30)])
def test_transparency(tmp_path: Path, ground: int | tuple[int, int, int] | None) -> None:
    given = {} if ground is None else {"background": ground}
    below = np.broadcast_to(np.array(255 if ground is None else ground), 3)

    def composed(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        return np.rint(colour * (alpha / 255.0) + below * (1 - alpha / 255.0))

    rgba, key, levels = _pixels(6, 8, 4), (255, 0, 255), np.arange(48, dtype=np.uint8).reshape(6, 8) // 3
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    rgb = _pixels(6, 8, 3)
    rgb[2, 3] = key
    palette = Image.fromarray(levels).convert("P")
    palette.putpalette(_pixels(256, 3).tobytes())
    coloured = _pixels(256, 3)[levels]
    alphas = _pixels(48)
    cases = {
        "RGBA": (_encoded(Image.fromarray(rgba)), rgba[..., :3], rgba[..., 3:]),
        "LA": (_encoded(Image.fromarray(rgba[..., 2:])), rgba[..., 2:3], rgba[..., 3:]),
        "key": (
            _encoded(Image.fromarray(rgb), transparency=key),
            rgb,
            255.0 * (rgb != key).any(-1, keepdims=True),
        ),
        "grey key": (
            _encoded(Image.fromarray(levels), transparency=5),
            levels[..., None],
            255.0 * (levels != 5)[..., None],
        ),
        "palette key": (_encoded(palette, transparency=4), coloured, 255.0 * (levels != 4)[..., None]),
        "palette alphas": (
            _encoded(palette, transparency=alphas.tobytes()),
            coloured,
            alphas[levels][..., None],
        ),
        "16-bit key": (
            _encoded(Image.fromarray(levels.astype(np.uint16) * 257), transparency=5 * 257),
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
    _png(tmp_path / "a.png", opaque)
    assert np.array_equal(_image(tmp_path), rgba[..., :3])
    assert load(tmp_path).notes == ()


def test_grey_beside_colour(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey, colour = _pixels(4, 4), _pixels(4, 4, 3)
    for name, array in (("a", grey), ("b", colour), ("c", grey)):
        _png(tmp_path / f"{name}.png", array)
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
    grey = _pixels(6, 6) // 4
    palette = Image.fromarray(grey).convert("P")
    levels = np.repeat(np.arange(256)[:, None], 3, 1)
    palette.putpalette(levels.astype(np.uint8).tobytes())
    for kind in ("png", "gif"):
        (tmp_path / kind).mkdir()
        palette.save(tmp_path / kind / f"a.{kind}")
        assert np.array_equal(_image(tmp_path / kind)[..., 0], grey)
        assert load(tmp_path / kind).shape == (1, 6, 6)
    palette.putpalette(_pixels(768).tobytes())
    palette.save(tmp_path / "png" / "a.png")
    assert load(tmp_path / "png").shape == (3, 6, 6)
    (tmp_path / "cmyk").mkdir()
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk" / "a.tif")
    assert _image(tmp_path / "cmyk")[0, 0].tolist() == [255, 0, 0]
    (tmp_path / "one").mkdir()
    bits = _pixels(5, 7) > 127
    Image.fromarray(bits).save(tmp_path / "one" / "a.png")
    assert np.array_equal(_image(tmp_path / "one")[..., 0], bits * 255)


def test_frames_and_truncation(tmp_path: Path) -> None:
    frames = [Image.fromarray(_pixels(6, 6, seed=i) // 64 * 64) for i in range(3)]
    for kind in ("gif", "png", "tif"):
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / f"a.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        found = load(tmp_path / kind)
        assert np.array_equal(found.images[0, 0].numpy(), np.asarray(frames[0]))
        assert any("several frames" in note for note in found.notes)
    raw = _encoded(Image.fromarray(_pixels(40, 40, 3)), "JPEG")
    for length in (10, 200, len(raw) // 2):
        (tmp_path / "jpg").mkdir(exist_ok=True)
        (tmp_path / "jpg" / "a.jpg").write_bytes(raw[:length])
        with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
            load(tmp_path / "jpg")


# Which files count


def test_every_decodable_ending(tmp_path: Path) -> None:
    image = Image.fromarray(_pixels(8, 8, 3))
    jpeg = _encoded(image, "JPEG")
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
        load(_zip(tmp_path / "ps.zip", {"x.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}))


@pytest.mark.parametrize("zipped", [False, True])
def test_hidden_files(tmp_path: Path, zipped: bool) -> None:
    png = _encoded(Image.fromarray(_pixels(4, 4)))
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
        _zip(path, members)
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
    png = _encoded(Image.fromarray(_pixels(40, 40)))
    good = _zip(tmp_path / "x.zip", {"a.png": png}).read_bytes()
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
        load(_zip(tmp_path / "z.zip", {"a.txt": b"x"}))


def test_folders_of_splits(tmp_path: Path) -> None:
    png = _encoded(Image.fromarray(_pixels(4, 4)))
    names = [
        "train/cat/1.png",
        "train/cat/old/2.png",
        "train/dog/1.png",
        "val/cat/3.png",
        "Test/dog/4.png",
        "x.png",
    ]
    for names_, below in ((names[:-1], "set/"), (names, "")):
        path = _zip(tmp_path / "x.zip", {below + name: png for name in names_})
        found = load(path)
        assert (len(found), found.classes, found.labels.tolist()) == (3, ("cat", "dog"), [0, 0, 1])
        assert any("split 'train' is read, 3 of" in note for note in found.notes)
        assert len(load(path, split="test")) == 1
    with pytest.raises(DataError, match="has the splits test, val: say which"):
        load(_zip(tmp_path / "x.zip", dict.fromkeys(names[3:5], png)))
    with pytest.raises(DataError, match="has no folder of the split 'test'"):
        load(_zip(tmp_path / "x.zip", dict.fromkeys(names[:3], png)), split="test")
    nested = load(_zip(tmp_path / "x.zip", dict.fromkeys(("cat/a/1.png", "cat/b/1.png", "dog/a/1.png"), png)))
    assert (nested.classes, nested.labels.tolist()) == (("cat", "dog"), [0, 0, 1])
    mixed = load(_zip(tmp_path / "x.zip", dict.fromkeys(("1.png", "cat/1.png", "dog/1.png"), png)))
    assert mixed.labels is None
    assert any(note.startswith("images beside the folders") for note in mixed.notes)


# Arrays, and arguments


def test_layouts(tmp_path: Path) -> None:
    def shape(array: np.ndarray, **given: object) -> tuple[int, ...]:
        np.save(tmp_path / "x.npy", array)
        found = load(tmp_path / "x.npy", **given)
        last = found.shape[0] == array.shape[-1] and array.ndim == 4 and given.get("layout") != "NCHW"
        due = array.transpose(0, 3, 1, 2) if last else array
        assert np.array_equal(found.images.numpy().reshape(due.shape), due)
        return found.shape

    assert shape(_pixels(5, 4, 4, 3)) == (3, 4, 4)
    assert shape(_pixels(5, 4, 6, 3)) == (3, 4, 6)
    assert shape(_pixels(5, 4, 9, 1)) == (1, 4, 9)
    assert shape(_pixels(5, 3, 4, 4)) == (3, 4, 4)
    assert shape(_pixels(5, 3, 8, 9)) == (3, 8, 9)
    assert shape(_pixels(5, 3, 3, 1)) == (1, 3, 3)
    assert shape(_pixels(5, 4, 8, 8)) == (4, 8, 8)
    assert shape(_pixels(5, 8, 9, 4)) == (4, 8, 9)
    assert shape(_pixels(5, 1, 1, 1)) == (1, 1, 1)
    for ambiguous in (_pixels(5, 3, 9, 1), _pixels(5, 4, 4, 4), _pixels(5, 3, 3, 3)):
        np.save(tmp_path / "x.npy", ambiguous)
        with pytest.raises(DataError, match="say layout='NHWC' or 'NCHW'"):
            load(tmp_path / "x.npy")
    assert shape(_pixels(5, 3, 9, 1), layout="NHWC") == (1, 3, 9)
    assert shape(_pixels(5, 3, 9, 1), layout="NCHW") == (3, 9, 1)
    with pytest.raises(ArgumentError, match="layout must be"):
        load(tmp_path / "x.npy", layout="HWC")


def test_size_of_every_kind_of_data(tmp_path: Path) -> None:
    columns = np.broadcast_to(np.repeat(np.arange(4, dtype=np.uint8) * 60, 4)[None, :, None], (8, 16, 3))
    np.savez(tmp_path / "a.npz", images=columns[None])
    (tmp_path / "b").mkdir()
    _write_idx(tmp_path / "b", "train-images-idx3-ubyte", 2)
    (tmp_path / "b" / "train-images-idx3-ubyte").write_bytes(_idx(np.stack([columns[..., 0]] * 2)))
    _png(tmp_path / "c" / "a.png", np.ascontiguousarray(columns))
    _zip(tmp_path / "d.zip", {"a.png": (tmp_path / "c" / "a.png").read_bytes()})
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
    _png(tmp_path / "a.png", _pixels(8, 8))
    for size in (np.int64(4), np.uint8(4), (np.int32(4), np.int64(4))):
        assert load(tmp_path, size).shape == (1, 4, 4)
    with pytest.raises(PfgmError, match="named by 'digits' or a path"):
        load(7)
