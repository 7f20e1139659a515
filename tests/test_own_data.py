"""A folder of one's own pictures, and nothing else: `pfgm-fast train --data FOLDER` to samples of a class."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfgm_fast.cli import main
from pfgm_fast.data import ImageSet, load
from pfgm_fast.data.sizes import common_size, image_sizes, load_fitting
from pfgm_fast.presets import PRESETS, adapted, for_data, preset, takes
from pfgm_fast.training import RunConfig

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--set", "network.width=8", "--set", "network.blocks=1", "--set", "train.batch=4"]


def pictures(
    folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB", names: tuple[str, ...] = ("a", "b")
) -> Path:
    """One picture a size (height, width), in the classes' folders in turn; without names all in one."""
    generator = np.random.default_rng(0)
    for i, size in enumerate(sizes):
        place = folder / names[i % len(names)] if names else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(
            place / f"{i}.png"
        )
    return folder


ODD = [(23 + i, 41 - i) for i in range(8)]
CASES = {  # sizes, mode, classes → channels, size chosen (None: as they are)
    "odd colour with classes": (ODD, "RGB", ("cat", "dog"), 3, (24, 36)),
    "grey, one odd size": ([(35, 37)] * 6, "L", (), 1, (32, 36)),
    "not square": ([(16, 24)] * 6, "RGB", (), 3, None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_all_that_training_needs(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes, mode, names, channels, chosen = CASES[case]
    folder, run = pictures(tmp_path / "mine", sizes, mode, names), tmp_path / "run"
    assert main(["train", "--data", str(folder), "--out", str(run), "--steps", "1", *TINY]) == 0
    said = capsys.readouterr().out
    edges = chosen or sizes[0]
    assert f"{channels}×{edges[0]}×{edges[1]}" in said
    assert ("brought to" in said) == (chosen is not None)
    config = RunConfig.load(run)
    assert config.size == chosen and config.network.shape == (channels, *edges)
    assert (config.network.classes, config.train.conditional) == (len(names), bool(names))
    drawn = ["sample", str(run), "--steps", "1", "--count", "2", "--images", str(tmp_path / "drawn")]
    assert main([*drawn, *(["--labels", "dog"] if names else [])]) == 0
    with Image.open(tmp_path / "drawn" / "seed0-000001.png") as picture:
        assert picture.size == edges[::-1]
    assert main(["train", "--data", str(folder), "--out", str(run), "--steps", "2"]) == 0
    assert "going on from step 1 of 2" in capsys.readouterr().out


def test_sizes_are_those_that_a_viewer_shows(tmp_path: Path) -> None:
    lying = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "turned.jpg", exif=exif)
    lying.save(tmp_path / "as_it_is.jpg")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert image_sizes(tmp_path) == Counter({(30, 20): 1, (20, 30): 1})
    assert image_sizes("digits") == Counter()
    (tmp_path / "broken.png").unlink()
    for path, size in ((tmp_path / "turned.jpg", (30, 20)), (tmp_path / "as_it_is.jpg", (20, 30))):
        path.rename(tmp_path.parent / path.name)
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path.parent / path.name).rename(tmp_path / "one" / path.name)
        assert load(tmp_path / "one").shape[1:] == size
        (tmp_path / "one" / path.name).unlink()


@pytest.mark.parametrize(
    "sizes, wanted",
    [
        ([(37, 53)], (36, 52)),
        ([(23, 41), (40, 24), (30, 30)], (28, 28)),
        ([(480, 641)], (44, 64)),
        ([(5, 3)], (4, 4)),
        ([(2000, 30)], (64, 4)),
    ],
)
def test_the_size_that_is_chosen(sizes: list[tuple[int, int]], wanted: tuple[int, int]) -> None:
    assert common_size(Counter(sizes)) == wanted
    assert takes(*wanted)


def test_arrays_of_a_size_that_no_network_takes_are_brought_to_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 45, 53, 3), np.uint8))
    images, size = load_fitting(str(tmp_path / "x.npy"), None, takes)
    assert (
        size == (44, 52)
        and images.shape == (3, 44, 52)
        and "45×53 pixels brought to 44×52" in images.notes[0]
    )
    np.save(tmp_path / "y.npy", np.zeros((3, 48, 52, 3), np.uint8))
    images, size = load_fitting(str(tmp_path / "y.npy"), None, takes)
    assert size is None and images.shape == (3, 48, 52) and not images.notes
    images, size = load_fitting(str(tmp_path / "y.npy"), 7, takes)
    assert size == 7 and images.shape == (3, 7, 7)


SHAPES = [(1, 28, 28), (3, 32, 32), (3, 24, 40), (1, 8, 8), (3, 64, 64), (3, 12, 100)]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_preset_is_a_recipe(name: str, shape: tuple[int, int, int]) -> None:
    images = ImageSet("x", torch.zeros(6, *shape, dtype=torch.uint8), torch.arange(6) % 3)
    recipe = preset(name)
    got = adapted(recipe, images)
    assert got.network.shape == shape
    assert (got.network.width, got.network.blocks) == (recipe.network.width, recipe.network.blocks)
    assert got.train == recipe.train
    assert got.network.classes == (3 if recipe.train.conditional else 0)
    if shape == recipe.network.shape:
        assert replace(got, network=recipe.network) == recipe
        return
    given = recipe.method or {}
    assert (got.method or {}) == {k: v for k, v in given.items() if k not in ("m_exp", "z_max", "upper_norm")}
    edges = [edge for _, (edge, _) in got.network.levels]
    assert got.network.attention and set(got.network.attention) <= set(edges)


def test_a_conditional_recipe_takes_the_classes_of_the_data(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "mine", [(16, 20)] * 6, names=("a", "b", "c"))
    asked = [
        "train",
        "--data",
        str(folder),
        "--preset",
        "mnist",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "1",
    ]
    assert main([*asked, *TINY, "--set", "train.conditional=yes"]) == 0
    config = RunConfig.load(tmp_path / "run")
    assert (config.network.classes, config.network.shape, config.preset) == (3, (3, 16, 20), "mnist")
    assert main([*asked[:-1], "2"]) == 0


def test_without_a_preset_every_size_that_is_taken_gives_a_network() -> None:
    for edges in ((4, 4), (6, 10), (31, 31), (64, 48), (4, 64)):
        assert takes(*edges)
        for_data(ImageSet("x", torch.zeros(1, 3, *edges, dtype=torch.uint8)), "x")
    assert not takes(37, 53)


@pytest.mark.slow
def test_the_newcomers_script(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "WIDTH": "8", "PFGM_FAST_EXAMPLE_SIZE": "400"}
    subprocess.run(
        ["sh", str(ROOT / "examples" / "newcomer.sh"), str(tmp_path / "out")], check=True, env=environment
    )
    out = tmp_path / "out"
    assert len(list((out / "pictures").rglob("*.png"))) == 40
    assert len(list((out / "discs").glob("*.png"))) == 12
    with Image.open(out / "discs" / "seed0-000000.png") as picture:
        assert picture.size == tuple(reversed(RunConfig.load(out / "run").network.size))
    figures = json.loads((out / "figures.json").read_text())
    assert figures["samples"] == 20 and figures["energy_distance"] > 0
    assert (out / "run" / "checkpoints" / "step-0000025.json").exists()
    for name in ("heart.png", "paths.png", "heart.gif", "discs.png", "samples.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 60
