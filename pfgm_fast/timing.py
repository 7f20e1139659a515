"""Times that can be compared: alternatives interleaved in one run, and medians of the ratios."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """seconds: median of a call. ratio: median over the rounds of this one's time over the first one's of the same round."""

    seconds: float
    ratio: float


def _once(function: Callable[[], Any], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def interleaved(
    functions: Mapping[str, Callable[[], Any]], rounds: int = 7, least: float = 0.02
) -> dict[str, Timing]:
    """Time each function in every round, in turn, each for at least `least` seconds. The first is what ratios refer to."""
    calls = {}
    for name, function in functions.items():
        function()  # caches and pages are warm, lazily built things are built
        calls[name] = max(1, int(least / max(_once(function, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_once(function, calls[name]))
    first = next(iter(times.values()))
    return {
        name: Timing(median(ts), median(t / f for t, f in zip(ts, first, strict=True)))
        for name, ts in times.items()
    }


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def processor() -> str:
    """The name of this machine's processor, as the system gives it."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line]
    return names[0] if names else platform.processor() or platform.machine()
