"""Several processes do what one does: charges spread over ranks, training and sampling under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.training.checkpoint import available, step_of
from pfgm_fast.training.log import read
from tests import forked


@pytest.mark.slow
def test_charges_on_ranks_equal_one_process(tmp_path):
    """1, 2, 3 and 4 ranks, every hard case and operator: tests/ranks_field.py."""
    done = forked.run(4, "tests.ranks_field", tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
def test_training_and_sampling_on_ranks_equal_one_process(tmp_path):
    """1, 2, 3 and 4 ranks: gradients of a step, losses, resumption on other numbers, a killed rank, the commands: tests/ranks_training.py."""
    (tmp_path / "ports.json").write_text(json.dumps(forked.free_ports(8)))
    done = forked.run(4, "tests.ranks_training", tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the rank's process in /proc")
def test_torchrun_restarts_after_a_kill(tmp_path):
    """torchrun --max-restarts: a rank is killed, the others say so, all start again and go on from the last checkpoint."""
    run = tmp_path / "run"
    settings = ("steps=60", "batch=8", "checkpoint_every=5", "sample_every=0", "log_every=1")
    network = ("width=8", "blocks=1", "multipliers=1", "attention=4")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "--master-port",
        str(forked.free_ports(1)[0]), "-m", "pfgm_fast", "train", "--data", "digits", "--out", str(run)]  # fmt: skip
    command += [f"--set=train.{s}" for s in settings] + [f"--set=network.{s}" for s in network]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=forked.ROOT)
        try:
            _wait_for(lambda: len(available(run)) > 0, process)
            os.kill(_rank_of(process.pid, 1), signal.SIGKILL)
            assert process.wait(120) == 0, (tmp_path / "said").read_text()[-4000:]
        finally:
            process.kill()
    text = (tmp_path / "said").read_text()
    assert "lost another rank" in text and "goes on from it" in text
    assert "going on from step" in text
    assert step_of(available(run)[-1]) == 60
    assert [int(row["step"]) for row in read(run)] == list(range(1, 61))


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not ready():
        assert process.poll() is None, "it ended before"
        time.sleep(0.01)


def _rank_of(parent: int, rank: int) -> int:
    """The process of a rank that torchrun started."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"\0LOCAL_RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no rank {rank}")


def test_without_a_process_group():
    with pytest.raises(pf.ArgumentError, match="torchrun"):
        pf.Charges(torch.zeros(3, 2)).shard()
