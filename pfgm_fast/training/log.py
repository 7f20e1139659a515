"""metrics.csv of a run, and whatever else logs it (`training.loggers`)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfgm_fast.files import write_beside
from pfgm_fast.training.loggers import Logger

COLUMNS = ("step", "loss", "gradient_norm", "lr", "images_per_second", "seconds")
OPTIMAL = ("optimal_loss", "left_to_learn")
"""Of runs that measure them (`training.optimal`); empty in rows since whose last nothing was measured."""


class MetricsLog:
    """Rows of numbers, one an update that is logged; rows beyond `step` (of a run that was killed later) are dropped.

    optimal: with the columns OPTIMAL, which a run that goes on keeps once it has them.
    """

    def __init__(self, run: Path, step: int, loggers: Sequence[Logger] = (), optimal: bool = False) -> None:
        self.run, self.path = run, run / "metrics.csv"
        self._kept = [row for row in read(run) if int(row["step"]) <= step]
        has = any(OPTIMAL[0] in row for row in self._kept)
        self.columns = (*COLUMNS, *OPTIMAL) if optimal or has else COLUMNS
        self.seconds = float(self._kept[-1]["seconds"]) if self._kept else 0.0
        self._loggers, self._open = loggers, False

    def begin(self) -> None:
        """Write the file anew, with the rows that stay. Before that nothing is written."""
        lines = [
            ",".join(self.columns),
            *(",".join(row.get(c) or "" for c in self.columns) for row in self._kept),
        ]
        write_beside(self.path, ("\n".join(lines) + "\n").encode())
        self._open = True
        for logger in self._loggers:
            logger.begin()

    def add(self, row: dict[str, Any]) -> None:
        """A row: a value for each of COLUMNS, and of OPTIMAL where they were measured."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([_short(row.get(c, "")) for c in self.columns])
        for logger in self._loggers:
            logger.scalars({name: float(row[name]) for name in self.columns[1:] if name in row}, row["step"])

    def add_images(self, name: str, grid: Any, step: int) -> None:
        """grid: (H, W, 3) uint8 array."""
        for logger in self._loggers:
            logger.image(name, grid, step)

    def close(self) -> None:
        """Finish what loggers buffer."""
        for logger in self._loggers if self._open else ():
            logger.close()


def _short(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def read(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv; none where it is not there. A last line cut short by a kill is left out."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row.get(c) for c in COLUMNS) and _sound(row)]


def _sound(row: dict[str, str]) -> bool:
    try:
        return int(row["step"]) > 0 and float(row["seconds"]) >= 0
    except ValueError:
        return False


def loss_picture(run: Path, path: Path) -> None:
    """The run's loss curve as a PNG, with what is left to learn where it was measured. Raises: MissingPackageError without matplotlib."""
    from pfgm_fast.plots import loss_curve

    rows = read(run)
    measured = [
        (float(row["step"]), float(row[OPTIMAL[0]]), float(row[OPTIMAL[1]]))
        for row in rows
        if row.get(OPTIMAL[1])
    ]
    loss_curve([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], path, measured)
