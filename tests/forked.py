"""Ranks for tests: `python -m tests.forked RANKS MODULE FOLDER` imports once, then forks RANKS processes that call
MODULE.main(rank, folder). Importing PyTorch takes seconds, forking does not. Exit status: the number of ranks that failed."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def group(folder: Path, name: str, rank: int, size: int) -> Iterator[None]:
    """A gloo group of ranks 0 … size − 1 by a file in the folder; each name once."""
    store = f"file://{folder.resolve()}/store-{name}"  # of a relative path the first folder would be a host
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store, rank=rank, world_size=size, timeout=wait)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def torchrun(rank: int, size: int, port: int) -> Iterator[None]:
    """The environment that torchrun gives a process."""
    given = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({key: str(value) for key, value in given.items()})
    try:
        yield
    finally:
        for key in given:
            del os.environ[key]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _rank(rank: int, module: str, folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        importlib.import_module(module).main(rank, folder)
    except BaseException:
        sys.stderr.write(f"rank {rank}\n{traceback.format_exc()}")
        sys.stderr.flush()
        raise SystemExit(1) from None


def run(ranks: int, module: str, folder: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The ranks' output, when all have ended."""
    return subprocess.run(
        [sys.executable, "-m", "tests.forked", str(ranks), module, str(folder)],
        capture_output=True, text=True, cwd=ROOT, timeout=timeout,
    )  # fmt: skip


if __name__ == "__main__":
    count, name, place = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    importlib.import_module(name)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(k, name, place)) for k in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    raise SystemExit(sum(process.exitcode != 0 for process in processes))
