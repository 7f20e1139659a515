"""The optimal loss: what a perfect network's training loss would be, as a function of σ and D."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfgm_fast import checks
from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import posterior
from pfgm_fast.methods.base import poisson_prior, randn
from pfgm_fast.studies.points import PointFile
from pfgm_fast.studies.weights import effective_charges


@dataclass(frozen=True)
class OptimalLoss:
    """At one σ and D: loss = E‖y − m‖²/N, standard_error of it, effective: the median of 1/Σ w² (None: not asked for) over
    effective_queries of the queries. seconds: it took."""

    sigma: float
    aug_dim: float
    loss: float
    standard_error: float
    effective: float | None
    queries: int
    effective_queries: int = 0
    conditional: bool = False
    seed: int = 0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """What was asked for, of the same data."""
        return _key(
            self.sigma, self.aug_dim, self.queries, self.effective_queries, self.conditional, self.seed
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: D = ∞ is "inf"."""
        return asdict(self) | {"aug_dim": "inf" if math.isinf(self.aug_dim) else self.aug_dim}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OptimalLoss:
        """From `to_dict`'s."""
        return cls(**values | {"aug_dim": float(values["aug_dim"])})


def _key(
    sigma: float, aug_dim: float, queries: int, effective_queries: int, conditional: bool, seed: int
) -> str:
    asked = "per class" if conditional else "all"
    return f"D={aug_dim:g} sigma={sigma!r} {queries}/{effective_queries} queries {asked} seed={seed}"


def perturbed(
    images: Tensor, sigma: float, aug_dim: float, generator: torch.Generator | None = None
) -> Tensor:
    """x (B, *shape) = y + R u at one σ: PFGM++'s perturbation kernel with r = σ√D (arXiv 2302.04265, section 3.2), Gaussian at D = ∞."""
    if math.isinf(aug_dim):
        return images + sigma * randn(*images.shape, like=images, generator=generator)
    r = sigma * math.sqrt(aug_dim)
    shift = poisson_prior(
        tuple(images.shape),
        r,
        aug_dim,
        (0.0, math.inf),
        device=images.device,
        dtype=images.dtype,
        generator=generator,
    )
    return images + shift


@torch.no_grad()
def optimal_loss(
    data: Charges | Tensor,  # (M, *shape)
    sigmas: Sequence[float],
    aug_dims: Sequence[float] = (math.inf,),
    *,
    queries: int = 1024,
    effective_queries: int = 256,
    batch: int = 128,
    conditional: bool = False,
    seed: int = 0,
    progress: bool = False,
    points: PointFile[OptimalLoss] | None = None,
) -> list[OptimalLoss]:
    """E‖y − E[y | x]‖²/N with y drawn from the data and x = y + R u at σ, for each D and σ: the least value that the denoising loss
    of any network can have on these data, hence what is left to learn below a training curve.

    The mean is over `queries` images drawn once, the same for every σ and D (at most M of them, without repetition), with fresh
    perturbations. conditional: each image sees the charges of its own class (the data need labels). The loss that EDM and PFGM++ train,
    (σ² + σ_data²)/(σ σ_data)² ‖D − y‖², is this times that weight. points: a file of these data's, so that what was stopped goes on.

    Raises: ArgumentError for σ ≤ 0, D ≤ 0, charges with weights, conditional without labels.
    """
    charges = as_charges(data)
    if charges.log_weights is not None:
        raise ArgumentError(
            "optimal_loss draws its queries from the data evenly: charges must have no weights"
        )
    if conditional and charges.labels is None:
        raise ArgumentError("conditional needs labels: Charges(data, labels=...)")
    sigmas = [checks.positive("sigma", value) for value in sigmas]
    aug_dims = [checks.aug_dim(value) for value in aug_dims]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(charges), generator=generator)[:queries].to(charges.device)
    noise = torch.Generator(charges.device)
    effective_queries = min(len(rows), -(-effective_queries // batch) * batch)  # whole batches
    results = []
    with tqdm(total=len(sigmas) * len(aug_dims), disable=not progress, unit="point") as bar:
        for aug_dim in aug_dims:
            for sigma in sigmas:

                def measure(sigma: float = sigma, aug_dim: float = aug_dim) -> OptimalLoss:
                    began = time.perf_counter()
                    noise.manual_seed(seed + 1)
                    point = _point(
                        charges, rows, sigma, aug_dim, effective_queries, batch, conditional, noise
                    )
                    return replace(point, seed=seed, seconds=time.perf_counter() - began)

                key = _key(sigma, aug_dim, len(rows), effective_queries, conditional, seed)
                results.append(measure() if points is None else points.get(key, measure)[0])
                bar.update()
    return results


def _point(
    charges: Charges,
    rows: Tensor,
    sigma: float,
    aug_dim: float,
    effective_queries: int,
    batch: int,
    conditional: bool,
    generator: torch.Generator,
) -> OptimalLoss:
    r = sigma * (1.0 if math.isinf(aug_dim) else math.sqrt(aug_dim))
    losses, effective = [], []
    for first, part in zip(range(0, len(rows), batch), rows.split(batch), strict=True):
        images = charges.values(part)
        labels = charges.labels[part] if conditional and charges.labels is not None else None
        x = perturbed(images, sigma, aug_dim, generator)
        mean, partition = posterior(x, r, charges, aug_dim, labels=labels)
        losses.append((images - mean).double().square().flatten(1).mean(1))
        if first < effective_queries:
            effective.append(effective_charges(x, r, charges, aug_dim, labels=labels, partition=partition))
    every = torch.cat(losses)
    spread = float(every.std(correction=1)) / math.sqrt(len(every)) if len(every) > 1 else math.nan
    median = float(torch.cat(effective).median()) if effective else None
    return OptimalLoss(
        sigma, aug_dim, float(every.mean()), spread, median, len(every), effective_queries, conditional
    )


def edm_weight(sigma: float, sigma_data: float) -> float:
    """(σ² + σ_data²)/(σ σ_data)², the weight of EDM's loss (arXiv 2206.00364, table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


__all__ = ["OptimalLoss", "edm_weight", "optimal_loss", "perturbed"]
