"""Times on a GPU: CUDA events, alternatives interleaved, percentiles; on a CPU a clock, for rehearsals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

Function = Callable[[], Any]


@dataclass(frozen=True)
class Measured:
    """Seconds of one call: median, 20th and 80th percentile over the rounds; each round's value for ratios."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]


def measure(
    functions: Mapping[str, Function], device: torch.device, rounds: int = 15, budget: float = 0.8
) -> dict[str, Measured]:
    """Time each function in each round, in turn. `budget`: seconds that one function gets over all rounds, about (a rehearsal
    on a CPU calls each once a round)."""
    calls = {}
    for name, function in functions.items():
        for _ in range(2):
            function()  # modules load, kernels compile, libraries choose
        most = 200 if device.type == "cuda" else 1
        calls[name] = max(1, min(most, int(budget / rounds / max(_round(function, 1, device), 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_round(function, calls[name], device))
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Measured:
    fifths = quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    return Measured(median(values), fifths[0], fifths[3], tuple(values))


def _round(function: Function, calls: int, device: torch.device) -> float:
    """Seconds a call, from the device's own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - began) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def ratio(of: Measured, to: Measured) -> float:
    """Median over the rounds of `of`'s time over `to`'s: how many times faster `to` is."""
    return median(a / b for a, b in zip(of.rounds, to.rounds, strict=True))


def graphed(function: Function, device: torch.device) -> Function | None:
    """The function as a CUDA graph's replay, without the launches' gaps; None where there is no CUDA."""
    if device.type != "cuda":
        return None
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
