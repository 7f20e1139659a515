"""Tolerance of estimation errors as an experiment with one knob: the exact field plus an error of known strength and kind.

The error is added where a network makes it: to the method's own normalised target (PFGM's v, the raw network F of EDM's
preconditioning, −ε of the SDEs), with a strength relative to the target's norm, so that the same number means the same quality
of a network for every method. It is a smooth function of x and the condition, as a network's error is, and the same at every call; but
for the kind "independent", which shows what that matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import pfgm_target, posterior_mean
from pfgm_fast.flows import per_image
from pfgm_fast.methods import PFGM, Method, PFGMpp
from pfgm_fast.methods.sde import SDE
from pfgm_fast.sampling import sample
from pfgm_fast.studies.exact import METHODS, make
from pfgm_fast.studies.points import PointFile
from pfgm_fast.studies.quality import Quality, Target
from pfgm_fast.world import world

KINDS = ("smooth", "direction", "amplitude", "independent")
"""smooth: any direction; direction: at right angles to the target; amplitude: along it; independent: drawn anew at every call, so that
it averages out over the steps."""
UNHELD = "pfgm-unheld"
"""PFGM whose field is not held to the ball of the data (`steps`): what holding it is worth."""

RawNetwork = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def exact_network(method: Method, charges: Charges) -> RawNetwork:
    """net(x, condition) → (v_x, v_z): what a perfect network of the method would return, by `methods.network`'s contract."""
    if isinstance(method, PFGM):
        gamma = method.gamma
        return lambda x, z: pfgm_target(x, z, charges, gamma)
    if isinstance(method, PFGMpp):
        return _raw_of_edm(method, charges)
    if isinstance(method, SDE):
        exact = method.exact(charges)
        return lambda x, condition: exact(x, condition)
    raise ArgumentError(f"no exact network is known for the method {method.name!r}")


