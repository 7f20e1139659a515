"""Data sets of torch, torchvision's and Hugging Face's shapes become an ImageSet with the same bytes and labels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pfgm_fast as pf
from pfgm_fast.data import ImageSet, from_dataset
from pfgm_fast.errors import ArgumentError, DataError

COUNT = 600  # more than the memory of a set of unknown length holds at first
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 5, 7, 3), dtype=np.uint8)
LABELS = [i % 4 for i in range(COUNT)]
DUE = ImageSet("due", torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS))


class _Map(Dataset):
    """Map-style, without an IndexError at its end."""

    classes = ("a", "b", "c", "d")

    def __init__(self, form: Any) -> None:
        self.form = form

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> Any:
        return self.form(i % COUNT)


class _Stream(IterableDataset):
    def __init__(self, form: Any) -> None:
        self.form = form

    def __iter__(self) -> Iterator[Any]:
        return map(self.form, range(COUNT))


class _HuggingFace:
    """`datasets.Dataset` as far as it is used: rows are dictionaries, features name the classes."""

    @property
    def features(self) -> dict[str, Any]:
        return {"img": None, "label": SimpleNamespace(names=["a", "b", "c", "d"])}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"img": Image.fromarray(PIXELS[i]), "label": LABELS[i]} for i in range(COUNT))


def _tensor(i: int) -> torch.Tensor:
    return torch.from_numpy(PIXELS[i]).permute(2, 0, 1)


def _file(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


FORMS = {
    "Pillow": lambda i: (Image.fromarray(PIXELS[i]), LABELS[i]),
    "CHW bytes": lambda i: (_tensor(i), torch.tensor(LABELS[i])),
    "CHW floats": lambda i: (_tensor(i) / 255, np.int64(LABELS[i])),
    "HWC array": lambda i: {"image": PIXELS[i], "label": LABELS[i]},
    "file": lambda i: {"image": {"bytes": _file(i), "path": None}, "label": LABELS[i]},
    "one-hot": lambda i: [_tensor(i), torch.eye(4)[LABELS[i]]],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [_Map, _Stream])
def test_items(form: str, kind: type) -> None:
    found = from_dataset(kind(FORMS[form]))
    assert found.digest == DUE.digest
    assert found.classes == (("a", "b", "c", "d") if kind is _Map else ())


def test_loaders_and_rows() -> None:
    for loader in (
        DataLoader(TensorDataset(DUE.images, DUE.labels), batch_size=64),
        DataLoader(_Map(FORMS["CHW floats"]), batch_size=7),
        DataLoader(_Stream(FORMS["HWC array"]), batch_size=50),
        DataLoader(_Map(FORMS["Pillow"]), batch_size=None),
    ):
        assert from_dataset(loader).digest == DUE.digest
    rows = from_dataset(_HuggingFace())
    assert (rows.digest, rows.classes) == (DUE.digest, ("a", "b", "c", "d"))
    unlabelled = from_dataset(map(_tensor, range(COUNT)), name="mine")
    assert unlabelled.labels is None
    assert unlabelled.name == "mine"
    assert torch.equal(unlabelled.images, DUE.images)
    normalised = from_dataset([_tensor(i) / 127.5 - 1 for i in range(20)], value_range=(-1, 1))
    assert torch.equal(normalised.images, DUE.images[:20])


def test_the_policy_holds() -> None:
    small = from_dataset(_HuggingFace(), size=4, channels=1)
    assert small.shape == (1, 4, 4)
    grey = Image.fromarray(PIXELS[0, ..., 0])
    mixed = from_dataset([grey, Image.fromarray(PIXELS[1])])
    assert mixed.shape == (3, 5, 7)
    assert "grey images made colour like the others" in mixed.notes[0]
    wide = from_dataset([Image.fromarray(PIXELS[0, ..., 0].astype(np.uint16) * 257)])
    assert np.array_equal(wide.images[0, 0].numpy(), PIXELS[0, ..., 0])


def test_charges() -> None:
    charges = pf.Charges.from_dataset(_HuggingFace())
    assert torch.equal(charges.data, DUE.images)
    assert charges.labels is None
    assert torch.equal(pf.Charges.from_dataset(_HuggingFace(), labels=True).labels, DUE.labels)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "has no items"),
        ([_tensor(0), _tensor(1) * 2.0], r"item 1: floats from .* are not in value_range \(0, 1\)"),
        ([_tensor(0).long()], "item 0: an image must be uint8 or float; got int64"),
        ([_tensor(0) / 255 * float("nan")], "item 0: floats from nan"),
        ([(_tensor(0), 1), (_tensor(1),)], "item 1 has no label, others have one"),
        ([(_tensor(0), -1)], r"labels\[0\] is -1"),
        ([(_tensor(0), "cat")], "labels must be whole numbers"),
        ([{"text": "hello"}], r"item 0: it has no image among \['text'\]"),
        ([{"image": _tensor(0), "label": 1}, {"image": _tensor(0)}], "item 1: it has no label 'label'"),
        ([_tensor(0), _tensor(1)[:, :3]], "item 1: 3×7 pixels, the first image has 5×7"),
        ([torch.zeros(2, 5, 7, dtype=torch.uint8)], r"got \(2, 5, 7\)"),
        (["a picture"], "got a str"),
        ([b"no file"], "item 0: cannot be read as an image"),
    ],
)
def test_what_is_no_data_set(items: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_dataset(items)


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match="iterable"):
        from_dataset(7)
    with pytest.raises(ArgumentError, match="value_range"):
        from_dataset([_tensor(0)], value_range=(1, 1))
