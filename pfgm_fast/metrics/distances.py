"""Distances between two sets of points, without any network: (n, *shape) and (m, *shape), values of images in [−1, 1].

Sets that are empty or of different shapes raise ArgumentError.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast.errors import ArgumentError

_BLOCK = 1024


def _flat(samples: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    if samples.dim() < 2 or samples.shape[1:] != data.shape[1:] or not len(samples) or not len(data):
        raise ArgumentError(
            f"two non-empty sets of one shape are needed: (n, *shape) and (m, *shape); "
            f"got {tuple(samples.shape)} and {tuple(data.shape)}"
        )
    return samples.flatten(1).float(), data.flatten(1).float()


def _mean_distance(a: Tensor, b: Tensor) -> float:
    # Direct differences: a product's cancellation would give each point a distance from itself.
    total = sum(
        float(torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").double().sum())
        for part in a.split(_BLOCK)
    )
    return total / (len(a) * len(b))


def energy_distance(samples: Tensor, data: Tensor) -> float:
    """2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ ≥ 0 over all pairs, Euclidean (Székely and Rizzo 2013).

    All pairs include each point with itself (the V-statistic), so n samples of the very same distribution give not 0 but
    E‖X − X'‖ (1/n + 1/m) on average.
    """
    a, b = _flat(samples, data)
    return 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)


class Neighbors(NamedTuple):
    """Whether samples are copies. distance (n,): to the nearest data point; nearest (n,): its index; typical: the median distance of a
    data point to its nearest other data point; ratio: median of distance over typical, near 0 for copies, about 1 for new samples
    as far from the data as the data are from each other."""

    distance: Tensor
    nearest: Tensor
    typical: float
    ratio: float


def nearest_neighbors(samples: Tensor, data: Tensor) -> Neighbors:
    """The nearest of data (m, *shape) to each of samples (n, *shape), Euclidean: the check for memorised data."""
    a, b = _flat(samples, data)
    found = [torch.cdist(p, b, compute_mode="donot_use_mm_for_euclid_dist").min(1) for p in a.split(_BLOCK)]
    distance, index = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
    among = torch.cat(
        [
            torch.cdist(p, b, compute_mode="donot_use_mm_for_euclid_dist").topk(
                min(2, len(b)), largest=False
            )[0][:, -1]
            for p in b.split(_BLOCK)
        ]
    )
    typical = float(among.median())
    return Neighbors(distance, index, typical, float(distance.median()) / max(typical, 1e-12))


def sliced_wasserstein(
    samples: Tensor, data: Tensor, directions: int = 256, generator: torch.Generator | None = None
) -> float:
    """Mean over random unit directions of the one-dimensional Wasserstein-1 distance (Rabin et al. 2011), ≥ 0."""
    a, b = _flat(samples, data)
    lines = torch.randn(a.shape[1], directions, generator=generator, device=a.device)
    lines = lines / lines.norm(dim=0)
    levels = (torch.arange(1024, device=a.device) + 0.5) / 1024
    quantiles = [torch.quantile(points @ lines, levels, dim=0) for points in (a, b)]
    return float((quantiles[0] - quantiles[1]).abs().mean())
