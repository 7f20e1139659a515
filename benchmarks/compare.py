"""One interleaved comparison inside pytest-benchmark: its fixture times ours; before each of its rounds every peer runs once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Function = Callable[[], Any]

BAR = 1e-5
"""Largest error of the unit direction with which a time of ours may stand."""


@dataclass(frozen=True)
class Times:
    """Seconds of a function in each round, in the order of the rounds: what ratios are made of."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.rounds)

    def ratio_to(self, other: Times) -> float:
        """How many times longer `other` takes: the median over the rounds, or of the medians where one has fewer rounds."""
        if len(self.rounds) == len(other.rounds):
            return median(b / a for a, b in zip(self.rounds, other.rounds, strict=True))
        return other.median / self.median


def _once(function: Function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(
    benchmark: Any, ours: Function, peers: Mapping[str, Function], seconds: float = 6.0, most: int = 300
) -> dict[str, Times]:
    """Times of "ours" and of each peer. `seconds`: what the rounds together may take, about; at least five, at most `most`.

    A peer that alone would take a fifth of that or more is timed once, before the rounds.
    """
    slow, quick = {}, {}
    for name, function in peers.items():
        first = _once(function)  # pages, caches, compilers
        if first > seconds / 5:
            slow[name] = Times((first,))
        else:
            quick[name] = function
    ours()
    round_ = sum(min(_once(f), _once(f)) for f in (ours, *quick.values()))
    rounds = max(5, min(most, int(seconds / max(round_, 1e-6))))
    taken: dict[str, list[float]] = {name: [] for name in quick}

    def before() -> None:
        for name, function in quick.items():
            taken[name].append(_once(function))

    benchmark.pedantic(ours, setup=before, rounds=rounds, warmup_rounds=1)
    mine = Times(tuple(benchmark.stats.stats.data))
    # the first entry of each peer belongs to the warm-up round
    return {"ours": mine, **{name: Times(tuple(t[-rounds:])) for name, t in taken.items()}, **slow}
