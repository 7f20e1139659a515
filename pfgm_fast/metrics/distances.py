"""Distances between two sets of points, without any network: (n, *shape) and (m, *shape), values of images in [−1, 1].

Sets that are empty, of different shapes, or hold values that are not finite raise ArgumentError. A shift of both sets changes nothing
(they are centred in float64 first), nor do PyTorch's default dtype, autocast, or its settings of float32 products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast.errors import ArgumentError
from pfgm_fast.precision import full

_BLOCK = 1024


def checked_pair(samples: Tensor, data: Tensor, least: int = 1) -> None:
    """Two sets (n, *shape), (m, *shape) of one shape and device, of `least` points each, all finite.

    Raises: ArgumentError saying which is not, and in how many rows.
    """
    if samples.dim() < 2 or data.dim() < 2 or samples.shape[1:] != data.shape[1:] or samples[:1].numel() == 0:
        raise ArgumentError(
            f"two non-empty sets of one shape are needed: (n, *shape) and (m, *shape); "
            f"got {tuple(samples.shape)} and {tuple(data.shape)}"
        )
    if min(len(samples), len(data)) < least:
        raise ArgumentError(f"at least {least} of each kind are needed; got {len(samples)} and {len(data)}")
    if samples.device != data.device:
        raise ArgumentError(f"both sets must be on one device; got {samples.device} and {data.device}")
    for name, points in (("samples", samples), ("data", data)):
        bad = sum(int((~part.flatten(1).isfinite().all(1)).sum()) for part in points.split(_BLOCK))
        if bad:
            raise ArgumentError(f"{bad} of {len(points)} rows of {name} are not finite (NaN or infinite)")


def centred(samples: Tensor, data: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both as (n, N), (m, N) less the mean of the data, taken in float64, then in a dtype: distances are those before."""
    center = sum(part.flatten(1).double().sum(0) for part in data.split(_BLOCK)) / len(data)
    a, b = (
        torch.cat([(part.flatten(1).double() - center).to(dtype) for part in points.split(_BLOCK)])
        for points in (samples, data)
    )
    return a, b


def _flat(samples: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    checked_pair(samples, data)
    return centred(samples, data, torch.float32)


def _mean_distance(a: Tensor, b: Tensor) -> float:
    # Direct differences: a product's cancellation would give each point a distance from itself.
    total = sum(
        float(torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").double().sum())
        for part in a.split(_BLOCK)
    )
    return total / (len(a) * len(b))


@full()
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


@full()
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


@full()
def sliced_wasserstein(
    samples: Tensor, data: Tensor, directions: int = 256, generator: torch.Generator | None = None
) -> float:
    """Mean over random unit directions of the one-dimensional Wasserstein-1 distance (Rabin et al. 2011), ≥ 0."""
    a, b = _flat(samples, data)
    lines = torch.randn(a.shape[1], directions, generator=generator, device=a.device, dtype=torch.float32)
    lines = lines / lines.norm(dim=0)
    levels = (torch.arange(1024, device=a.device, dtype=torch.float32) + 0.5) / 1024
    # In float64: products of float32 depend on settings that a caller may have made (TF32, oneDNN's bfloat16).
    projected = [
        torch.cat([part.double() @ lines.double() for part in points.split(_BLOCK)]).float()
        for points in (a, b)
    ]
    quantiles = [_quantiles(points, levels) for points in projected]
    return float((quantiles[0] - quantiles[1]).abs().mean())


def _quantiles(points: Tensor, levels: Tensor) -> Tensor:
    """torch.quantile of each column of (n, K) at levels (L,): (L, K), for any n (torch's own takes 16 million numbers at most)."""
    order = points.T.contiguous().sort(1).values
    place = levels.double() * (len(points) - 1)
    low = place.floor().long()
    return torch.lerp(order[:, low], order[:, place.ceil().long()], (place - low).float()).T
