"""What a comparison trains and samples: the models, the points of each, and budgets by the size of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pfgm_fast.charges import Charges
from pfgm_fast.data import ImageSet
from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn import UNetConfig
from pfgm_fast.precision import Precision
from pfgm_fast.studies.exact import make
from pfgm_fast.training import RunConfig, TrainConfig

METHODS = ("pfgm", "pfgmpp-1", "pfgmpp-128", "pfgmpp-2048", "edm", "ve", "vp")
"""The paper's PFGM; the same field (D = 1) and others in EDM's preconditioning; diffusion in EDM's and in score-SDE's."""
SDE_SOLVERS = {
    "edm": ("ancestral",),
    "ve": ("reverse_diffusion", "predictor_corrector"),
    "vp": ("reverse_diffusion", "ancestral"),
    "subvp": ("reverse_diffusion", "ancestral"),
}
"""Samplers that draw noise, for the methods that have them."""
EVALUATIONS = {"heun": 2, "predictor_corrector": 2}
"""A step's evaluations, where it is not one."""


@dataclass(frozen=True)
class Model:
    """One network: a method, strong or weak, and the seed of its training and its samples."""

    method: str
    weak: bool
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method}{'-weak' if self.weak else ''}-{self.seed}"


@dataclass(frozen=True)
class Point:
    """One way to draw samples: `steps` of a solver."""

    model: Model
    solver: str
    steps: int

    @property
    def key(self) -> str:
        return f"{self.model.key}/{self.solver}/{self.steps}"

    @property
    def evaluations(self) -> int:
        """About how many a sample takes; the sampler counts them."""
        return self.steps * EVALUATIONS.get(self.solver, 1)


@dataclass(frozen=True)
class Plan:
    """The same for every method: steps, batch, lr, ema of training; width, multipliers, blocks of the DDPM++. A weak network has half
    the width and half the updates. seeds: of training and sampling, each a network of its own. samples: drawn for each point.
    euler, heun: steps of the ODEs. sde: evaluations of the samplers that draw noise. weak_heun, weak_euler: those of the weak networks.
    most: images that are held out for the metric's reference, and as many for the classifier, at most. compile, precision: of the networks, trained and sampled, alike for all.
    """

    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 3000
    batch: int = 128
    lr: float = 1e-3
    ema: float = 0.999
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    dropout: float = 0.0
    samples: int = 5000
    sample_batch: int = 250
    euler: tuple[int, ...] = (5, 10, 20, 50, 100)
    heun: tuple[int, ...] = (5, 9, 18, 36)
    sde: tuple[int, ...] = (20, 50, 100, 200)
    weak_euler: tuple[int, ...] = (20, 100)
    weak_heun: tuple[int, ...] = (18,)
    most: int = 10_000
    flip: bool = False
    compile: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not self.methods or not self.seeds or min(self.steps, self.samples, self.width) < 2:
            raise ArgumentError(
                "a comparison needs methods, seeds, and at least 2 updates, samples and features"
            )
        if len(self.heun) < 2 or not self.euler or not self.sde:
            raise ArgumentError(
                "a comparison needs steps of Euler's method, of Heun's (two numbers), and of SDEs"
            )

    def models(self) -> list[Model]:
        """Seed by seed, so that what was stopped early has every method."""
        return [Model(m, weak, s) for s in self.seeds for m in self.methods for weak in (False, True)]

    def points(self, model: Model) -> Iterator[Point]:
        """Cheap ones first."""
        ladder = {"heun": self.weak_heun, "euler": self.weak_euler}
        if not model.weak:
            ladder = {"heun": self.heun, "euler": self.euler}
        for solver, steps in ladder.items():
            yield from (Point(model, solver, n) for n in steps)
        if model.weak:
            return
        for solver in SDE_SOLVERS.get(model.method, ()):
            yield from (Point(model, solver, max(1, n // EVALUATIONS.get(solver, 1))) for n in self.sde)

    def network(self, model: Model, shape: tuple[int, ...]) -> UNetConfig:
        channels, height, width = shape
        size: Any = height if height == width else (height, width)
        features = max(8, self.width // 2 // 4 * 4) if model.weak else self.width
        lowest = height >> (len(self.multipliers) - 1)
        return UNetConfig(
            channels, size, features, self.multipliers, self.blocks, (lowest,), dropout=self.dropout
        )

    def updates(self, model: Model) -> int:
        return self.steps // 2 if model.weak else self.steps

    def config(self, model: Model, shape: tuple[int, ...], charges: Charges, data: str) -> RunConfig:
        """The run of a model; only its method differs from the others' of its strength and seed."""
        steps = self.updates(model)
        train = TrainConfig(
            steps=steps,
            batch=self.batch,
            lr=self.lr,
            warmup=max(1, min(200, steps // 10)),
            decay=0.4,
            ema=(self.ema,),
            seed=model.seed,
            flip=self.flip,
            compile=self.compile,
            precision=self.precision,
            log_every=50,
            sample_every=0,
            checkpoint_every=max(1, min(1000, steps // 4)),
            keep=1,
        )
        method = make(model.method, charges).to_dict()
        return RunConfig(data, method=method, network=self.network(model, shape), train=train)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PLANS = {
    "digits": Plan(
        methods=("pfgm", "pfgmpp-1", "edm", "ve", "vp"),
        steps=1500,
        batch=64,
        ema=0.995,
        multipliers=(1, 2),
        samples=1000,
        sample_batch=500,
        euler=(5, 10, 20, 50),
        sde=(20, 50, 100, 200),
    ),
    "mnist": Plan(),
    "cifar10": Plan(
        steps=100_000,
        lr=2e-4,
        ema=0.9999,
        width=64,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        dropout=0.1,
        samples=10_000,
        sample_batch=1000,
        sde=(20, 50, 100, 200, 500, 1000),
        flip=True,
        compile=True,
        precision="bfloat16",
    ),
}
"""By name: for 8×8 images on a CPU in minutes, 16×16 in an evening, 32×32 in colour on a GPU."""


def plan_for(images: ImageSet) -> str:
    """The name of the plan for images of this size."""
    pixels = images.images[0].numel()
    return "digits" if pixels <= 64 else "mnist" if pixels <= 1024 else "cifar10"
