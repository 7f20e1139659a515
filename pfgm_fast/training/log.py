"""metrics.csv of a run, and TensorBoard where it is asked for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pfgm_fast.errors import ArgumentError
from pfgm_fast.files import write_beside


class MetricsLog:
    """Rows of numbers, one an update that is logged; rows beyond `step` (of a run that was killed later) are dropped."""

    columns = ("step", "loss", "gradient_norm", "lr", "images_per_second", "seconds")

    def __init__(self, run: Path, step: int, tensorboard: bool = False) -> None:
        self.run, self.path = run, run / "metrics.csv"
        self._kept = [row for row in read(run) if int(row["step"]) <= step]
        self.seconds = float(self._kept[-1]["seconds"]) if self._kept else 0.0
        self._writer = board() if tensorboard else None
        self._board: Any = None

    def begin(self) -> None:
        """Write the file anew, with the rows that stay. Before that nothing is written."""
        lines = [",".join(self.columns), *(",".join(row[c] for c in self.columns) for row in self._kept)]
        write_beside(self.path, ("\n".join(lines) + "\n").encode())
        self._board = self._writer(str(self.run / "tensorboard")) if self._writer else None

    def add(self, row: dict[str, Any]) -> None:
        """A row: a value for each of `columns`."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
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


def board() -> Any:
    """TensorBoard's writer, a class. Raises: ArgumentError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ArgumentError(
            "tensorboard=True needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter


def read(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv; none where it is not there. A last line cut short by a kill is left out."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row.get(c) for c in MetricsLog.columns) and _sound(row)]


def _sound(row: dict[str, str]) -> bool:
    try:
        return int(row["step"]) > 0 and float(row["seconds"]) >= 0
    except ValueError:
        return False
