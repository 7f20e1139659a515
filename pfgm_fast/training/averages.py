"""The averages of a run's weights: by decay rate (PFGM, score-SDE) or by half-life in images (EDM)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pfgm_fast.nn import EMA
from pfgm_fast.nn.average import WeightAverage
from pfgm_fast.training.config import TrainConfig


class RateAverage(WeightAverage):
    """By a decay rate that is approached: d = min(rate, (1 + n)/(10 + n)) after n updates, 0 at the first."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__(net)
        self.rate, self.updates = rate, 0

    def update(self, net: nn.Module) -> None:
        """Average in the weights after an update."""
        done = self.updates
        self.move(net, min(self.rate, (1 + done) / (10 + done)) if done else 0.0)
        self.updates += 1


class Averages:
    """One module for each of `train.averages`, begun at the network's weights; `self[i].module` is the averaged network."""

    def __init__(self, net: nn.Module, train: TrainConfig) -> None:
        self._batch = train.batch
        self._all: list[RateAverage | EMA]
        if train.ema_half_life:
            self._all = [EMA(net, half_life, train.ema_ramp_up) for half_life in train.ema_half_life]
        else:
            self._all = [RateAverage(net, rate) for rate in train.ema]

    def __iter__(self) -> Iterator[RateAverage | EMA]:
        return iter(self._all)

    def __getitem__(self, which: int) -> RateAverage | EMA:
        return self._all[which]

    def update(self, net: nn.Module) -> None:
        """Average in the weights after an update."""
        for average in self._all:
            if isinstance(average, EMA):
                average.update(net, self._batch)
            else:
                average.update(net)

    def resume(self, step: int) -> None:
        """So many updates have been averaged in."""
        for average in self._all:
            if isinstance(average, EMA):
                average.seen = step * self._batch
            else:
                average.updates = step
