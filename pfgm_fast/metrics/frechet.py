"""Distances between sets of features (n, F): Fréchet, precision and recall; and Inception's, through torch-fidelity."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfgm_fast.errors import ArgumentError, DataError
from pfgm_fast.metrics.features import digest


def _pair(samples: Tensor, data: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if samples.dim() != 2 or data.dim() != 2 or samples.shape[1] != data.shape[1]:
        raise ArgumentError(
            f"features must be (n, F) and (m, F); got {tuple(samples.shape)} and {tuple(data.shape)}"
        )
    if min(len(samples), len(data)) < 2:
        raise ArgumentError("at least two feature vectors of each kind are needed")
    return samples.double().numpy(), data.double().numpy()


def frechet_distance(samples: Tensor, data: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) ≥ 0 of the Gaussians with the sets' moments (Heusel et al. 2017).

    Biased upwards for few samples: compare only figures of equal numbers of samples.
    """
    a, b = _pair(samples, data)
    shift = a.mean(0) - b.mean(0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric.
    values, vectors = np.linalg.eigh(np.atleast_2d(first))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ np.atleast_2d(second) @ root).clip(0)).sum()
    return max(
        0.0,
        float(shift @ shift + np.trace(np.atleast_2d(first)) + np.trace(np.atleast_2d(second)) - 2 * cross),
    )


class PrecisionRecall(NamedTuple):
    """precision: share of samples within the data's manifold. recall: share of data within the samples'."""

    precision: float
    recall: float


def precision_recall(samples: Tensor, data: Tensor, neighbors: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): the manifold of a set is the union of the balls
    around its points that reach their k-th neighbour."""
    _pair(samples, data)
    if not 0 < neighbors < min(len(samples), len(data)):
        raise ArgumentError(f"neighbors must be ≥ 1 and below the sizes of both sets; got {neighbors}")
    return PrecisionRecall(_covered(samples, data, neighbors), _covered(data, samples, neighbors))


def _covered(points: Tensor, by: Tensor, neighbors: int) -> float:
    radii = torch.cat([torch.cdist(p, by).kthvalue(neighbors + 1, dim=1).values for p in by.split(1024)])
    inside = [(torch.cdist(p, by) <= radii).any(1) for p in points.split(1024)]
    return float(torch.cat(inside).float().mean())


def inception_metrics(
    samples: Tensor,  # (n, 3, H, W) uint8
    data: Tensor,  # (m, 3, H, W) uint8
    weights: str | Path | None,
    cache: str | Path | None = None,
) -> dict[str, float]:
    """FID and Inception score ("fid", "inception_score") through torch-fidelity, with its Inception weights from a local file.

    cache: a folder for the data's statistics, which are then computed once. Raises: DataError naming what is missing: the package, or the weights.
    """
    try:
        import torch_fidelity
    except ImportError as error:
        raise DataError(
            "FID in Inception features needs the package torch-fidelity: pip install torch-fidelity; "
            "without it, `pfgm-fast evaluate` reports FID in the features of its own classifier"
        ) from error
    if weights is None or not Path(weights).is_file():
        raise DataError(
            f"no Inception weights at {weights}: give the path of pt_inception-2015-12-05-6726825d.pth "
            "(torch-fidelity names its address)"
        )
    kept = (
        {} if cache is None else {"cache_root": str(cache), "input2_cache_name": f"inception-{digest(data)}"}
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


class _Bytes(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise DataError(f"Inception takes (n, 3, H, W) uint8; got {tuple(images.shape)}, {images.dtype}")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
