"""The command line, as a user types it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pfgm_fast as pf
from pfgm_fast.cli import COMMANDS, main, parser
from pfgm_fast.cli.options import assignments, merged
from pfgm_fast.methods import from_dict
from pfgm_fast.presets import PRESETS
from pfgm_fast.training import load_network

TINY = [
    "--steps",
    "3",
    "--set",
    "network.width=8",
    "--set",
    "network.blocks=1",
    "--set",
    "train.batch=8",
    "--set",
    "train.checkpoint_every=2",
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", "--out", str(folder), *TINY]) == 0
    return folder


def test_help_names_every_command_and_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([c.__name__.rsplit(".", 1)[1]] for c in COMMANDS)):
        with pytest.raises(SystemExit) as caught:
            parser().parse_args([*arguments, "--help"])
        assert caught.value.code == 0
    said = capsys.readouterr().out
    for name in ("demo", "train", "sample", "evaluate", "bench", "info"):
        assert name in said


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pfgm_fast", "info", "--json"], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert set(facts["backends"]) == {"reference", "cpu", "triton", "cuda"}
    assert facts["backends"]["reference"] == "ok"


def test_train_goes_on_where_it_stopped(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(run_folder), "--steps", "4"]) == 0
    assert "going on from step 3 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_sample_writes_pictures_and_bytes(run_folder: Path, tmp_path: Path, solver: str) -> None:
    common = ["sample", str(run_folder), "--count", "5", "--steps", "2", "--solver", solver, "--batch", "3"]
    assert main([*common, "--out", str(tmp_path / "x.png")]) == 0
    assert Image.open(tmp_path / "x.png").size[0] > 60
    assert main([*common, "--out", str(tmp_path / "x.npz")]) == 0
    assert np.load(tmp_path / "x.npz")["images"].shape == (5, 1, 8, 8)


def test_an_image_does_not_depend_on_the_batch(run_folder: Path, tmp_path: Path) -> None:
    """Image k of a seed, drawn three at a time, all at once, or as one of fewer; another seed draws others."""
    drawn = {}
    for name, more in {
        "three": ["--batch", "3"],
        "all": ["--batch", "99"],
        "fewer": ["--count", "4"],
        "other": ["--seed", "1"],
    }.items():
        out = tmp_path / f"{name}.npz"
        assert (
            main(["sample", str(run_folder), "--count", "7", "--steps", "2", *more, "--out", str(out)]) == 0
        )
        drawn[name] = np.load(out)["images"].astype(int)
    assert np.abs(drawn["three"] - drawn["all"]).max() <= 1  # rounding of another batch size
    assert np.abs(drawn["fewer"] - drawn["all"][:4]).max() <= 1
    assert np.abs(drawn["other"] - drawn["all"]).max() > 10


def test_denoised_images_are_clipped_as_the_function_does(run_folder: Path, tmp_path: Path) -> None:
    net, method, _ = load_network(run_folder, 0)
    drawn, energies = {}, set()
    for rule in (None, "box", "dynamic"):
        more = [] if rule is None else ["--clip-denoised", rule]
        common = [str(run_folder), "--count", "12", "--steps", "4", "--solver", "heun", *more]
        assert main(["sample", *common, "--out", str(tmp_path / "x.npz")]) == 0
        drawn[rule] = np.load(tmp_path / "x.npz")["images"].astype(int)
        x = pf.sample(net, (12, 1, 8, 8), "heun", 4, method=method, seed=0, clip_denoised=rule).x
        assert np.abs(drawn[rule] - ((x + 1) * 127.5).round().clamp(0, 255).numpy()).max() <= 1
        assert main(["evaluate", *common, "--json", str(tmp_path / "figures.json")]) == 0
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures.get("clip_denoised") == rule
        energies.add(figures["energy_distance"])
    assert len(energies) == 3
    assert all(np.abs(drawn[a] - drawn[b]).max() > 1 for a, b in itertools.combinations(drawn, 2))


def test_evaluate(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(run_folder), "--count", "32", "--steps", "2", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["energy_distance"] > 0
    assert figures["evaluations"] == 2
    assert "energy_distance" in capsys.readouterr().out


def test_evaluate_likelihood_and_inversion(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    common = ["evaluate", str(run_folder), "--count", "8", "--steps", "2", "--json", str(out)]
    assert main([*common, "--likelihood", "3", "--probes", "2", "--invert", "2", "--tolerance", "1e-2"]) == 0
    figures = json.loads(out.read_text())
    assert figures["bits_per_dim_images"] == 3
    assert 0 < figures["bits_per_dim"] < 100
    assert figures["inversion_error"] <= figures["inversion_error_largest"] < 0.5
    assert figures["inversion_evaluations"] > 12


def test_conditional_run_from_the_command_line(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    sets = [
        "--set",
        "network.classes=10",
        "--set",
        "train.conditional=true",
        "--set",
        "train.snapshot_every=1",
    ]
    assert main(["train", "--out", run, *TINY, *sets]) == 0
    common = ["sample", run, "--steps", "2", "--snapshot", "1", "--out", str(tmp_path / "x.npz")]
    assert main([*common, "--count", "4", "--labels", "3,7"]) == 0
    first = np.load(tmp_path / "x.npz")["images"]
    assert first.shape == (4, 1, 8, 8)
    assert main([*common, "--count", "2", "--interpolate", "5", "--temperature", "0.5", "--batch", "4"]) == 0
    assert np.load(tmp_path / "x.npz")["images"].shape == (10, 1, 8, 8)


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--batch", "4", "--charges", "30", "--dim", "12", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "the authors' broadcast formula" in said
    assert "pfgm_fast.euler_step" in said


@pytest.mark.slow
def test_demo_in_short(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path), "--steps", "2", "--samples", "16"]) == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert {"samples.png", "trajectories.png", "neighbors.png", "loss.png", "report.md"} <= names
    assert "energy distance" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "/nowhere"], "is not a run of pfgm_fast"),
        (["train", "--out", "{tmp}", "--data", "/nowhere"], "no data at"),
        (["train", "--out", "{tmp}", "--set", "train.colour=1"], "unknown setting 'colour'"),
        (["train", "--out", "{tmp}", "--set", "nonsense"], "--set takes name=value"),
        (
            [
                "train",
                "--out",
                "{tmp}",
                "--preset",
                "mnist",
                "--data",
                "digits",
                "--set",
                "network.image_size=28",
            ],
            "the network is for images of 1×28×28",
        ),
        (["train", "--out", "{tmp}", "--device", "cuda:x"], "--device cuda:x"),
        (["sample", "{run}", "--out", "x.gif"], "--out must end in .png or .npz"),
        (["sample", "{run}", "--labels", "3"], "--labels must be in"),
        (["sample", "{run}", "--interpolate", "1"], "--interpolate takes 2 images"),
        (["sample", "{run}", "--temperature", "0"], "temperature must be"),
        (["sample", "{run}", "--snapshot", "77"], "has no checkpoint of step 77; it has"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(tmp=tmp_path / "new", run=run_folder) for a in arguments]
    assert main(filled) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith(f"pfgm-fast {arguments[0]}: ")
    assert len(said.strip().splitlines()) == 1


def test_settings_are_merged() -> None:
    assert assignments(["train.lr=1", "train.precision=bfloat16", "network.multipliers=[1, 2]"]) == {
        "train": {"lr": 1.0, "precision": "bfloat16"},
        "network": {"multipliers": (1, 2)},
    }
    assert merged({"a": {"b": 0, "e": 5}, "m": None}, {"a": {"b": 1}, "m": {"k": 2}}) == {
        "a": {"b": 1, "e": 5},
        "m": {"k": 2},
    }
    method = {"method": {"name": "pfgm", "sigma": 0.01}}
    assert merged(method, {"method": {"name": "ve"}}) == {"method": {"name": "ve"}}
    assert merged(method, {"method": {"sigma": 1.0}}) == {"method": {"name": "pfgm", "sigma": 1.0}}


@pytest.mark.parametrize(
    ("name", "method", "network", "train"),
    [  # the released configurations of Newbeeer/Poisson_flow, configs/poisson and their defaults
        ("cifar10", (291, 40, 3000, 5), (32, (1, 2, 2, 2), 4, 0.1), (1_300_000, 128, 2e-4)),
        ("celeba64", (291, 60, 6000, 1), (64, (1, 2, 2, 2), 4, 0.1), (1_300_000, 128, 2e-4)),
        ("lsun256", (356, 100, 30_000, 0.1), (256, (1, 1, 2, 2, 4, 4), 2, 0.0), (2_400_000, 32, 2e-5)),
    ],
)
def test_presets_are_the_papers(name: str, method: tuple, network: tuple, train: tuple) -> None:
    found = PRESETS[name]
    pfgm = from_dict(found.method)
    assert (pfgm.m_exp, pfgm.z_max, pfgm.upper_norm, pfgm.z_exp) == method
    assert (pfgm.sigma, pfgm.tau, pfgm.gamma, pfgm.z_min, pfgm.near) == (0.01, 0.03, 5.0, 1e-3, 0.005)
    net = found.network
    assert (net.image_size, net.multipliers, net.blocks, net.dropout) == network
    assert (net.channels, net.width, net.attention) == (3, 128, (16,))
    assert (found.train.steps, found.train.batch, found.train.lr) == train
    assert (found.train.warmup, found.train.clip, found.train.ema) == (5000, 1.0, (0.9999,))
    assert found.train.flip
    assert found.train.snapshot_every == 50_000


def test_every_preset_has_a_network_that_runs() -> None:
    import torch

    from pfgm_fast.nn import DDPMpp, unet

    assert {"digits", "mnist", "cifar10", "celeba64", "lsun256"} == {
        name for name, found in PRESETS.items() if found.preconditioning is None
    }
    for found in PRESETS.values():
        net = found.network
        with torch.device("meta"):
            x, noise = torch.empty(2, net.channels, net.image_size, net.image_size), torch.empty(2)
            if found.preconditioning is not None:
                assert unet(net)(x, noise, None, torch.empty(2, net.augment_dim)).shape == x.shape
                continue
            vx, vz = DDPMpp(net)(x, noise)
        assert vx.shape == (2, net.channels, net.image_size, net.image_size)
        assert vz.shape == (2,)
