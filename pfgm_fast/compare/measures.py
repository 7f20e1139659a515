"""What is measured of samples: distance from held-out data with its interval, and what a clipped picture would hide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pfgm_fast.compare.parts import Frame, Parts
from pfgm_fast.field import pfgm_target
from pfgm_fast.methods import PFGM
from pfgm_fast.metrics.features import features_of
from pfgm_fast.metrics.frechet import frechet_interval
from pfgm_fast.studies.memorization import memorization
from pfgm_fast.studies.quality import Target

OUTSIDE = 1.1
"""|value| beyond which a sample counts as outside the data's [−1, 1]."""

SUSPICIOUS = 0.5
"""Rank correlation of a start's norm and the noise left over, above which the network, not the sampler, failed."""


@dataclass(frozen=True)
class Figures:
    """Of samples as they are, unclipped, except in the classifier, which is shown images.

    lost: samples that are not finite. Where there are any, the rest of the figures is None but `outside`: leaving samples out would
    flatter, and no number stands for them. frechet, low, high: FID* against the reference and its interval. energy: the energy
    distance over the data's own mean distance, unbiased. outside: share of samples with a value beyond ±1.1. frame: root mean square where the data are
    constant. start: rank correlation of the start's norm and the noise left in the frame. copies: share of samples that are copies of
    training images. neighbor: median distance to the nearest training image over that of held-out images.
    """

    lost: int
    outside: float
    frechet: float | None = None
    low: float | None = None
    high: float | None = None
    energy: float | None = None
    frame: float | None = None
    start: float | None = None
    copies: float | None = None
    neighbor: float | None = None

    @property
    def half(self) -> float:
        """Half the width of FID*'s interval."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / 2


class Measures:
    """The data's side of every figure, made once: classifier, reference features, distances."""

    def __init__(self, parts: Parts, cache: Path | None) -> None:
        """cache: of the classifier; None: it is not trained, which costs what a trained one costs."""
        self.parts = parts
        self.classifier, self.accuracy = parts.classifier(cache)
        self.features = self._features(parts.reference.charges().values())
        self.target = Target(parts.reference.charges())
        self.train = parts.train.charges()
        self.frame = Frame.of(parts.train)
        held_out = memorization(parts.features.charges().values(), self.train)
        self.typical = float(held_out.distance.median())

    def _features(self, images: Tensor) -> Tensor:
        return features_of(self.classifier, images.float().clamp(-1, 1))

    def figures(self, samples: Tensor, starts: Tensor | None = None) -> Figures:
        """Of samples (n, *shape) and the starts (n, *shape) that they came from."""
        samples = samples.cpu()
        finite = samples.flatten(1).isfinite().all(1)
        lost = int((~finite).sum())
        out = ~(samples.flatten(1).abs() <= OUTSIDE).all(1)  # NaN is outside
        outside = float(out.double().mean())
        if lost:
            return Figures(lost, outside)
        distance = frechet_interval(self._features(samples), self.features)
        found = memorization(samples, self.train)
        noise = self.frame.noise(samples)
        return Figures(
            lost,
            outside,
            distance.value,
            distance.low,
            distance.high,
            self.target.quality(samples).excess,
            None if noise is None else float(noise.square().mean().sqrt()),
            None if noise is None or starts is None else start_correlation(starts, noise),
            found.fraction,
            float(found.distance.median()) / self.typical,
        )

    def floor(self, count: int) -> tuple[Figures, int]:
        """Of real images in the samples' place, `count` of the training part or as many as there are; and how many."""
        rows = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]
        return self.figures(self.train.values(rows)), len(rows)


def start_correlation(starts: Tensor, noise: Tensor) -> float | None:
    """Spearman's correlation of ‖x₀‖ (n, *shape) and the noise (n,) that was left over; None where either is constant.

    Near 1: the samples that failed are those whose starts were unusual, so a network erred, not a method.
    """
    norms = starts.flatten(1).double().norm(dim=1).cpu()
    if norms.unique().numel() < 2 or noise.unique().numel() < 2:
        return None
    return float(stats.spearmanr(norms.numpy(), noise.cpu().numpy()).statistic)


@dataclass(frozen=True)
class Amplitude:
    """Of a PFGM network on training queries. above: share with n = ‖v_x‖/√N ≥ 1, which no field has. low, median, high: deciles 1, 5, 9 of
    the network's ‖E_x‖ = γ n/(1 − n) over the true field's (where n < 1)."""

    above: float
    low: float
    median: float
    high: float


@torch.no_grad()
def amplitude(method: PFGM, net: Any, charges: Any, queries: int = 1024, seed: int = 0) -> Amplitude:
    """net(x, z) → (v_x, v_z) against the exact field of the charges, at `queries` of the method's own perturbation."""
    generator = torch.Generator(charges.device).manual_seed(seed)
    rows = torch.randint(len(charges), (queries,), generator=generator, device=charges.device)
    x, z = method.perturb(charges.values(rows), generator)
    size = math.sqrt(charges.dim)
    n = torch.cat(
        [
            net(a, b)[0].flatten(1).double().norm(dim=1) / size
            for a, b in zip(x.split(256), z.split(256), strict=True)
        ]
    )
    target, target_z = pfgm_target(x, z, charges, method.gamma)
    # v = −√N E/(‖E‖ + γ): both components have the same factor, and E_z is z itself
    true = target.flatten(1).double().norm(dim=1) / target_z.double().abs().clamp(min=1e-30) * z.double()
    below = n < 1
    ratio = method.gamma * n[below] / (1 - n[below]) / true[below].clamp(min=1e-30)
    deciles = ratio.quantile(ratio.new_tensor([0.1, 0.5, 0.9])).tolist() if len(ratio) else [math.inf] * 3
    return Amplitude(float((~below).double().mean()), *(min(d, 1e30) for d in deciles))
