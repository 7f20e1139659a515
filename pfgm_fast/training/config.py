"""RunConfig: everything that defines a run, as data; config.json of a run's folder (docs/runs.md)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pfgm_fast.data import ImageSet, ImageStream, load, parse_size, stream
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.files import write_beside
from pfgm_fast.methods import METHODS, todays_names
from pfgm_fast.methods import from_dict as method_from_dict
from pfgm_fast.nn import UNetConfig
from pfgm_fast.precision import Precision
from pfgm_fast.training import settings
from pfgm_fast.training.version_1 import config_today

FORMAT = "pfgm_fast run, version 2"
FORMATS = ("pfgm_fast run, version 1", FORMAT)
"""What can be read; version 1 has no `dataset` and no `preset`."""
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's for CIFAR-10 (arXiv 2209.11178, appendix D).

    steps: updates. batch: images an update, in `accumulate` equal parts. lr: Adam's, reached linearly over `warmup` updates, and
    brought down over the last `decay` share of the updates by a half cosine (0: constant, as in the paper).
    clip: largest norm of the gradient (0: none). ema: decay rates of the averages, the first is the one that samples; they
    warm up as (1 + n)/(10 + n). ema_half_life: in images, of averages in their place (EDM: 500,000), each at most
    `ema_ramp_up` of the images seen (none: from the start). precision: of the network under autocast; auto: bfloat16 where
    the device has units for it. cuda_graph: on a CUDA device forward and backward passes are captured once and replayed (`training.captured`);
    with all data as charges, one part an update, one process. flip: the mirror images are data too.
    conditional: labels go into the network, and a query sees the charges of its class. field_charges: charges drawn for each
    update, beside the batch's own; None: the whole data set, always. reservoir: images of a data set that need not fit in memory which
    are there at a time, and are the charges (`training.batches` has the rule); None: all of them.
    augment: probability of each kind of EDM's augmentation, of which the network is told (network.augment_dim=9); 0: none.
    augment_group: neighbours in a batch that share theirs, for which stable targets transform the charges once.
    skip_nonfinite: updates whose loss or gradient is not finite are left out; more than this many in a row end the training
    (0: the first one does).
    log_every, sample_every, checkpoint_every: in updates, 0 turns the first two off. keep: the newest checkpoints stay;
    snapshot_every: those of its multiples stay for good, beside them (0: none). optimal_every: updates after which a perfect network's
    loss is measured on the update's own draws, for what is left to learn (0: never). tensorboard: metrics and grids go there too.
    wandb: the project of Weights & Biases to which they go (None: to none).

    Raises: ArgumentError naming the setting, for a value of another type or outside its range.
    """

    steps: int = 1_300_000
    batch: int = 128
    lr: float = 2e-4
    warmup: int = 5000
    decay: float = 0.0
    clip: float = 1.0
    ema: tuple[float, ...] = (0.9999,)
    ema_half_life: tuple[float, ...] = ()
    ema_ramp_up: float | None = 0.05
    seed: int = 0
    accumulate: int = 1
    precision: Precision = "float32"
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    flip: bool = True
    conditional: bool = False
    field_charges: int | None = None
    reservoir: int | None = None
    augment: float = 0.0
    augment_group: int = 1
    skip_nonfinite: int = 0
    log_every: int = 50
    sample_every: int = 5000
    checkpoint_every: int = 5000
    keep: int = 2
    snapshot_every: int = 0
    optimal_every: int = 0
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        settings.check(self)
        for name in ("steps", "batch", "accumulate", "augment_group", "checkpoint_every", "keep"):
            _at_least(1, name, getattr(self, name))
        for name in (
            "warmup",
            "log_every",
            "sample_every",
            "snapshot_every",
            "optimal_every",
            "seed",
            "skip_nonfinite",
        ):
            _at_least(0, name, getattr(self, name))
        for name in ("field_charges", "reservoir"):
            if getattr(self, name) is not None:
                _at_least(1, name, getattr(self, name))
        if not (0 < self.lr < math.inf and self.clip >= 0 and 0 <= self.decay <= 1):
            raise ArgumentError(
                f"lr must be > 0 and finite, clip ≥ 0, decay in [0, 1]; got {self.lr}, {self.clip}, {self.decay}"
            )
        if not self.ema or not all(0 <= rate < 1 for rate in self.ema):
            raise ArgumentError(f"ema must hold rates in [0, 1), at least one; got {self.ema}")
        if not all(0 < images < math.inf for images in (*self.ema_half_life, self.ema_ramp_up or 1.0)):
            raise ArgumentError(
                f"ema_half_life and ema_ramp_up must be > 0 and finite; got {self.ema_half_life}, {self.ema_ramp_up}"
            )
        if not 0 <= self.augment <= 1:
            raise ArgumentError(f"augment must lie in [0, 1]; got {self.augment}")
        without = (
            ("accumulate", 1),
            ("field_charges", None),
            ("reservoir", None),
            ("augment", 0.0),
            ("optimal_every", 0),
        )
        beside = [name for name, value in (*without, ("compile", False)) if getattr(self, name) != value]
        if self.cuda_graph and beside:
            raise ArgumentError(
                f"cuda_graph captures an update with the whole data set as charges: not with {', '.join(beside)}"
            )
        if self.batch % self.accumulate:
            raise ArgumentError(
                f"batch {self.batch} cannot be split into {self.accumulate} equal parts (accumulate)"
            )

    @property
    def averages(self) -> int:
        """How many averages of the weights there are."""
        return len(self.ema_half_life or self.ema)


