"""Faults of labels, class names and splits, that users of neighbouring projects reported, each with the right value; see ROWS, the table."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfgm_fast.data import ImageSet, load
from pfgm_fast.errors import DataError
from tests.data_files import encoded, pixels_of, unlisted, write_idx, write_zip

ROWS = [
    # (source of the symptom, kind, test)
    ("stylegan2-ada-pytorch #18", "dataset.json ignored, storage folders are classes", "test_dataset_json"),
    (
        "stylegan2-ada-pytorch #18",
        "labels null or absent make storage folders classes",
        "test_storage_folders",
    ),
    ("EDM's dataset tool", "dataset.json that contradicts the files", "test_wrong_dataset_json"),
    ("torchvision #2630", "the test set is read for the training set", "test_idx_splits"),
    ("torchvision #2630", "class names invented", "test_idx_class_names"),
    ("second list", "label words in CIFAR pickles", "test_cifar_labels"),
    ("second list", "labels -1 or 1.5", "test_labels_of_arrays"),
]


def test_the_table_names_tests() -> None:
    assert unlisted(ROWS, globals()) == set()


# ---- Labels


def _edm_members(count: int, per_folder: int = 2) -> dict[str, bytes]:
    pixels = pixels_of(count, 4, 4, 3)
    return {
        f"{i // per_folder:05d}/img{i:08d}.png": encoded(Image.fromarray(pixels[i])) for i in range(count)
    }


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("below", ["", "ffhq/"])
def test_dataset_json(tmp_path: Path, unpacked: bool, below: str) -> None:
    members, labels = _edm_members(6), [3, 0, 3, 1, 0, 1]
    named = [[name, label] for name, label in zip(members, labels, strict=True)]
    members["dataset.json"] = json.dumps({"labels": named[::-1]}).encode()
    path = write_zip(tmp_path / "set.zip", {below + name: content for name, content in members.items()})
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
        assert load(write_zip(tmp_path / "hot.zip", members)).labels.tolist() == labels


def test_storage_folders(tmp_path: Path) -> None:
    for content in ('{"labels": null}', '{"labels": []}'):
        path = write_zip(tmp_path / "null.zip", {**_edm_members(6), "dataset.json": content.encode()})
        assert load(path).labels is None
    png = encoded(Image.fromarray(pixels_of(4, 4)))
    edm = [f"{i // 1000:05d}/img{i:08d}.png" for i in (0, 1, 1000, 2500)]
    ffhq = [f"{i // 1000 * 1000:05d}/{i:05d}.png" for i in (0, 1, 1000, 2500)]
    for names in (edm, ffhq):
        assert load(write_zip(tmp_path / "bare.zip", dict.fromkeys(names, png))).labels is None
    classes = load(
        write_zip(tmp_path / "classes.zip", dict.fromkeys(("0/1.png", "10/2.png", "9/1.png"), png))
    )
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
        load(write_zip(tmp_path / "x.zip", members))
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("emnist-letters-train-images-idx3-ubyte", "emnist-letters-test-images-idx3-ubyte"),
        ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
        ("train-images.idx3-ubyte", "t10k-images.idx3-ubyte"),
    ],
)
def test_idx_splits(tmp_path: Path, train: str, test: str) -> None:
    write_idx(tmp_path, train, 9)
    write_idx(tmp_path, test, 2)
    found = load(tmp_path)
    assert (len(found), len(found.labels)) == (9, 9)
    assert any(test in note for note in found.notes)
    assert len(load(tmp_path, split="test")) == 2
    assert len(load(tmp_path, split="train")) == 9
    with pytest.raises(DataError, match="no single file of the split 'val'"):
        load(tmp_path, split="val")
    assert len(load(tmp_path / test)) == 2
    write_idx(tmp_path, "emnist-balanced-train-images-idx3-ubyte", 3)
    if "emnist" in train:
        with pytest.raises(DataError, match="no single file"):
            load(tmp_path)


def test_idx_class_names(tmp_path: Path) -> None:
    def names(folder: str, prefix: str = "", largest: int = 9) -> tuple[str, ...]:
        write_idx(tmp_path / folder, f"{prefix}train-images-idx3-ubyte", 30, largest)
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
        batch = {b"data": pixels_of(3, 3072), key: labels}
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
    images = pixels_of(3, 4, 4)
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
