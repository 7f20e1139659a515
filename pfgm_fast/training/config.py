"""RunConfig: everything that defines a run, as data; config.json of a run's folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.methods import from_dict as method_from_dict
from pfgm_fast.nn import UNetConfig
from pfgm_fast.training.files import write_beside

PRECISIONS = ("float32", "bfloat16")
FORMAT = "pfgm_fast run, version 1"
T = TypeVar("T")


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's for CIFAR-10 (arXiv 2209.11178, appendix D).

    steps: updates. batch: images an update, in `accumulate` equal parts. lr: Adam's, reached linearly over `warmup` updates, and
    brought down over the last `decay` share of the updates by a half cosine (0: constant, as in the paper).
    clip: largest norm of the gradient (0: none). ema: decay rates of the averages, the first is the one that samples; they
    warm up as (1 + n)/(10 + n). precision: of the network under autocast. flip: the mirror images are data too.
    conditional: labels go into the network, and a query sees the charges of its class. field_charges: charges drawn for each
    update, beside the batch's own; None: the whole data set, always.
    log_every, sample_every, checkpoint_every: in updates, 0 turns the first two off. keep: the newest checkpoints stay;
    snapshot_every: those of its multiples stay for good, beside them (0: none). tensorboard: metrics and grids go there too.
    """

    steps: int = 1_300_000
    batch: int = 128
    lr: float = 2e-4
    warmup: int = 5000
    decay: float = 0.0
    clip: float = 1.0
    ema: tuple[float, ...] = (0.9999,)
    seed: int = 0
    accumulate: int = 1
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    flip: bool = True
    conditional: bool = False
    field_charges: int | None = None
    log_every: int = 50
    sample_every: int = 5000
    checkpoint_every: int = 5000
    keep: int = 2
    snapshot_every: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ema", tuple(self.ema))
        for name in ("steps", "batch", "accumulate", "checkpoint_every", "keep"):
            _integer(name, getattr(self, name), 1)
        for name in ("warmup", "log_every", "sample_every", "snapshot_every", "seed"):
            _integer(name, getattr(self, name), 0)
        if self.field_charges is not None:
            _integer("field_charges", self.field_charges, 1)
        if not self.lr > 0 or self.clip < 0 or not 0 <= self.decay <= 1:
            raise ArgumentError(
                f"lr must be > 0, clip ≥ 0, decay in [0, 1]; got {self.lr}, {self.clip}, {self.decay}"
            )
        if not self.ema or not all(0 <= rate < 1 for rate in self.ema):
            raise ArgumentError(f"ema must hold rates in [0, 1), at least one; got {self.ema}")
        if self.batch % self.accumulate:
            raise ArgumentError(
                f"batch {self.batch} cannot be split into {self.accumulate} equal parts (accumulate)"
            )
        if self.precision not in PRECISIONS:
            raise ArgumentError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")


def _integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be an integer ≥ {least}; got {value!r}")


@dataclass(frozen=True)
class RunConfig:
    """data: what `data.load` is given (`size` too). method: `Method.to_dict()`; None: PFGM by the rules for the data.
    network: must fit the images. train: how."""

    data: str
    size: int | None = None
    method: dict[str, Any] | None = None
    network: UNetConfig = field(default_factory=UNetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.method is not None:  # refuses what no method knows; old names become today's
            object.__setattr__(self, "method", method_from_dict(self.method).to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds; `from_dict` is the inverse."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Raises: ArgumentError for an unknown field or a bad value."""
        values = {k: v for k, v in values.items() if k != "format"}
        if isinstance(values.get("network"), dict):
            values["network"] = known(UNetConfig, values["network"], "network")
        if isinstance(values.get("train"), dict):
            values["train"] = known(TrainConfig, values["train"], "train")
        return known(cls, values, "run")

    def save(self, folder: Path) -> None:
        """Write config.json into a run's folder, whole or not at all."""
        write_beside(folder / "config.json", json.dumps(self.to_dict(), indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> RunConfig:
        """Raises: CheckpointError where the folder holds no readable config of this package."""
        path = folder / "config.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} is not a run of pfgm_fast: it has no config.json (expected config.json and checkpoints/)"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not readable JSON: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise CheckpointError(f'{path} is of another program or version: expected "format": "{FORMAT}"')
        try:
            return cls.from_dict(values)
        except (ArgumentError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from error


def known(kind: type[T], values: dict[str, Any], what: str) -> T:
    """A dataclass from its fields. Raises: ArgumentError naming the first field that it does not have."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - names)
    if unknown:
        raise ArgumentError(f"{what}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(names))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ArgumentError(f"{what}: {error}") from None
