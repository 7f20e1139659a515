"""The processes that `torchrun … -m pfgm_fast` starts: which of them this is, what each does, who writes.

Outside torchrun, and with one process, everything is as ever: `World()` is alone.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pfgm_fast.errors import ArgumentError, PfgmError, RankError
from pfgm_fast.ranks import even, starts

T = TypeVar("T")
PATIENCE = "PFGM_FAST_RANK_TIMEOUT"
"""Environment variable: seconds that a rank waits for another in one collective, 600 by default."""
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "peer", "broken pipe", "store")


@dataclass(frozen=True)
class World:
    """rank: of this process, 0 ≤ rank < size. The writer, rank 0, alone writes files and the figures on the screen."""

    rank: int = 0
    size: int = 1

    @property
    def writer(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's part of `count` rows: in the ranks' order, sizes that differ by one at most."""
        first = starts(even(count, self.size))
        return slice(first[self.rank], first[self.rank + 1])

    def objects(self, value: T) -> list[T]:
        """Every rank's small value, in the ranks' order, on every rank. A collective."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def spread(self, count: int, work: Callable[[int], T]) -> list[T] | None:
        """work(k) for k = 0 … count − 1, each on one rank, in turn: the results in order on the writer, None on the others."""
        mine = [work(k) for k in range(self.rank, count, self.size)]
        if self.size == 1:
            return mine
        if not self.writer:
            for result in mine:
                dist.send_object_list([result], 0, device=torch.device("cpu"))
            return None
        results = []
        for k in range(count):
            received = [mine[k // self.size] if k % self.size == 0 else None]
            if k % self.size:
                dist.recv_object_list(received, k % self.size, device=torch.device("cpu"))
            results.append(received[0])
        return results  # type: ignore[return-value]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def world() -> World:
    """The default process group of torch.distributed, where there is one."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def launched() -> World:
    """What torchrun told this process, before the group is joined."""
    try:
        return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except (KeyError, ValueError):
        return World()


def local_rank() -> int:
    """Number of this process on its machine: its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Torchrun's process group within: gloo, and NCCL beside it where the device is a GPU (not tried with several).

    Raises: RankError where another process has gone, within PATIENCE; an error of this rank's own as it is.
    """
    if launched().size == 1 or dist.is_initialized():
        yield world()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with lost_ranks("nothing more is written"):
            wait = datetime.timedelta(seconds=_patience())
            store, rank, size = next(dist.rendezvous("env://", timeout=wait))
            # torchrun keeps its store over a restart: addresses of processes that are no more must not be found
            attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=wait)
            dist.barrier()  # who fails at once must not be looked for by the others
            yield world()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _patience() -> float:
    text = os.environ.get(PATIENCE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ArgumentError(f"{PATIENCE} must be a number of seconds > 0; got {text!r}")
    return seconds


@contextlib.contextmanager
def lost_ranks(what: str) -> Iterator[None]:
    """A collective's error within becomes a RankError: `what` says what is lost, and what stays."""
    try:
        yield
    except RuntimeError as error:
        said, here = str(error).lower(), max(world(), launched(), key=lambda known: known.size)
        if isinstance(error, PfgmError) or not any(word in said for word in _LOST) or here.size == 1:
            raise
        first = " ".join(str(error).split())[:200]
        raise RankError(f"rank {here.rank} of {here.size} lost another rank ({first}); {what}") from error
