"""Where the benchmarks' rows are gathered, and the table at the end of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks import report

_ROWS = pytest.StashKey[list[report.Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []
    _same_processors()


def _same_processors() -> None:
    """As many processors as PyTorch has threads, for all: JAX's own pool would take the others beside it."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: torch.get_num_threads()])


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[report.Row]:
    """Measurements go here (and into pytest-benchmark's extra_info); the report is made of them."""
    return request.config.stash[_ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[_ROWS]
    if found:
        folder = Path(os.environ.get("PFGM_FAST_BENCH_OUT", "out/bench"))
        terminalreporter.write_line("\n" + report.write(folder, found))
        terminalreporter.write_line(f"{folder}/cpu.md, {folder}/cpu.jsonl")
