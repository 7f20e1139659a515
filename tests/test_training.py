"""Training: it learns, resumes to the bit, survives being killed, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pfgm_fast.data import load
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.nn import UNetConfig
from pfgm_fast.training import RunConfig, TrainConfig, Trainer, load_network
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.log import read

SMALL = RunConfig(
    "digits",
    network=UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.1),
    train=TrainConfig(
        steps=12,
        batch=16,
        lr=1e-3,
        warmup=4,
        decay=0.5,
        ema=(0.9, 0.5),
        flip=False,
        log_every=1,
        sample_every=0,
        checkpoint_every=4,
    ),
)


def _with(**changes: object) -> RunConfig:
    return dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, **changes))


def _losses(folder: Path) -> list[str]:
    return [row["loss"] for row in read(folder)]


def _weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.net.parameters()])


def test_it_learns() -> None:
    """On 64 digits the loss of the last tenth is well under that of the first."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config = _with(steps=80, lr=3e-3, batch=32, checkpoint_every=1000)
        trainer = Trainer(config, folder, images=load("digits").select(torch.arange(64)))
        trainer.run(progress=False)
        losses = [float(x) for x in _losses(Path(folder))]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


def test_resume_is_to_the_bit(tmp_path: Path) -> None:
    whole = Trainer(SMALL, tmp_path / "whole")
    whole.run(progress=False)
    Trainer(SMALL, tmp_path / "parts").run(until=5, progress=False)
    torch.manual_seed(99)  # whatever happened in between
    resumed = Trainer(SMALL, tmp_path / "parts")
    assert resumed.step == 5
    resumed.run(progress=False)
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")
    assert torch.equal(_weights(whole), _weights(resumed))
    for mine, theirs in zip(whole.averages, resumed.averages, strict=True):
        pairs = zip(mine.module.parameters(), theirs.module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_average_is_the_recursion_it_says(tmp_path: Path) -> None:
    trainer = Trainer(_with(ema=(0.6,)), tmp_path)
    name, parameter = next(iter(trainer.net.named_parameters()))
    expected = parameter.detach().clone()
    for done in range(6):
        trainer._update()
        rate = min(0.6, (1 + done) / (10 + done))
        expected = (
            parameter.detach().clone() if done == 0 else torch.lerp(expected, parameter.detach(), 1 - rate)
        )
    torch.testing.assert_close(dict(trainer.averages[0].module.named_parameters())[name], expected)


def test_accumulation_gives_the_same_gradient(tmp_path: Path) -> None:
    """Halves of a batch, summed: the loss of the same queries, were the noise the same; here its scale is compared."""
    runs = [Trainer(_with(accumulate=a, batch=64), tmp_path / str(a)) for a in (1, 4)]
    losses = [float(torch.stack([run._update()[0] for _ in range(5)]).mean()) for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=0.25)


def test_conditional_flipped_bfloat16_and_few_charges(tmp_path: Path) -> None:
    config = _with(conditional=True, flip=True, precision="bfloat16", field_charges=128, steps=2)
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, classes=10))
    trainer = Trainer(config, tmp_path)
    assert len(trainer.charges) == 2 * 1797
    trainer.run(progress=False)
    net, _, loaded = load_network(tmp_path)
    assert loaded.train.conditional
    assert net.classes is not None


def test_sample_grids_and_other_averages(tmp_path: Path) -> None:
    Trainer(_with(steps=2, sample_every=2), tmp_path).run(progress=False)
    assert (tmp_path / "samples" / "step-0000002.png").stat().st_size > 500
    nets = [load_network(tmp_path, ema)[0] for ema in (0, 1, None)]
    heads = [next(net.parameters()) for net in nets]
    assert not torch.equal(heads[0], heads[2])
    with pytest.raises(ArgumentError, match="ema must be in"):
        load_network(tmp_path, 2)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL at several moments, also while checkpoints are written; the next start goes on from a whole one."""
    script = (
        "import sys; from tests.test_training import _with; from pfgm_fast.training import Trainer\n"
        "import torch; torch.set_num_threads(1)\n"
        "Trainer(_with(steps=100000, checkpoint_every=1), sys.argv[1]).run(progress=False)\n"
    )
    root = Path(__file__).resolve().parent.parent
    reached = 0
    for delay in (0.35, 0.51, 0.78):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=root)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(read(tmp_path)) < reached + 2:
            time.sleep(0.05)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = checkpoints.latest(tmp_path)
        assert saved is not None
        assert saved.step > reached
        reached = saved.step
    resumed = Trainer(_with(steps=reached + 2, checkpoint_every=1), tmp_path)
    assert resumed.step == reached


def test_sigterm_checkpoints(tmp_path: Path) -> None:
    trainer = Trainer(_with(steps=10_000, checkpoint_every=10_000), tmp_path)
    update, calls = trainer._update, []

    def third_update_is_interrupted():
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return update()

    trainer._update = third_update_is_interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        trainer.run(progress=False)
    assert checkpoints.latest(tmp_path).step == 3


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(SMALL, tmp_path)
    trainer.run(until=4, progress=False)

    def full(tensors, path):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        CheckpointError,
        match=r"step 8 could not be written.*No space left.*earlier checkpoints are untouched",
    ):
        trainer.run(progress=False)
    assert [p.name for p in checkpoints.folder_of(tmp_path).iterdir() if "partial" in p.name] == []
    assert checkpoints.latest(tmp_path).step == 4


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    Trainer(SMALL, tmp_path).run(progress=False)
    older, newest = checkpoints.available(tmp_path)
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.load(newest)
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpoints.latest(tmp_path).step == int(older.stem.split("-")[1])
    older.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"), pytest.warns(UserWarning):
        checkpoints.latest(tmp_path)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    Trainer(_with(checkpoint_every=1, keep=3, steps=6), tmp_path).run(progress=False)
    assert [p.stem for p in checkpoints.available(tmp_path)] == [f"step-{i:07d}" for i in (4, 5, 6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-3}, "holds a run with lr = 0.001, not 0.002"),
        ({"batch": 32}, "holds a run with batch = 16"),
    ],
)
def test_a_folder_keeps_its_run(tmp_path: Path, change: dict, message: str) -> None:
    Trainer(SMALL, tmp_path).run(until=1, progress=False)
    with pytest.raises(CheckpointError, match=message):
        Trainer(_with(**change), tmp_path)
    Trainer(_with(steps=20, keep=5), tmp_path)  # these may change


def test_config_round_trip_and_foreign_files(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    assert RunConfig.load(tmp_path) == SMALL
    for text, message in (
        ("{", "not readable JSON"),
        ('{"model": 1}', "another program or version"),
        (json.dumps({**SMALL.to_dict(), "colour": 1}), "unknown setting 'colour'"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            RunConfig.load(tmp_path)
    with pytest.raises(CheckpointError, match="is not a run of pfgm_fast"):
        RunConfig.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        SMALL.save(tmp_path)
        load_network(tmp_path)
