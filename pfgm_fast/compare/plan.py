"""What a comparison trains and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pfgm_fast.charges import Charges
from pfgm_fast.data import ImageSet
from pfgm_fast.methods import PFGM, VESDE, VPSDE
from pfgm_fast.nn import UNetConfig
from pfgm_fast.training import RunConfig, TrainConfig

TITLES = {"pfgm": "PFGM", "ve": "VE SDE", "vp": "VP SDE"}


@dataclass(frozen=True)
class Point:
    """One way to draw samples: `steps` of a solver."""

    model: str  # "pfgm", "ve", "vp", with "-weak" behind it for the small network
    solver: str
    steps: int

    @property
    def method(self) -> str:
        return self.model.removesuffix("-weak")

    @property
    def clock(self) -> str:
        """Points of one clock take the same time for an evaluation."""
        return f"{self.model}/{self.solver}"

    @property
    def key(self) -> str:
        return f"{self.model}/{self.solver}/{self.steps}"


@dataclass(frozen=True)
class Plan:
    """steps, batch: of training, the same for all. width, multipliers, blocks: of the network; the weak one has half the width and is
    trained half as long. samples: drawn for each point. long: steps of the SDE samplers that set the standard. compile: the networks by
    torch.compile, in training and sampling, alike for all."""

    steps: int = 1500
    batch: int = 64
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    samples: int = 256
    long: int = 1000
    seed: int = 0
    compile: bool = False

    def models(self) -> list[str]:
        return ["pfgm", "ve", "vp", "pfgm-weak", "ve-weak", "vp-weak"]

    def points(self) -> list[Point]:
        """Cheap ones first."""
        points = [Point(m, "euler", n) for m in TITLES for n in (10, 20, 50, 100)]
        points += [Point(m, "heun", n) for m in TITLES for n in (10, 25)]
        points += [Point(m, "rk45", 1) for m in TITLES]
        points += [Point(f"{m}-weak", "euler", n) for m in TITLES for n in (20, 100)]
        points += [Point(m, "reverse_diffusion", n) for m in ("ve", "vp") for n in (50, 200)]
        points += [Point("vp", "euler_maruyama", self.long), Point("ve", "reverse_diffusion", self.long)]
        points += [Point("ve", "predictor_corrector", self.long // 2)]
        return points

    def config(self, model: str, images: ImageSet, data: str) -> RunConfig:
        """The run of a model; only its method differs from the others'."""
        weak = model.endswith("-weak")
        channels, size, _ = images.shape
        train = TrainConfig(
            steps=self.steps // 2 if weak else self.steps,
            batch=self.batch,
            lr=1e-3,
            warmup=100,
            decay=0.4,
            ema=(0.995,),
            seed=self.seed,
            flip=False,
            compile=self.compile,
            log_every=50,
            sample_every=0,
            checkpoint_every=250,
        )
        lowest = size >> (len(self.multipliers) - 1)
        width = max(8, self.width // 2) if weak else self.width
        network = UNetConfig(channels, size, width, self.multipliers, self.blocks, (lowest,), dropout=0.0)
        return RunConfig(
            data, method=_method(model.removesuffix("-weak"), images.charges()), network=network, train=train
        )


def _method(name: str, charges: Charges) -> dict[str, Any]:
    if name == "pfgm":
        return PFGM.from_data(charges).to_dict()
    return (VESDE.from_data(charges) if name == "ve" else VPSDE()).to_dict()
