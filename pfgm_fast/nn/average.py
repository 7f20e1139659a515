"""Moving averages of a network's weights, and EMA: by half-life, with a ramp-up (EDM, arXiv 2206.00364, appendix F.2)."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from pfgm_fast import checks


def ema_decay(batch: int, seen: int, half_life: float, ramp_up: float | None = 0.05) -> float:
    """d in average ← d·average + (1 − d)·weights after an update of `batch` images: ½^(batch/half-life).

    seen: images before this update. half_life: in images (EDM: 500,000). ramp_up: the half-life is at most this share of the images seen,
    so that the first weights are soon forgotten and d is 0 at the first update; None: the full half-life from the start.
    """
    if ramp_up is not None:
        half_life = min(half_life, ramp_up * seen)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


class WeightAverage(nn.Module):
    """A copy of a network, `module`, that moves towards the network's weights. Buffers are copied, not averaged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def move(self, net: nn.Module, decay: float) -> None:
        """average ← decay · average + (1 − decay) · weights, decay in [0, 1]; nothing waits for the device."""
        mine, theirs = ([p.data for p in m.parameters()] for m in (self.module, net))
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for mine_buffer, buffer in zip(self.module.buffers(), net.buffers(), strict=True):
            mine_buffer.copy_(buffer)


class EMA(WeightAverage):
    """`ema.update(net, batch)` after every update; `ema.module` is the averaged network.

    net: as it begins; it is copied. half_life: in images, > 0. ramp_up: > 0 or None, as in `ema_decay`. `seen` counts images, and is part of
    the state dict. Raises: ArgumentError for other values.
    """

    def __init__(self, net: nn.Module, half_life: float = 500_000, ramp_up: float | None = 0.05) -> None:
        super().__init__(net)
        self.half_life = math.inf if half_life == math.inf else checks.positive("half_life", half_life)
        self.ramp_up = None if ramp_up is None else checks.positive("ramp_up", ramp_up)
        self.seen = 0  # the host's: a buffer would follow the module to a device, and each update wait for it

    def update(self, net: nn.Module, batch: int) -> float:
        """Average in the weights after an update of `batch` images; the decay that was used."""
        decay = ema_decay(batch, self.seen, self.half_life, self.ramp_up)
        self.move(net, decay)
        self.seen += batch
        return decay

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.seen, device="cpu")

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.seen = int(state)
