"""Losses and gradients that are not finite: what leaves them out on the device, and what ends the training on the host."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

from pfgm_fast.errors import NonFiniteError

LOOK_EVERY = 50
"""Updates after which the host looks at the latest, at most; on a CPU, where looking is free, after each."""


class Watch:
    """Keeps the losses and norms of updates on the device until `look`: no update waits for the host.

    Bad updates have been left out by then (`bad` tells Adam so, on the device), so it is not too late. allowed: how many in a row.
    """

    def __init__(self, folder: Path, allowed: int) -> None:
        self.folder, self.allowed = folder, allowed
        self._pending: list[tuple[int, float, Tensor, Tensor]] = []
        self._in_a_row = 0
        self._losses: list[float] = []
        self._norm = math.nan

    @staticmethod
    def bad(loss: Tensor, norm: Tensor) -> Tensor:
        """() float32 on the device: 1 where the loss or the gradient's norm is not finite, else 0; a fused Adam's `found_inf`."""
        return (~torch.isfinite(loss + norm)).to(torch.float32)

    def add(self, update: int, rate: float, loss: Tensor, norm: Tensor) -> None:
        """An update's number, learning rate, loss () and gradient norm ()."""
        self._pending.append((update, rate, loss, norm))

    @property
    def due(self) -> bool:
        """Whether the host should look now."""
        return len(self._pending) >= LOOK_EVERY or (
            bool(self._pending) and self._pending[0][2].device.type == "cpu"
        )

    def look(self, last_good: int | None) -> None:
        """Bring what is pending to the host. last_good: step of the newest checkpoint, for the message.

        Warns of each update that was left out. Raises: NonFiniteError where more than `allowed` in a row were.
        """
        if not self._pending:
            return
        numbers = torch.stack(
            [torch.stack([loss.float(), norm.float()]) for *_, loss, norm in self._pending]
        ).tolist()
        pending, self._pending = self._pending, []
        for (update, rate, *_), (loss, norm) in zip(pending, numbers, strict=True):
            if math.isfinite(loss) and math.isfinite(norm):
                self._in_a_row = 0
                self._losses.append(loss)
                self._norm = norm
                continue
            self._in_a_row += 1
            what = f"update {update}: the loss is {loss:.6g}, the gradient's norm {norm:.6g}, lr {rate:.3g}"
            if self._in_a_row > self.allowed:
                raise NonFiniteError(self._verdict(what, last_good))
            warnings.warn(f"{what}; left out ({self._in_a_row} of {self.allowed} in a row)", stacklevel=3)

    def take(self) -> tuple[float, float] | None:
        """(mean loss since the last time, latest gradient norm) of the updates that count; None where there are none."""
        losses, self._losses = self._losses, []
        return (sum(losses) / len(losses), self._norm) if losses else None

    def _verdict(self, what: str, last_good: int | None) -> str:
        kept = (
            f"the checkpoint of step {last_good} stays"
            if last_good is not None
            else "there is no checkpoint yet"
        )
        return (
            f"{what}: training in {self.folder} stops, {kept}. Begin another run with a smaller train.lr (or train.clip, or "
            "precision=float32); or go on and leave up to N such updates in a row out: --set train.skip_nonfinite=N "
            f"(now {self.allowed})"
        )


def duration(seconds: float) -> str:
    """ "41 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
