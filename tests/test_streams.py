"""Data that need not fit in memory: streams of images, the reservoir's rule, and how the data of a run are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pfgm_fast as pf
from pfgm_fast import data
from pfgm_fast.charges import Charges
from pfgm_fast.cli import main
from pfgm_fast.data import ImageSet, ImageStream
from pfgm_fast.errors import ArgumentError, DataError
from pfgm_fast.nn import UNetConfig
from pfgm_fast.presets import PRESETS
from pfgm_fast.training import RunConfig, TrainConfig, Trainer
from pfgm_fast.training.batches import Reservoir, Resident, places
from pfgm_fast.training.log import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 colour pictures of 12×10, of two classes."""
    random = np.random.default_rng(0)
    for i in range(23):
        place = tmp_path / "pictures" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(place / f"{i:02d}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    "reading", [{}, {"size": 8}, {"crop": (8, 6)}, {"channels": 1, "size": (4, 6)}], ids=str
)
def test_a_stream_has_the_images_of_the_set(reading: dict[str, Any], folder: Path) -> None:
    whole, stream = data.load(folder, **reading), data.stream(folder, **reading)
    assert isinstance(stream, ImageStream) and (stream.shape, len(stream)) == (whole.shape, len(whole))
    assert stream.classes == whole.classes and stream.labels is not None and whole.labels is not None
    index = torch.tensor([22, 0, 5, 5])
    assert torch.equal(stream.read(index), whole.images[index])
    assert torch.equal(stream.labels, whole.labels)
    mirrored = stream.with_flips()
    assert len(mirrored) == 46 and mirrored.digest == stream.digest
    assert torch.equal(mirrored.read(torch.tensor([40])), whole.with_flips().images[40:41])
    part = stream.sample(3)
    assert torch.equal(part.images, whole.images[[0, 11, 22]])


@pytest.mark.parametrize("shape", [(9, 6, 6), (9, 6, 6, 3), (9, 3, 6, 6)], ids=str)
def test_a_numpy_file_is_mapped_not_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    whole, stream = data.load(path), data.stream(path)
    assert torch.equal(stream.read(torch.arange(9)), whole.images)
    assert torch.equal(data.stream(path, size=4).read(torch.tensor([7])), data.load(path, size=4).images[7:8])
    other = np.load(path)
    other[4] ^= 1
    np.save(path, other)
    assert data.stream(path).digest != stream.digest
    np.save(path, other.astype(np.float32))
    with pytest.raises(DataError, match="uint8"):
        data.stream(path)


def test_what_is_read_later_is_judged_later_and_named(folder: Path) -> None:
    for i in range(70):
        Image.fromarray(np.full((12, 10, 3), i, np.uint8)).save(folder / "a" / f"n{i:03d}.png")
    stream = data.stream(folder)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    Image.new("RGB", (3, 3)).save(folder / names[50])
    with pytest.raises(DataError, match=f"{names[50]}.*give a size"):
        stream.read(torch.tensor([49, 50]))
    (folder / names[50]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=names[50]):
        stream.read(torch.tensor([50]))


