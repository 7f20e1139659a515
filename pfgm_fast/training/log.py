"""metrics.csv of a run, and TensorBoard where it is asked for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pfgm_fast.errors import ArgumentError
from pfgm_fast.training.files import write_beside


class MetricsLog:
    """Rows of numbers, one an update that is logged; rows beyond `step` (of a run that was killed later) are dropped."""

    columns = ("step", "loss", "gradient_norm", "lr", "images_per_second", "seconds")

    def __init__(self, run: Path, step: int, tensorboard: bool = False) -> None:
        self.path = run / "metrics.csv"
        kept = [row for row in read(run) if int(row["step"]) <= step]
        lines = [",".join(self.columns), *(",".join(row[c] for c in self.columns) for row in kept)]
        write_beside(self.path, ("\n".join(lines) + "\n").encode())
        self.seconds = float(kept[-1]["seconds"]) if kept else 0.0
        self._board = _board(run) if tensorboard else None

    def add(self, row: dict[str, Any]) -> None:
        """A row: a value for each of `columns`."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([_short(row[c]) for c in self.columns])
        if self._board is not None:
            for name in self.columns[1:]:
                self._board.add_scalar(name, row[name], row["step"])

    def add_images(self, name: str, grid: Any, step: int) -> None:
        """grid: (H, W, 3) uint8 array."""
        if self._board is not None:
            self._board.add_image(name, grid, step, dataformats="HWC")

    def close(self) -> None:
        """Finish what TensorBoard buffers."""
        if self._board is not None:
            self._board.close()


def _short(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _board(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ArgumentError(
            "tensorboard=True needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter(str(run / "tensorboard"))


def read(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv; none where it is not there. A last line cut short by a kill is left out."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row.get(c) for c in MetricsLog.columns)]
