"""A run that is killed, interrupted, or whose disk is full or damaged goes on from its last whole checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pfgm_fast.errors import CheckpointError
from pfgm_fast.training import Trainer
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.log import read
from tests.test_training import SMALL, _losses, _weights, _with

pytestmark = pytest.mark.usefixtures("signals_as_usual")


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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums in the order of the process that was killed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(SMALL, tmp_path_factory.mktemp("whole"))
    with one_thread():
        trainer.run(progress=False)
    return trainer


MOMENTS = {
    "half of the tensors are written": "save_file",
    "tensors are there, their description is not": "write_beside",
    "a description is half written": "os.fsync",
}


@pytest.mark.slow
@pytest.mark.parametrize("where", MOMENTS.values(), ids=MOMENTS.keys())
def test_killed_while_a_checkpoint_is_written(tmp_path: Path, never_stopped: Trainer, where: str) -> None:
    """The process stops for good inside the write of its third checkpoint and is killed there; the second one is whole, and the run
    goes on from it to the very numbers of a run that was never stopped."""
    script = f"""
import os, pathlib, sys, time
from tests.test_training import SMALL
from pfgm_fast import files
from pfgm_fast.training import Trainer, checkpoint
import torch; torch.set_num_threads(1)
calls = []
def hang(path):
    pathlib.Path(sys.argv[1], "inside").touch()
    time.sleep(600)
def save_file(tensors, path, real=checkpoint.save_file):
    calls.append(path)
    if len(calls) == 3:
        real(tensors, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        hang(path)
    real(tensors, path)
def write_beside(path, content, real=checkpoint.write_beside):
    calls.append(path)
    hang(path) if len(calls) == 3 else real(path, content)
def fsync(descriptor, real=os.fsync):
    name = os.readlink(f"/proc/self/fd/{{descriptor}}")
    if "step-0000012.json" in name:
        os.truncate(name, 20)
        hang(name)
    real(descriptor)
where = {where!r}
if where == "os.fsync":
    files.os.fsync = fsync
else:
    setattr(checkpoint, where, locals()[where])
Trainer(SMALL, sys.argv[1]).run(progress=False)
"""
    run = tmp_path / "run"
    run.mkdir()
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-c", script, str(run)], cwd=root)
    deadline = time.monotonic() + 120
    while not (run / "inside").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = Trainer(SMALL, run)
    assert resumed.step == 8
    with one_thread():
        resumed.run(progress=False)
    assert torch.equal(_weights(resumed), _weights(never_stopped))
    assert _losses(run) == _losses(never_stopped.folder)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_checkpoint(tmp_path: Path, name: str) -> None:
    trainer = Trainer(_with(steps=10_000, checkpoint_every=10_000), tmp_path)
    update, calls = trainer._update, []

    def third_update_is_interrupted():
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), getattr(signal, name))
        return update()

    trainer._update = third_update_is_interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        trainer.run(progress=False)
    assert checkpoints.latest(tmp_path).step == 3


def test_nohup_is_respected(tmp_path: Path) -> None:
    """SIGHUP that was ignored at the start stays ignored, and is so afterwards."""
    trainer = Trainer(_with(steps=3), tmp_path)
    update = trainer._update

    def with_hangup():
        os.kill(os.getpid(), signal.SIGHUP)
        return update()

    trainer._update = with_hangup  # type: ignore[method-assign]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer.run(progress=False)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert trainer.step == 3


@pytest.mark.slow
def test_a_storm_of_kills_loses_no_checkpoint(tmp_path: Path) -> None:
    """Trainings that checkpoint after each update are ended at random moments by SIGKILL, SIGTERM, SIGHUP and full disks; after each the
    newest checkpoint that was there, or a newer one, is whole. PFGM_FAST_KILLS: how many (8 here; 50 by hand)."""
    kills = os.environ.get("PFGM_FAST_KILLS", "8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.storm", str(tmp_path), kills, "0"],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} ends" in done.stdout


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
