"""Distances between sets of features (n, F): Fréchet, precision and recall; and Inception's, through torch-fidelity."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfgm_fast.errors import ArgumentError, DataError
from pfgm_fast.extras import wanted
from pfgm_fast.files import writable
from pfgm_fast.metrics.distances import centred, checked_pair
from pfgm_fast.metrics.features import digest
from pfgm_fast.precision import full

NEIGHBORS = 3
"""k of precision and recall (Kynkäänniemi et al. 2019)."""


def check_counts(samples: int, data: int, neighbors: int = NEIGHBORS) -> None:
    """Raises: ArgumentError where so few samples or data have no precision and recall; to be asked before long sampling."""
    if min(samples, data) <= neighbors:
        raise ArgumentError(
            f"precision and recall with {neighbors} neighbours need at least {neighbors + 1} samples and as many images of the data; "
            f"got {samples} and {data}"
        )


def _pair(samples: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, F), (m, F) in float64 on the CPU, less the data's mean."""
    if samples.dim() != 2 or data.dim() != 2 or samples.shape[1] != data.shape[1]:
        raise ArgumentError(
            f"features must be (n, F) and (m, F); got {tuple(samples.shape)} and {tuple(data.shape)}"
        )
    samples, data = samples.detach().cpu(), data.detach().cpu()
    checked_pair(samples, data, 2)
    return centred(samples, data, torch.float64)


@full()
def frechet_distance(samples: Tensor, data: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) ≥ 0 of the Gaussians with the sets' moments (Heusel et al. 2017).

    Biased upwards for few samples: compare only figures of equal numbers of samples.
    """
    a, b = (part.numpy() for part in _pair(samples, data))
    return _between(_moments(a, np.ones(len(a))), _moments(b, np.ones(len(b))))


class Interval(NamedTuple):
    """value: of the sets as they are. low, high: what other sets of the same sizes would give (`frechet_interval`)."""

    value: float
    low: float
    high: float


@full()
def frechet_interval(
    samples: Tensor, data: Tensor, draws: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """The Fréchet distance of features (n, F), (m, F), and a bootstrap interval of its chance: both sets are drawn anew with
    replacement, `draws` times (Efron 1979).

    Drawing anew adds a bias of its own to a distance that cannot be negative, so the quantiles are taken about the draws' mean and laid
    on the value; low ≥ 0. The bias of few samples stays in all three: compare figures of equal numbers.
    Raises: ArgumentError for draws < 2 or a level outside (0, 1).
    """
    if draws < 2 or not 0 < level < 1:
        raise ArgumentError(f"draws must be ≥ 2 and level in (0, 1); got {draws} and {level}")
    a, b = (part.numpy() for part in _pair(samples, data))
    random = np.random.default_rng(seed)

    def drawn(points: Any) -> Moments:
        return _moments(points, random.multinomial(len(points), np.full(len(points), 1 / len(points))))

    value = _between(_moments(a, np.ones(len(a))), _moments(b, np.ones(len(b))))
    found = np.array([_between(drawn(a), drawn(b)) for _ in range(draws)])
    low, high = np.quantile(found - found.mean(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, max(0.0, value + float(low)), value + float(high))


Moments = tuple[Any, Any]
"""Mean (F,) and covariance (F, F), numpy float64."""


def _moments(points: Any, counts: Any) -> Moments:
    """Of points (n, F), each counted so many times (n,); n in all."""
    mean = counts @ points / len(points)
    away = points - mean
    return mean, (away.T * counts) @ away / (len(points) - 1)


def _between(first: Moments, second: Moments) -> float:
    shift = first[0] - second[0]
    # tr (Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric.
    values, vectors = np.linalg.eigh(first[1])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second[1] @ root).clip(0)).sum()
    return max(0.0, float(shift @ shift + np.trace(first[1]) + np.trace(second[1]) - 2 * cross))


class PrecisionRecall(NamedTuple):
    """precision: share of samples within the data's manifold. recall: share of data within the samples'."""

    precision: float
    recall: float


@full()
def precision_recall(samples: Tensor, data: Tensor, neighbors: int = NEIGHBORS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): the manifold of a set is the union of the balls
    around its points that reach their k-th neighbour."""
    a, b = _pair(samples, data)
    if not isinstance(neighbors, int) or neighbors < 1:
        raise ArgumentError(f"neighbors must be an integer ≥ 1; got {neighbors!r}")
    check_counts(len(a), len(b), neighbors)
    return PrecisionRecall(_covered(a, b, neighbors), _covered(b, a, neighbors))


def _covered(points: Tensor, by: Tensor, neighbors: int) -> float:
    """Share of points (n, F) within a ball of by (m, F), both centred and float64, so that the products of cdist lose nothing."""
    radii = torch.cat([_radii(by, first, neighbors) for first in range(0, len(by), 1024)])
    inside = [(torch.cdist(p, by) <= radii).any(1) for p in points.split(1024)]
    return float(torch.cat(inside).double().mean())


def _radii(by: Tensor, first: int, neighbors: int) -> Tensor:
    """Distance of 1024 points to their k-th neighbour among the others; a point is none of its own."""
    part = by[first : first + 1024]
    distances = torch.cdist(part, by)
    rows = torch.arange(len(part))
    distances[rows, first + rows] = torch.inf
    return distances.kthvalue(neighbors, dim=1).values


def check_inception(channels: int, weights: str | Path | None) -> Any:
    """The package torch-fidelity, where it, its weights and three channels are there: what `inception_metrics` needs, asked before
    anything is drawn.

    Raises: MissingPackageError without the package (the extra `fid`), DataError without the weights or for images that are not in colour.
    """
    if channels != 3:
        raise DataError(f"Inception takes (n, 3, H, W) uint8; got images of {channels} channels")
    if weights is None or not Path(weights).is_file():
        raise DataError(
            f"no Inception weights at {weights}: give the path of pt_inception-2015-12-05-6726825d.pth "
            "(torch-fidelity names its address)"
        )
    return wanted("torch_fidelity", "FID in Inception features needs")


def inception_metrics(
    samples: Tensor,  # (n, 3, H, W) uint8
    data: Tensor,  # (m, 3, H, W) uint8
    weights: str | Path | None,
    cache: str | Path | None = None,
) -> dict[str, float]:
    """FID and Inception score ("fid", "inception_score") through torch-fidelity, with its Inception weights from a local file.

    cache: a folder for the data's statistics, which are then computed once. Raises: as `check_inception`, and DataError for other images.
    """
    torch_fidelity = check_inception(3, weights)
    kept = (
        {}
        if cache is None or not _can_write(Path(cache))
        else {"cache_root": str(cache), "input2_cache_name": f"inception-{digest(data)}"}
    )
    found = torch_fidelity.calculate_metrics(
        input1=_Bytes(samples),
        input2=_Bytes(data),
        fid=True,
        isc=True,
        verbose=False,
        cuda=torch.cuda.is_available(),
        feature_extractor_weights_path=str(weights),
        **kept,
    )
    return {"fid": found["frechet_inception_distance"], "inception_score": found["inception_score_mean"]}


def _can_write(cache: Path) -> bool:
    try:
        writable(cache / "statistics")
    except OSError:
        return False
    return True


class _Bytes(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise DataError(f"Inception takes (n, 3, H, W) uint8; got {tuple(images.shape)}, {images.dtype}")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
