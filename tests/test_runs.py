"""Runs that must never be silently wrong: one test a fault that users of neighbouring projects reported (FAULTS)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pfgm_fast.cli import main
from pfgm_fast.data import load
from pfgm_fast.errors import ArgumentError, CheckpointError, NonFiniteError
from pfgm_fast.methods import PFGM
from pfgm_fast.plots import to_bytes
from pfgm_fast.training import RunConfig, TrainConfig, Trainer, load_network
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.lock import NAME, STALE
from pfgm_fast.training.log import read
from tests.test_training import SMALL, _weights, _with

FAULTS = [  # source of the symptom, kind, the tests that see it (tests/…)
    ("transformers #27138", "checkpoints sorted as text", "test_runs.py::test_checkpoints_are_sorted_as_numbers"),
    ("transformers #27138", "the last good one removed", "test_runs.py::test_a_later_damaged_one_does_not_count"),
    ("ultralytics #24986", "NaN rotates checkpoints away", "test_runs.py::test_a_loss_that_is_not_finite_ends_the_training"),
    ("ultralytics #24986", "NaN rotates checkpoints away", "test_runs.py::test_weights_that_are_not_finite_are_never_saved"),
    ("ultralytics #24986", "NaN as a picture", "test_runs.py::test_samples_that_are_not_finite_are_an_error"),
    ("argschema #64, OpenSeq2Seq #130", "'False' is true", "test_settings.py::test_text_is_read_by_the_settings_type"),
    ("NeMo-RL #2519", "resumed on other data", "test_runs.py::test_a_run_knows_its_data"),
    ("NeMo-RL #2519", "preset ignored on resuming", "test_runs.py::test_a_preset_beside_another_run_is_refused"),
    ("mmdetection #12069", "evaluate writes into the run", "test_runs.py::test_evaluate_a_run_that_cannot_be_written"),
    ("piq #102", "metrics depend on a shift", "test_metrics.py::test_metrics_do_not_depend_on_a_shift"),
    ("piq #102", "metrics of NaN", "test_metrics.py::test_metrics_refuse_what_is_not_finite"),
    ("gptorch #22", "default dtype float64", "test_runs.py::test_the_default_dtype_changes_nothing"),
    ("–", "0 taken for not given", "test_runs.py::test_zero_is_a_number"),
    ("–", "non-ASCII output ends a command", "test_console.py::test_help_and_a_run_in_ascii"),
    ("–", "tracebacks", "test_console.py::test_whatever_fails_is_one_line"),
    ("–", "broken pipe, early Ctrl-C", "test_console.py::test_a_closed_pipe_is_quiet"),
    ("–", "broken pipe, early Ctrl-C", "test_console.py::test_an_early_interrupt_is_quiet"),
    ("–", "relative --data", "test_runs.py::test_evaluation_from_another_folder"),
    ("–", "SIGHUP ends without a checkpoint", "test_interrupted.py::test_signals_checkpoint"),
    ("–", "two runs in one folder", "test_runs.py::test_one_process_a_folder"),
    ("–", "a failed start spoils the folder", "test_runs.py::test_a_failed_start_leaves_nothing"),
]  # fmt: skip


def test_every_fault_has_its_test() -> None:
    here = Path(__file__).parent
    for _, _, place in FAULTS:
        file, name = place.split("::")
        assert f"def {name}(" in (here / file).read_text(encoding="utf-8"), place


@pytest.mark.parametrize("steps", [(9_999_998, 9_999_999, 10_000_000), (9, 99_999_999, 100_000_000)])
def test_checkpoints_are_sorted_as_numbers(tmp_path: Path, steps: tuple[int, ...]) -> None:
    for step in steps:
        path = checkpoints.save(tmp_path, checkpoints.Checkpoint(step, {"net.a": torch.ones(1)}), keep=2)
        assert path.exists()
        latest = checkpoints.latest(tmp_path)
        assert latest is not None
        assert latest.step == step
    (checkpoints.folder_of(tmp_path) / "step-old.json").write_text("{}")  # a user's own copy is none of ours
    assert [checkpoints.step_of(p) for p in checkpoints.available(tmp_path)] == list(steps[1:])


def test_a_later_damaged_one_does_not_count(tmp_path: Path) -> None:
    """Resumed from 8 because 12 is damaged, the checkpoint of 9 does not make way for that of 12."""
    Trainer(SMALL, tmp_path).run(progress=False)
    newest = checkpoints.available(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="passed over"):
        trainer = Trainer(_with(keep=1), tmp_path)
    trainer.run(until=9, progress=False)
    assert 9 in [checkpoints.step_of(p) for p in checkpoints.available(tmp_path)]
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpoints.latest(tmp_path).step == 9


def _poisoned(folder: Path, bad: set[int], value: float = math.nan, **train: object) -> Trainer:
    """A trainer whose loss is `value` at some updates, counted from 1."""
    trainer = Trainer(_with(**train), folder)
    loss, method = trainer.method.loss, trainer.method

    class Poisoned:
        def __getattr__(self, name: str) -> object:
            return getattr(method, name)

        def loss(self, *args: object) -> torch.Tensor:
            found = loss(*args)
            return found * value if trainer.step + 1 in bad else found

    trainer.method = Poisoned()  # type: ignore[assignment]
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, value: float, log_every: int) -> None:
    trainer = _poisoned(tmp_path, {6, 7, 8}, value, log_every=log_every, checkpoint_every=2, keep=1)
    with pytest.raises(
        NonFiniteError, match=r"update 6: the loss is (nan|inf).*lr 0\.001.*step 4 stays.*skip_nonfinite"
    ):
        trainer.run(progress=False)
    assert checkpoints.latest(tmp_path).step == 4
    assert all(p.isfinite().all() for average in trainer.averages for p in average.parameters())
    assert all(math.isfinite(float(row["loss"])) for row in read(tmp_path))


def test_bad_updates_that_may_be_left_out_change_nothing(tmp_path: Path) -> None:
    """Neither weights nor moments nor averages nor the log see them; one more in a row than allowed ends the training."""
    trainer = _poisoned(tmp_path / "a", {3, 4}, skip_nonfinite=2)
    trainer.run(until=2, progress=False)
    before = _weights(trainer)
    moments = [{k: v.clone() for k, v in s.items()} for s in trainer.optimizer.state.values()]
    with pytest.warns(UserWarning, match="left out"):
        trainer.run(until=4, progress=False)
    assert torch.equal(_weights(trainer), before)
    for old, new in zip(moments, trainer.optimizer.state.values(), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)
    trainer.run(until=6, progress=False)
    assert not torch.equal(_weights(trainer), before)
    assert [row["step"] for row in read(tmp_path / "a")] == ["1", "2", "5", "6"]
    with pytest.raises(NonFiniteError, match="update 5"), pytest.warns(UserWarning, match="left out"):
        _poisoned(tmp_path / "b", {3, 4, 5}, skip_nonfinite=2).run(progress=False)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, tmp_path)
    trainer.run(until=4, progress=False)
    with torch.no_grad():
        next(trainer.net.parameters()).view(-1)[0] = math.inf
    trainer._saved = None
    with pytest.raises(NonFiniteError, match="weights are not finite"):
        trainer.save()
    assert checkpoints.latest(tmp_path).step == 4


def test_samples_that_are_not_finite_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says how many and writes nothing; pictures of such samples are refused."""
    Trainer(SMALL, tmp_path / "run").run(until=1, progress=False)
    path = checkpoints.available(tmp_path / "run")[0]
    saved = checkpoints.load(path)
    for name, value in saved.tensors.items():
        if name.startswith("ema.0.") and value.is_floating_point():
            value.fill_(math.nan)
    checkpoints.save(tmp_path / "run", saved, keep=2)
    for command in (["sample", "--out", str(tmp_path / "x.png")], ["evaluate"]):
        arguments = [command[0], str(tmp_path / "run"), "--count", "5", "--steps", "2", *command[1:]]
        assert main(arguments) == 2
        assert "5 of 5 samples" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    pictures = torch.zeros(3, 1, 2, 2)
    pictures[1, 0, 0, 0] = math.nan
    with pytest.raises(ArgumentError, match="1 of 3 images"):
        to_bytes(pictures)


