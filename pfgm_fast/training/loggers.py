"""Where a run's figures and grids go beside metrics.csv: TensorBoard, Weights & Biases, or anything that is a `Logger`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pfgm_fast.extras import wanted

if TYPE_CHECKING:
    from pfgm_fast.training.config import RunConfig


class Logger(Protocol):
    """Begun after the first update, so that a start which fails leaves nothing; closed however the training ends."""

    def begin(self) -> None: ...

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """loss, gradient_norm, lr, images_per_second, seconds of an update."""
        ...

    def image(self, name: str, grid: Any, step: int) -> None:
        """grid: (H, W, 3) uint8 array."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`. Raises: MissingPackageError where the package tensorboard is missing."""

    def __init__(self, folder: Path) -> None:
        board = wanted("torch.utils.tensorboard", "train.tensorboard needs")
        self._folder, self._writer, self._board = folder, board.SummaryWriter, None  # type: Path, Any, Any

    def begin(self) -> None:
        self._board = self._writer(str(self._folder))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, name: str, grid: Any, step: int) -> None:
        self._board.add_image(name, grid, step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of a project of Weights & Biases, named after the folder; a run that goes on there goes on here.

    settings: shown as the run's config. Raises: MissingPackageError where the package wandb is missing.
    """

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._wandb, self._run = wanted("wandb", "train.wandb needs"), None  # type: Any, Any
        known = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
        self._options = {"project": project, "name": folder.name, "id": known, "resume": "allow"}
        self._folder, self._settings = folder, dict(settings)

    def begin(self) -> None:
        self._run = self._wandb.init(dir=str(self._folder), config=self._settings, **self._options)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def image(self, name: str, grid: Any, step: int) -> None:
        self._run.log({name: self._wandb.Image(grid)}, step=step)

    def close(self) -> None:
        self._run.finish()


def of_settings(config: RunConfig, folder: Path) -> list[Logger]:
    """The loggers that a run's settings ask for. Raises: MissingPackageError naming the package that is missing."""
    train = config.train
    found: list[Logger] = [TensorBoard(folder / "tensorboard")] if train.tensorboard else []
    if train.wandb is not None:
        found.append(WeightsAndBiases(train.wandb, folder, config.to_dict()))
    return found
