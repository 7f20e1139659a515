"""Every format that is read, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfgm_fast.data import ImageSet, load, parse_size, save_zip
from pfgm_fast.errors import ArgumentError, DataError


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_digits() -> None:
    digits = load("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert int(digits.images.max()) == 255
    assert digits.labels[:3].tolist() == [0, 1, 2]
    values = digits.charges().values()
    assert float(values.min()) == -1
    assert float(values.max()) == 1


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path: Path, zipped: bool) -> None:
    images, labels = _pixels(5, 6, 7), np.array([3, 1, 4, 1, 5], np.uint8)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        raw = _idx(array)
        (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    for spec in (tmp_path, tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)):
        found = load(spec)
        assert np.array_equal(found.images[:, 0].numpy(), images)
        assert found.labels.tolist() == labels.tolist()


def test_cifar_python_and_binary(tmp_path: Path) -> None:
    rows, labels = _pixels(4, 3072), [7, 0, 2, 9]
    for folder in ("py", "bin"):
        (tmp_path / folder).mkdir()
    for i in (1, 2):
        part = slice(2 * i - 2, 2 * i)
        batch = {b"data": rows[part], b"labels": labels[part], b"batch_label": b"x"}
        (tmp_path / "py" / f"data_batch_{i}").write_bytes(pickle.dumps(batch, protocol=2))
        binary = np.concatenate([np.array(labels[part], np.uint8)[:, None], rows[part]], 1)
        (tmp_path / "bin" / f"data_batch_{i}.bin").write_bytes(binary.tobytes())
    for folder in ("py", "bin"):
        found = load(tmp_path / folder)
        assert np.array_equal(found.images.numpy(), rows.reshape(4, 3, 32, 32))
        assert found.labels.tolist() == labels
        assert found.classes[7] == "horse"


def test_folder_and_zip_with_classes(tmp_path: Path) -> None:
    arrays = {"cat/1": _pixels(6, 6, 3), "cat/2": _pixels(6, 6, 3), "dog/1": _pixels(6, 6, 3)}
    for name, array in arrays.items():
        _png(tmp_path / "set" / f"{name}.png", array)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in arrays:
            archive.write(tmp_path / "set" / f"{name}.png", f"{name}.png")
    for spec in (tmp_path / "set", tmp_path / "set.zip"):
        found = load(spec)
        assert found.images.shape == (3, 3, 6, 6)
        assert np.array_equal(found.images[2].permute(1, 2, 0).numpy(), arrays["dog/1"])
        assert found.labels.tolist() == [0, 0, 1]
        assert found.classes == ("cat", "dog")


def test_resizing(tmp_path: Path) -> None:
    _png(tmp_path / "a.png", np.full((8, 12), 50, np.uint8))
    _png(tmp_path / "b.png", np.full((4, 4), 60, np.uint8))
    found = load(tmp_path, size=4)
    assert found.images.shape == (2, 1, 4, 4)
    assert found.images[:, 0, 1, 1].tolist() == [50, 60]
    assert found.labels is None


def test_numpy(tmp_path: Path) -> None:
    array = _pixels(5, 6, 6, 3)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", images=array, labels=np.arange(5))
    for name in ("x.npy", "x.npz"):
        assert np.array_equal(load(tmp_path / name).images.permute(0, 2, 3, 1).numpy(), array)
    assert load(tmp_path / "x.npz").labels.tolist() == list(range(5))


@pytest.mark.data
def test_the_shared_sets(shared: Path) -> None:
    mnist = load(shared / "data" / "mnist-t10k")
    assert mnist.images.shape == (10_000, 1, 28, 28)
    assert mnist.labels[:4].tolist() == [7, 2, 1, 0]
    cifar = load(shared / "data" / "cifar10-jpeg-test.zip")
    assert cifar.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(cifar.labels).tolist() == [1000] * 10


def test_flips_splits_and_labels() -> None:
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 1, 3, 4)
    both = ImageSet("x", images, torch.tensor([0, 1])).with_flips()
    assert torch.equal(both.images[2, 0, 0], images[0, 0, 0].flip(0))
    assert both.labels.tolist() == [0, 1, 0, 1]
    first, rest = load("digits").split(100, seed=3)
    joined = torch.cat([first.images, rest.images]).flatten(1).double() @ torch.rand(64, dtype=torch.float64)
    assert len(first) == 100
    assert len(joined.unique()) == len(
        (load("digits").images.flatten(1).double() @ torch.rand(64).double()).unique()
    )
    with pytest.raises(DataError, match="has no labels"):
        ImageSet("x", images).charges(labels=True)


def test_the_digest_is_of_contents_shape_and_labels() -> None:
    images = torch.from_numpy(_pixels(6, 1, 4, 3))
    base = ImageSet("a", images, torch.arange(6))
    same = [
        ImageSet("b", images.clone(), torch.arange(6, dtype=torch.int32), tuple("abcdef"), ("a note",)),
        base.with_flips(),
        base.select(torch.arange(6)),
    ]
    assert {base.digest} == {s.digest for s in same}
    assert len(base.digest) == 64
    changed = images.clone()
    changed[5, 0, 3, 2] ^= 1
    other = [
        ImageSet("a", changed, base.labels),
        ImageSet("a", images.view(6, 1, 3, 4), base.labels),
        ImageSet("a", images, torch.arange(6).flip(0)),
        ImageSet("a", images),
        ImageSet("a", images[:5], base.labels[:5]),
        base.select(torch.tensor([1, 0, 2, 3, 4, 5])),
    ]
    assert len({base.digest, *(s.digest for s in other)}) == 7
    assert base.describe() == f"a: 6 images 1×4×3, 6 classes, digest {base.digest[:12]}"
    assert ImageSet("a", images).describe().startswith("a: 6 images 1×4×3, no labels, digest ")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 1], r"whole numbers from 0; labels\[1\] is -1"),
        ([0, 1, 1.5], r"labels\[2\] is 1\.5"),
        ([0, math.nan, 1], r"labels\[1\] is nan"),
        ([0, 2**40, 1], r"labels\[1\] is 1099511627776"),
        ([[1, 0], [1, 1], [0, 1]], r"one-hot rows; row 1 is \[1, 1\]"),
        ([0, 1], r"3 images, but labels of shape \(2,\)"),
        ([True, False, True], "whole numbers from 0; got bool"),
    ],
)
def test_labels_that_are_no_classes(labels: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet("x", torch.from_numpy(_pixels(3, 1, 2, 2)), torch.tensor(labels))


def test_labels_that_are_classes() -> None:
    images = torch.from_numpy(_pixels(3, 1, 2, 2))
    for labels in ([0, 5, 2], [0.0, 5.0, 2.0], [[0], [5], [2]], np.eye(6)[[0, 5, 2]]):
        found = ImageSet("x", images, torch.as_tensor(labels))
        assert found.labels.tolist() == [0, 5, 2]  # gaps are allowed
        assert found.num_classes == 6
    with pytest.raises(DataError, match="a label is 5, but 2 classes are named"):
        ImageSet("x", images, torch.tensor([0, 5, 2]), ("a", "b"))


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (8, (8, 8)),
        ("8", (8, 8)),
        ("218x178", (218, 178)),
        ((3, 4), (3, 4)),
        (np.int64(5), (5, 5)),
        ([2, 9], (2, 9)),
    ],
)
def test_sizes(given: object, size: tuple[int, int]) -> None:
    assert parse_size(given) == size


@pytest.mark.parametrize(
    "given", [0, -3, "0", "-3", "8x", "x8", "8x8x8", (1, 2, 3), 8.0, True, "big", None, 10**6, "8x0"]
)
def test_what_is_no_size(given: object) -> None:
    with pytest.raises(ArgumentError, match="size must"):
        parse_size(given)


@pytest.mark.parametrize("channels", [1, 3])
def test_edm_zips_are_written_and_read(tmp_path: Path, channels: int) -> None:
    images = torch.from_numpy(_pixels(1003, channels, 4, 3))
    labels = torch.arange(1003) % 7
    written = ImageSet("x", images, labels, tuple("abcdefg"))
    path = save_zip(written.with_flips(), tmp_path / "deep" / "x.zip")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names[0] == "00000/img00000000.png"
        assert names[1002:] == ["00001/img00001002.png", "dataset.json"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read("dataset.json"))["labels"][8] == ["00000/img00000008.png", 1]
    found = load(path)
    assert torch.equal(found.images, images)
    assert (found.digest, found.classes) == (written.digest, written.classes)
    first = path.read_bytes()
    assert save_zip(found, path).read_bytes() == first
    assert load(save_zip(ImageSet("y", images), tmp_path / "y.zip")).labels is None


def test_a_zip_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageSet("x", torch.from_numpy(_pixels(3, 1, 4, 4)))
    before = save_zip(images, tmp_path / "x.zip").read_bytes()
    put = zipfile.ZipFile.writestr

    def full(self: zipfile.ZipFile, info: zipfile.ZipInfo, content: object) -> None:
        if info.filename == "dataset.json":
            raise OSError(28, "No space left on device")
        put(self, info, content)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space"):
        save_zip(images.select(torch.tensor([0])), tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]
    for wrong, message in ((tmp_path / "x.tar", "must end with .zip"), (tmp_path / "x.zip", "4 channels")):
        with pytest.raises(DataError, match=message):
            save_zip(ImageSet("x", torch.zeros(1, 4, 2, 2, dtype=torch.uint8)), wrong)


class _Evil:
    def __reduce__(self):
        return (print, ("code was run",))


BAD = {
    "nothing there": (None, "no data at"),
    "x.idx3": (
        b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + b"1234",
        "truncated or damaged.*need 8 bytes, 4",
    ),
    "y-idx3-ubyte": (b"not an idx file at all", "is not an idx file"),
    "z-idx3-ubyte.gz": (b"\x1f\x8bbroken", "cannot be read or unpacked"),
    "x.npy": (b"\x93NUMPY\x01\x00broken", "not a readable NumPy file"),
    "x.npz": (b"PK\x03\x04broken", "not a readable NumPy file"),
    "x.zip": (b"no zip", "is not a zip file"),
    "x.tar": (b"", "of no kind that can be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name)
    assert name.split("-")[0] in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image files"):
        load(tmp_path)
    _png(tmp_path / "a.png", _pixels(4, 4))
    _png(tmp_path / "b.png", _pixels(5, 4))
    with pytest.raises(DataError, match=r"b\.png: 5×4 pixels, the first image has 4×4: give a size"):
        load(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png: cannot be read as an image"):
        load(tmp_path)


def test_bad_arrays(tmp_path: Path) -> None:
    cases = [
        (np.zeros((3, 4, 4), np.float32), "must be uint8"),
        (np.zeros((3, 4), np.uint8), "images must be"),
        (np.zeros((3, 5, 4, 5), np.uint8), "C of 1, 3 or 4"),
        (np.zeros((0, 4, 4), np.uint8), "not empty"),
        (np.array([object()]), "no pickles"),
    ]
    for array, message in cases:
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match=r"no array named images.*it holds \['pictures'\]"):
        load(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(2))
    with pytest.raises(DataError, match="3 images, but labels of shape"):
        load(tmp_path / "x.npz")


def test_a_pickle_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": _Evil(), b"labels": []}))
    with pytest.raises(DataError, match=r"is not a batch of CIFAR's python version.*which is no array"):
        load(tmp_path)
    assert "code was run" not in capsys.readouterr().out
    (tmp_path / "data_batch_1").unlink()
    (tmp_path / "data_batch_1.bin").write_bytes(b"12345")
    with pytest.raises(DataError, match="is truncated: 5 bytes are not a multiple of 3073"):
        load(tmp_path)
