"""The averages of a run's weights: by decay rate (PFGM, score-SDE) or by half-life in images (EDM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pfgm_fast.nn import EMA
from pfgm_fast.training.config import TrainConfig


class Averages:
    """One module for each of `train.averages`, begun at the network's weights; `self[i].module` is the averaged network."""

    def __init__(self, net: nn.Module, train: TrainConfig) -> None:
        self._batch = train.batch
        self._all: list[AveragedModel | EMA]
        if train.ema_half_life:
            self._all = [EMA(net, half_life, train.ema_ramp_up) for half_life in train.ema_half_life]
        else:
            self._all = [AveragedModel(net, multi_avg_fn=_rate(rate)) for rate in train.ema]

    def __iter__(self) -> Any:
        return iter(self._all)

    def __getitem__(self, which: int) -> nn.Module:
        return self._all[which]

    def update(self, net: nn.Module) -> None:
        """Average in the weights after an update."""
        for average in self._all:
            if isinstance(average, EMA):
                average.update(net, self._batch)
            else:
                average.update_parameters(net)

    def resume(self, step: int) -> None:
        """So many updates have been averaged in."""
        for average in self._all:
            if isinstance(average, EMA):
                average.seen.fill_(step * self._batch)
            else:
                average.n_averaged.fill_(step)


def _rate(rate: float) -> Callable[..., None]:
    """AveragedModel's hook: average ← d·average + (1 − d)·weights with d = min(rate, (1 + n)/(10 + n))."""

    @torch.no_grad()
    def average(averages: Any, weights: Any, count: Tensor | int) -> None:
        done = int(count)
        torch._foreach_lerp_(averages, weights, 1 - min(rate, (1 + done) / (10 + done)))

    return average
