"""Ranks for tests: `python -m tests.forked RANKS MODULE FOLDER` imports once, then forks RANKS processes, a gloo group, that call
MODULE.main(folder). Importing PyTorch takes seconds, forking does not. Exit status: the number of ranks that failed."""

from __future__ import annotations

import datetime
import importlib
import multiprocessing
import subprocess
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent


def _rank(rank: int, size: int, module: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60)
    )
    try:
        importlib.import_module(module).main(folder)
    except BaseException:
        sys.stderr.write(f"rank {rank}\n{traceback.format_exc()}")
        sys.stderr.flush()
        raise SystemExit(1) from None
    dist.destroy_process_group()


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
    processes = [context.Process(target=_rank, args=(k, count, name, place)) for k in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    raise SystemExit(sum(process.exitcode != 0 for process in processes))