def _arrays(path: Path, seed: int, count: int = 20, labels: bool = False) -> Path:
    draw = np.random.default_rng(seed)
    given = {"labels": draw.integers(0, 3, count)} if labels else {}
    np.savez(path, images=draw.integers(0, 256, (count, 8, 8), dtype=np.uint8), **given)
    return path


TINY = ["--steps", "2", "--set", "network.width=8", "--set", "network.blocks=1", "--set", "train.batch=4"]


def _train(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def test_a_run_knows_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other images of the same shape are refused with both descriptions; the same ones elsewhere are welcome, and recorded."""
    first, other = _arrays(tmp_path / "first.npz", 0), _arrays(tmp_path / "other.npz", 1)
    out = tmp_path / "run"
    assert _train("--data", first, "--out", out, *TINY) == 0
    config = (out / "config.json").read_text()
    capsys.readouterr()
    assert _train("--data", other, "--out", out, "--steps", 4) == 2
    said = capsys.readouterr().err
    for name, path in (("first", first), ("other", other)):
        assert name in said
        assert load(path).digest[:12] in said
    assert (out / "config.json").read_text() == config
    moved = tmp_path / "moved.npz"
    first.rename(moved)
    assert _train("--data", moved, "--out", out, "--steps", 4) == 0
    assert RunConfig.load(out).data == str(moved)
    assert load_network(out)[2].train.steps == 4


def test_runs_of_the_first_format_go_on(tmp_path: Path) -> None:
    """config.json as version 1 wrote it: no record of the data, which is then made."""
    Trainer(SMALL, tmp_path).run(until=2, progress=False)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("dataset", "preset"):
        del values[name]
    del values["train"]["skip_nonfinite"]
    values["format"] = "pfgm_fast run, version 1"
    (tmp_path / "config.json").write_text(json.dumps(values))
    trainer = Trainer(SMALL, tmp_path)
    assert trainer.step == 2
    trainer.run(until=3, progress=False)
    assert RunConfig.load(tmp_path).dataset.digest == load("digits").digest


def test_the_radius_of_the_data_is_kept_and_runs_of_before_it_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json holds R. Without it, as earlier runs are, sampling is not held to it; resumed, the run learns it and nothing else changes."""
    config, old = _with(steps=4, decay=0.0), tmp_path / "old"
    whole = Trainer(config, tmp_path / "whole")
    whole.run(progress=False)
    radius = load_network(tmp_path / "whole")[1].data_radius
    values = load("digits").charges().values().flatten(1)
    assert radius == pytest.approx(float(values.norm(dim=1).max()), rel=1e-6)
    assert RunConfig.load(tmp_path / "whole").method["data_radius"] == radius

    Trainer(config, old).run(until=2, progress=False)
    content = json.loads((old / "config.json").read_text())
    del content["method"]["data_radius"]
    (old / "config.json").write_text(json.dumps(content))
    assert load_network(old)[1].data_radius is None
    assert _train("--out", old, "--set", "method.gamma=7") == 2
    assert "method.gamma = 5.0, not 7.0" in capsys.readouterr().err
    assert _train("--out", old) == 0
    net, method, _ = load_network(old, None)
    assert method.data_radius == radius
    assert torch.equal(torch.cat([p.flatten() for p in net.parameters()]), _weights(whole))


def test_what_followed_from_the_data_stays_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of threads or another device rounds a sum over the data differently; the run goes on, and keeps its numbers."""
    from pfgm_fast.methods import EDM, METHODS

    config = dataclasses.replace(_with(steps=2), method={"name": "edm"})
    first = Trainer(config, tmp_path)
    first.run(progress=False)
    rules = METHODS["edm"].from_data

    def rounded_differently(charges, **given):
        found = rules(charges, **given)
        return dataclasses.replace(
            found, sigma_max=found.sigma_max * (1 + 2e-16 * 3), sigma_data=found.sigma_data * (1 - 3e-16)
        )

    monkeypatch.setattr(METHODS["edm"], "from_data", staticmethod(rounded_differently))
    assert rounded_differently(load("digits").charges()) != first.method
    again = Trainer(config, tmp_path)
    assert again.step == 2
    assert isinstance(again.method, EDM)
    assert again.method == first.method
    # Given in full, as comparisons do, they may differ by rounding, and by no more.
    full = first.method.to_dict()
    Trainer(
        dataclasses.replace(config, method=full | {"sigma_max": full["sigma_max"] * (1 + 1e-15)}), tmp_path
    )
    with pytest.raises(CheckpointError, match=r"sigma_max"):
        Trainer(dataclasses.replace(config, method=full | {"sigma_max": full["sigma_max"] * 1.001}), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "mnist"], "was begun from preset digits, not mnist"),
        (["--size", "16"], "size = None, not 16"),
        (["--set", "method.name=pfgmpp"], "method.name = 'pfgm', not 'pfgmpp'"),
        (["--set", "method.sigma=0.5"], "method.sigma = 0.01, not 0.5"),
        (["--set", "network.width=16"], "network.width = 8, not 16"),
        (["--set", "train.flip=yes"], "flip = False, not True"),
    ],
)
def test_a_preset_beside_another_run_is_refused(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train("--preset", "digits", "--out", tmp_path, *TINY) == 0
    config = (tmp_path / "config.json").read_text()
    assert _train("--out", tmp_path, "--steps", 3, *arguments) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == config
    assert _train("--preset", "digits", "--out", tmp_path, *TINY) == 0  # the same command goes on


@pytest.mark.parametrize(
    "wrong",
    [
        ["--set", "network.width=30"],
        ["--set", "train.tensorboard=yes"],
        ["--set", "train.conditional=yes"],
        ["--set", "train.field_charges=0"],
        ["--size", "0"],
    ],
)
def test_a_failed_start_leaves_nothing(
    tmp_path: Path, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a first update that fails; the corrected command then works."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    assert _train("--out", out, *TINY, *wrong) == 2
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", lambda self: 1 / 0)
        assert _train("--preset", "digits", "--out", out, *TINY) == 2
    assert not out.exists()
    assert _train("--out", out, *TINY) == 0


def test_zero_is_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train("--out", tmp_path / "a", "--steps", 0) == 2
    assert "steps must be an integer ≥ 1; got 0" in capsys.readouterr().err
    trainer = Trainer(SMALL, tmp_path / "b")
    trainer.run(until=0, progress=False)
    assert trainer.step == 0
    for bad in ({"m_exp": 0}, {"sigma": 0.0}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            PFGM.from_data(load("digits").charges(), **bad)


def test_evaluation_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _arrays(tmp_path / "images.npz", 0, labels=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _train("--data", "images.npz", "--out", "run", *TINY) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    common = ["evaluate", str(tmp_path / "run"), "--steps", "2"]
    assert main([*common, "--count", "6"]) == 0
    _arrays(tmp_path / "images.npz", 1, labels=True)
    assert main([*common, "--count", "6"]) == 2  # no longer what it was trained on
    assert main([*common, "--count", "6", "--data", str(tmp_path / "images.npz")]) == 0


def test_too_few_samples_are_refused_before_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(SMALL, tmp_path).run(until=1, progress=False)
    monkeypatch.setattr("pfgm_fast.cli.evaluate.draw", lambda _: pytest.fail("it sampled"))
    assert main(["evaluate", str(tmp_path), "--count", "3"]) == 2
    assert "at least 4 samples" in capsys.readouterr().err


def test_evaluate_a_run_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written beside the run (as root may, files are simulated), figures are made all the same."""
    from pfgm_fast.metrics import features

    Trainer(SMALL, tmp_path / "run").run(until=1, progress=False)

    def refused(tensors: dict, path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("safetensors.torch.save_file", refused)
    monkeypatch.setattr(
        features, "train_classifier", lambda images, epochs: features._classifier(images).eval()
    )
    out = tmp_path / "figures.json"
    arguments = ["evaluate", str(tmp_path / "run"), "--count", "8", "--steps", "2", "--json", str(out)]
    with pytest.warns(UserWarning, match="computed anew"):
        assert main(arguments) == 0
    assert json.loads(out.read_text())["frechet_classifier"] > 0


def test_the_default_dtype_changes_nothing(tmp_path: Path) -> None:
    trained = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            trainer = Trainer(_with(steps=2, sample_every=2), tmp_path / str(dtype))
            trainer.run(progress=False)
        finally:
            torch.set_default_dtype(torch.float32)
        trained.append(_weights(trainer))
    assert torch.equal(*trained)


@pytest.mark.slow
def test_one_process_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second training is refused by the owner's name; what a dead owner left is taken over; metrics.csv has each step once."""
    script = (
        "import sys; from tests.test_training import _with; from pfgm_fast.training import Trainer\n"
        "Trainer(_with(steps=100000, checkpoint_every=1), sys.argv[1]).run(progress=False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).resolve().parent.parent
    )
    try:
        while len(read(tmp_path)) < 3:
            assert process.poll() is None
        with pytest.raises(CheckpointError, match=f"is being trained by process {process.pid} on "):
            Trainer(SMALL, tmp_path).run(progress=False)
        assert _train("--out", tmp_path) == 2
        assert f"process {process.pid}" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / NAME).exists()
    reached = checkpoints.latest(tmp_path).step
    Trainer(_with(steps=reached + 2), tmp_path).run(progress=False)
    steps = [int(row["step"]) for row in read(tmp_path)]
    assert steps == list(range(1, reached + 3))
    assert not (tmp_path / NAME).exists()


def test_another_machines_lock_is_left_alone_until_it_is_old(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, tmp_path)
    lock = tmp_path / NAME
    lock.write_text(json.dumps({"pid": 1, "host": "another", "since": "yesterday"}))
    with pytest.raises(CheckpointError, match=r"process 1 on another .*remove"):
        trainer.run(until=1, progress=False)
    os.utime(lock, (0, lock.stat().st_mtime - STALE - 60))
    trainer.run(until=1, progress=False)
    assert checkpoints.latest(tmp_path).step == 1


def test_a_trainer_that_was_overtaken_does_not_write(tmp_path: Path) -> None:
    late = Trainer(SMALL, tmp_path)
    Trainer(SMALL, tmp_path).run(until=4, progress=False)
    with pytest.raises(CheckpointError, match="trained on to step 4 by another process"):
        late.run(until=2, progress=False)


def test_data_alone_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Network, classes and method follow from the data; class names and numbered pictures on sampling."""
    _arrays(tmp_path / "own.npz", 0, labels=True)
    assert _train("--data", tmp_path / "own.npz", "--out", tmp_path / "run", *TINY) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("data ", "labels ", "network ", "method ", "backend "))
    config = RunConfig.load(tmp_path / "run")
    assert (config.network.image_size, config.network.classes, config.train.conditional) == (8, 3, True)
    config = dataclasses.replace(
        config, dataset=dataclasses.replace(config.dataset, classes=("cat", "dog", "fox"))
    )
    config.save(tmp_path / "run")
    folder = tmp_path / "drawn"
    common = [
        "sample",
        str(tmp_path / "run"),
        "--steps",
        "2",
        "--count",
        "3",
        "--seed",
        "5",
        "--images",
        str(folder),
    ]
    assert main([*common, "--labels", "fox,0"]) == 0
    assert sorted(p.name for p in folder.iterdir()) == [f"seed5-{i:06d}.png" for i in range(3)]
    assert main([*common, "--labels", "wolf"]) == 2
    assert "cat, dog, fox" in capsys.readouterr().err


def test_steps_of_a_float_config_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="steps must be an integer"):
        TrainConfig(steps=2.5)  # type: ignore[arg-type]