def _raw_of_edm(method: PFGMpp, charges: Charges) -> RawNetwork:
    """F = (D − c_skip x)/c_out of the posterior mean D, from c_in x and c_noise (EDM, arXiv 2206.00364, table 1)."""

    def net(scaled: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (condition.double() / method.c_noise_scale).exp().to(scaled.dtype)
        total = sigma.square() + method.sigma_data**2
        x = scaled * per_image(total.sqrt(), scaled)
        clean = posterior_mean(x, sigma * method.radius_scale, charges, method.aug_dim)
        skip, out = method.sigma_data**2 / total, sigma * method.sigma_data * total.rsqrt()
        return (clean - per_image(skip, x) * x) / per_image(out, x), torch.zeros_like(condition)

    return net


class WithError:
    """A raw network whose output carries an error of norm `strength` times the output's own, for every x and condition.

    kind: one of `KINDS`. The error's direction is a unit vector, and the sign of an amplitude's error a number in [−1, 1], both smooth
    functions of x's direction and the logarithm of its size: random Fourier features, drawn from the seed; "independent" is white noise.
    strength ≥ 0.
    """

    def __init__(
        self, net: RawNetwork, dim: int, kind: str, strength: float, seed: int = 0, features: int = 128
    ) -> None:
        if kind not in KINDS:
            raise ArgumentError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        if not strength >= 0:
            raise ArgumentError(f"strength must be ≥ 0; got {strength}")
        self.net, self.kind, self.strength = net, kind, strength
        generator = torch.Generator().manual_seed(seed)
        self.into = torch.randn(dim + 1, features, generator=generator)
        self.phase = 2 * math.pi * torch.rand(features, generator=generator)
        self.out = torch.randn(features, dim, generator=generator) / math.sqrt(features)
        self.generator = generator

    def _features(self, flat: Tensor) -> Tensor:
        size = flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
        where = torch.cat([flat / size, size.log() / 3], 1)
        return torch.sin(where @ self.into.to(flat) + self.phase.to(flat))

    def __call__(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        vx, vz = self.net(x, condition)
        flat = vx.flatten(1)
        if self.kind == "independent":
            return self._with(vx, torch.randn(flat.shape, generator=self.generator).to(flat)), vz
        features = self._features(x.flatten(1))
        if self.kind == "amplitude":
            factor = 1 + self.strength * torch.tanh(2 * features.mean(1) * math.sqrt(features.shape[1]))
            return per_image(factor, vx) * vx, factor * vz
        error = features @ self.out.to(flat)
        if self.kind == "direction":
            along = (error * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True).clamp(min=1e-30)
            error = error - along * flat
        return self._with(vx, error), vz

    def _with(self, vx: Tensor, error: Tensor) -> Tensor:
        """v_x and an error (B, N) of the strength's length."""
        flat = vx.flatten(1)
        error = error / error.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return (flat + self.strength * flat.norm(dim=1, keepdim=True) * error).view(vx.shape)


@dataclass(frozen=True)
class ErrorPlan:
    """Every method with a solver that needs no further steps: Heun with `steps` for the ODEs. samples: for each point and seed."""

    methods: tuple[str, ...] = (METHODS[0], UNHELD, *METHODS[1:])
    kinds: tuple[str, ...] = KINDS
    strengths: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4)
    samples: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    solver: str = "heun"
    steps: int = 18


@dataclass(frozen=True)
class ErrorPoint:
    """quality: None where a sample is not finite or farther out than ten times the data's radius (`lost`: how many of them)."""

    method: str
    kind: str
    strength: float
    seed: int
    quality: Quality | None
    lost: int

    @property
    def key(self) -> str:
        return f"{self.method}/{self.kind}/{self.strength:g}/{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ErrorPoint:
        quality = values["quality"]
        return cls(**{**values, "quality": None if quality is None else Quality(**quality)})


def run_errors(
    charges: Charges, plan: ErrorPlan, folder: Path, progress: bool = True
) -> list[ErrorPoint] | None:
    """Every point of the plan; points are kept in `folder/errors.jsonl`, so that a study that was stopped goes on. Under torchrun the points
    are shared out, and the writer alone has them."""
    here = world()
    file = PointFile(folder / "errors.jsonl", ErrorPoint.from_dict)
    target = Target(charges)
    here.wait()  # every rank has read the file to which all append from here on
    # Without an error its kind does not matter: that point is measured once, as the first kind's.
    kinds = {
        (kind, strength): kind if strength else plan.kinds[0]
        for kind in plan.kinds
        for strength in plan.strengths
    }
    todo = list(
        dict.fromkeys(
            (name, kinds[kind, strength], strength, seed)
            for name, kind, strength, seed in product(plan.methods, plan.kinds, plan.strengths, plan.seeds)
        )
    )

    def one(k: int) -> ErrorPoint:
        name, kind, strength, seed = todo[k]
        measure = partial(_measure, charges, target, name, _made(name, charges), kind, strength, seed, plan)
        point, new = file.get(f"{name}/{kind}/{strength:g}/{seed}", measure)
        if new and progress:
            told = "lost" if point.quality is None else f"error {point.quality.error:.4f}"
            print(f"{point.key}: {told}", flush=True)
        return point

    found = here.spread(len(todo), one)
    if found is None:
        return None
    by_key = dict(zip(todo, found, strict=True))
    return [
        replace(by_key[name, kinds[kind, strength], strength, seed], kind=kind)
        for name, kind, strength, seed in product(plan.methods, plan.kinds, plan.strengths, plan.seeds)
    ]


def _made(name: str, charges: Charges) -> Method:
    if name != UNHELD:
        return make(name, charges)
    return PFGM.from_data(charges, data_radius=None)


def _measure(
    charges: Charges,
    target: Target,
    name: str,
    method: Method,
    kind: str,
    strength: float,
    seed: int,
    plan: ErrorPlan,
) -> ErrorPoint:
    net = WithError(exact_network(method, charges), charges.dim, kind, strength, seed)
    generator = torch.Generator(charges.device).manual_seed(seed)
    shape = (plan.samples, *charges.shape)
    out = sample(net, shape, plan.solver, plan.steps, method=method, generator=generator, denoise=True)
    flat = out.x.flatten(1)
    away = (flat - charges.center.to(flat)).norm(dim=1)
    kept = flat.isfinite().all(1) & (away <= 10 * charges.sq_norms.max().sqrt().to(away))
    lost = int((~kept).sum())
    return ErrorPoint(name, kind, strength, seed, target.quality(out.x) if lost == 0 else None, lost)
