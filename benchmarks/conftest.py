"""Where the benchmarks' rows are gathered, and the table at the end of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import report

_ROWS = pytest.StashKey[list[report.Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


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
