"""Trains in forked processes that are ended at random moments, and checks after each what is left. Run as a process of its own:
python -m tests.storm FOLDER ROUNDS SEED; prints what happened, exits with 1 and a sentence where a checkpoint was lost."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from pfgm_fast.errors import CheckpointError
from pfgm_fast.training import Trainer
from pfgm_fast.training import checkpoint as checkpoints
from tests.test_training import _with

WAYS = ("SIGKILL", "SIGTERM", "SIGHUP", "full disk")


def train(folder: Path, limit: int | None) -> int:
    """In the child: checkpoint after each update until something ends it. limit: largest file, where the disk is to be full."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Trainer(_with(steps=10**6, checkpoint_every=1, log_every=1), folder).run(progress=False)
    except KeyboardInterrupt:
        return 130
    except (CheckpointError, OSError) as error:
        print(f"  {type(error).__name__}: {str(error)[:110]}", flush=True)
        return 2
    return 0


def steps(folder: Path) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.available(folder)]


def lost(folder: Path, before: list[int]) -> str | None:
    """What is wrong after a process ended; before: checkpoints that were seen shortly before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged checkpoint that is passed over is a loss too
        try:
            found = checkpoints.latest(folder)
        except (CheckpointError, UserWarning) as error:
            return str(error)
    if found is None:
        return f"no checkpoint is left of {before}" if before else None
    if before and found.step < before[-1]:
        return f"the newest is of step {found.step}, before it was {before[-1]}"
    return None


def main(folder: Path, rounds: int, seed: int) -> int:
    torch.set_num_threads(1)
    Trainer(_with(checkpoint_every=1), folder / "warm").run(
        until=2, progress=False
    )  # everything is imported and set up
    size = checkpoints.available(folder / "warm")[-1].stat().st_size
    chance, run, endings = random.Random(seed), folder / "run", Counter()
    for number in range(rounds):
        way = WAYS[number % len(WAYS)]
        limit = chance.randrange(size + 1) if way == "full disk" else None
        goal = (steps(run) or [0])[-1] + chance.randrange(3)
        child = os.fork()
        if not child:
            os._exit(train(run, limit))
        deadline = time.monotonic() + 60
        while way != "full disk" and (steps(run) or [-1])[-1] < goal and time.monotonic() < deadline:
            time.sleep(0.002)
        before = steps(run)
        if way != "full disk":
            time.sleep(chance.random() * 0.08)
            before = steps(run)
            os.kill(child, getattr(signal, way))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        endings[f"{way}: exit {status}"] += 1
        wrong = lost(run, before)
        if wrong is not None:
            print(f"round {number}, {way}: {wrong}")
            return 1
    print(f"{rounds} ends, step {steps(run)[-1]} reached, nothing lost:", dict(endings))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