def _at_least(least: int, name: str, value: int) -> None:
    if not least <= value <= LARGEST:
        bound = f"≥ {least}" if value < least else "below 2^63"
        raise ArgumentError(f"{name} must be an integer {bound}; got {value!r}")


def read_size(value: object) -> int | tuple[int, int]:
    """ "N", "HxW", N or (H, W) → N where the image is square, else (H, W). Raises: ArgumentError."""
    height, width = parse_size(value)
    return height if height == width else (height, width)


Size = Annotated[int | tuple[int, int] | None, settings.Spelling(read_size, "a size N or HxW, in pixels")]
MethodSettings = Annotated[dict[str, Any] | None, settings.Variants(METHODS, "pfgm", update=todays_names)]


@dataclass(frozen=True)
class DataRecord:
    """The data of a run: `ImageSet.digest`, `ImageSet.describe()`, and the names of the classes where they are known."""

    digest: str
    description: str
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: ImageSet | ImageStream) -> DataRecord:
        return cls(images.digest, images.describe(), tuple(map(str, images.classes)))


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run.

    data, size, crop, channels, split: what `data.load` is given (docs/data.md). method: `name` and hyper-parameters of a method, some or all; what is not given follows
    from the data by the method's rules where it has any, else it is the class's default. None: PFGM by the rules.
    network: must fit the images. preconditioning: makes it a denoiser, for methods that train one (`edm` for pfgmpp and edm; `nn.denoiser`);
    none: the method's raw network. train: how. dataset: the data that the run was begun on. preset: the one that it was begun from.
    own_network: the class of a network that the caller gave the Trainer; `network` then holds the images' shape and classes alone.

    Raises: ArgumentError naming the setting, its type and what was given.
    """

    data: str
    size: Size = None
    crop: Size = None
    channels: Literal[1, 3] | None = None
    split: str | None = None
    method: MethodSettings = None
    network: UNetConfig = field(default_factory=UNetConfig)
    preconditioning: Literal["edm", "vp", "subvp", "ve", "iddpm"] | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    dataset: DataRecord | None = None
    preset: str | None = None
    own_network: str | None = None

    def __post_init__(self) -> None:
        settings.check(self)
        if self.method is not None:
            method_from_dict(self.method)  # refuses values outside their ranges

    @property
    def reading(self) -> dict[str, Any]:
        """How `data` is read, besides its size: arguments of `data.load` and `data.stream`."""
        return {"crop": self.crop, "channels": self.channels, "split": self.split}

    def images(self) -> ImageSet | ImageStream:
        """The run's data; a stream where they need not be in memory (`train.reservoir`). Raises: DataError."""
        size: Any = self.size
        if self.train.reservoir is not None:
            return stream(self.data, size, **self.reading)
        return load(self.data, size, **self.reading)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds; `from_dict` is the inverse."""
        values = dataclasses.asdict(self)
        if self.method is not None:  # JSON knows no infinity
            values["method"] = {k: "inf" if v == math.inf else v for k, v in self.method.items()}
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Raises: ArgumentError for an unknown setting, or a value of another type or range."""
        return settings.build(cls, {k: v for k, v in values.items() if k != "format"})

    def save(self, folder: Path) -> None:
        """Write config.json into a run's folder, whole or not at all."""
        write_beside(folder / "config.json", json.dumps(self.to_dict(), indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> RunConfig:
        """Raises: CheckpointError where the folder holds no readable config of this package."""
        path = folder / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(
                f"{folder} is not a run of pfgm_fast: it has no config.json (expected config.json and checkpoints/)"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not readable JSON: {error}") from error
        if not isinstance(values, dict) or values.get("format") not in FORMATS:
            raise CheckpointError(f'{path} is of another program or version: expected "format": "{FORMAT}"')
        try:
            return cls.from_dict(config_today(values))
        except ArgumentError as error:
            raise CheckpointError(f"{path}: {error}") from error


def image_shape(network: UNetConfig) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network is for."""
    size: Any = network.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return network.channels, height, width


def absolute(data: str) -> str:
    """A path of data as a run records it, from whatever folder it is used later; names such as `digits` stay."""
    path = os.path.abspath(os.path.expanduser(data))
    return path if os.path.exists(path) and not _is_name(data) else data


def _is_name(data: str) -> bool:
    return data == "digits"


def read_file(path: Path) -> dict[str, Any]:
    """Settings of a .json or .toml file, as `--config` takes them: groups `method`, `network`, `train`, and `data`, `size`, `preset`.

    A run's config.json will do. Raises: ArgumentError naming the file.
    """
    try:
        content = path.read_text(encoding="utf-8")
        values = _toml(content) if path.suffix.lower() == ".toml" else json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"--config {path} cannot be read as {path.suffix.lower() or 'JSON'}: {error}"
        ) from None
    if not isinstance(values, dict):
        raise ArgumentError(f"--config {path} must hold a group of settings; got {type(values).__name__}")
    return {k: v for k, v in values.items() if k not in ("format", "dataset")}


def _toml(content: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib.loads(content)


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """Settings in which two runs differ and a run may not change, as "lr = 0.001, not 0.002".

    May change: how long to go on, what to report and keep, and how many bad updates to leave out; where the data lie. Numbers that
    rounding alone tells apart are the same: what follows from the data is a sum, in the order of some number of threads.
    """
    mine, theirs = _flat(before.to_dict()), _flat(now.to_dict())
    names = [n for n in {**mine, **theirs} if n not in _FREE and not _same(mine.get(n), theirs.get(n))]
    return [f"{name.removeprefix('train.')} = {mine.get(name)!r}, not {theirs.get(name)!r}" for name in names]


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-6)
    return bool(mine == theirs)


_FREE = frozenset(
    ["format", "data", "preset", "dataset", "dataset.digest", "dataset.description", "dataset.classes"]
    + [
        f"train.{name}"
        for name in (
            "steps", "skip_nonfinite", "log_every", "sample_every", "checkpoint_every", "keep", "snapshot_every",
            "optimal_every", "tensorboard", "wandb",
        )
    ]
)  # fmt: skip


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