def _numbered(count: int) -> ImageStream:
    """Image i is of the value i everywhere, of the class i mod 3."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    return data.of_set(ImageSet("numbered", images, torch.arange(count) % 3))


def test_the_reservoir_holds_what_comes_next_in_the_endless_order() -> None:
    train = TrainConfig(batch=4, reservoir=10, conditional=True, seed=3, flip=False)
    stream, generator = _numbered(23), torch.Generator()
    reservoir = Reservoir(stream, train, torch.device("cpu"))
    order = places(23, 3, 0, 200)
    assert (
        sorted(order[:23].tolist()) == sorted(order[23:46].tolist()) == list(range(23))
    )  # an epoch is a permutation
    for step in (*range(14), 40, 41, 3):  # in turn, and from any update
        charges, own = reservoir.at(step, generator)
        assert torch.equal(charges.data[own, 0, 0, 0].long(), order[4 * step : 4 * step + 4])
        expected = order[4 * step : 4 * step + 10]
        assert sorted(charges.data[:, 0, 0, 0].tolist()) == sorted(expected.tolist())
        assert charges.labels is not None and torch.equal(charges.labels, charges.data[:, 0, 0, 0].long() % 3)
        fresh = Charges(charges.data.clone(), labels=charges.labels.clone())  # nothing in it is out of date
        norms = (charges.values(dtype=torch.float64).flatten(1) - charges.center).square().sum(1)
        torch.testing.assert_close(charges.sq_norms, norms)  # what kernels of large N take them for
        x = torch.randn(3, 1, 4, 4)
        for labels in (None, charges.labels[:3]):
            mine, theirs = (pf.posterior_mean(x, 0.7, c, 8.0, labels=labels) for c in (charges, fresh))
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_every_image_is_trained_on_once_an_epoch_in_memory_or_streamed() -> None:
    train = TrainConfig(batch=4, reservoir=6, flip=False)
    stream = _numbered(12)
    both = (
        Reservoir(stream, train, torch.device("cpu")),
        Resident(stream.sample(12), replace(train, reservoir=None), torch.device("cpu")),
    )
    for step in range(7):
        batches = [batches.at(step, torch.Generator()) for batches in both]
        mine, theirs = (charges.data[own, 0, 0, 0] for charges, own in batches)
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"reservoir": 3, "batch": 4}, "must hold a batch"),
        ({"reservoir": 23, "batch": 4}, "fewer than all 23"),
        ({"reservoir": 8, "batch": 4, "field_charges": 8}, "reservoir takes its place"),
    ],
)
def test_a_reservoir_that_cannot_be_is_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Reservoir(_numbered(23), TrainConfig(**train), torch.device("cpu"))


def test_a_streamed_run_is_trained_resumed_and_evaluated(folder: Path, tmp_path: Path) -> None:
    """By the command line; killed and gone on, it is the run that was never stopped."""
    settings = [
        "train.reservoir=12", "train.batch=4", "train.flip=yes", "network.width=8", "network.blocks=1", "network.multipliers=1,2",
        "train.log_every=1", "train.sample_every=0", "train.checkpoint_every=2", "train.decay=0",
    ]  # fmt: skip
    arguments = ["train", "--data", str(folder), "--size", "8", *(x for s in settings for x in ("--set", s))]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--steps", "5"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "b"), "--steps", "3"]) == 0
    assert main(["train", "--out", str(tmp_path / "b"), "--steps", "5"]) == 0
    for a, b in zip(read(tmp_path / "a"), read(tmp_path / "b"), strict=True):
        assert a["loss"] == b["loss"]
    config = RunConfig.load(tmp_path / "a")
    assert config.method is not None and config.method["data_radius"] == "box"
    assert config.dataset is not None and "streamed" in config.dataset.description
    scores = tmp_path / "scores.json"
    assert (
        main(["evaluate", str(tmp_path / "a"), "--count", "23", "--steps", "2", "--json", str(scores)]) == 0
    )
    assert json.loads(scores.read_text())["samples"] == 23


def test_crop_channels_and_split_are_settings_of_a_run(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "sets" / part).mkdir(parents=True)
        for i, path in enumerate(sorted(folder.rglob("*.png"))[:9]):
            Image.open(path).rotate(90 * (part == "test")).save(tmp_path / "sets" / part / f"{i}.png")
    out = tmp_path / "run"
    settings = ["train.batch=4", "network.width=8", "network.blocks=1", "train.sample_every=0"]
    assert main(
        ["train", "--data", str(tmp_path / "sets"), "--split", "test", "--crop", "8", "--channels", "1", "--out", str(out),
         "--steps", "1", *(x for s in settings for x in ("--set", s))]
    ) == 0  # fmt: skip
    config = RunConfig.load(out)
    assert (config.split, config.crop, config.channels) == ("test", 8, 1)
    assert config.network.shape == (1, 8, 8)
    expected = data.load(tmp_path / "sets", crop=8, channels=1, split="test")
    assert config.dataset is not None and config.dataset.digest == expected.digest
    assert config.images().digest == expected.digest
    trainer = Trainer(config, out)
    assert trainer.step == 1 and torch.equal(trainer.charges.data, expected.images)
    with pytest.raises(ArgumentError, match="channels must be one of 1, 3"):
        RunConfig("digits", channels=2)  # type: ignore[arg-type]


def test_presets_crop_and_stream_as_the_authors_data_need() -> None:
    assert (PRESETS["celeba64"].crop, PRESETS["celeba64"].size) == (140, 64)
    for name in ("lsun256", "lsun256-pfgmpp"):
        config = PRESETS[name]
        assert config.size == 256 and config.train.reservoir == 4096 >= config.train.batch
    assert isinstance(PRESETS["lsun256"].network, UNetConfig)
