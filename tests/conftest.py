"""Shared fixtures: where the optional data lies, and threads that do not fight with each other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.triton_tools import pytest_pyfunc_call  # noqa: F401 - a hook, found by its name

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PFGM_FAST_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and fixtures; skips with a reason where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED} (set PFGM_FAST_SHARED)")
    return SHARED


@pytest.fixture
def signals_as_usual() -> Iterator[None]:
    """Under nohup, or behind a shell's &, a process starts with signals ignored, as trainings respect and their children inherit."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
