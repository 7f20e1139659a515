"""How many charges a query sees: the effective number, and what the k nearest leave out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import log_partition
from pfgm_fast.studies.nearest import nearest_charges


def effective_charges(
    x: Tensor,  # (B, *shape)
    r: Tensor | float,  # (B,), σ√D; σ itself where D = ∞
    charges: Charges | Tensor,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    labels: Tensor | None = None,  # (B,)
    partition: Tensor | None = None,  # (B,)
) -> Tensor:
    """1/Σ_j w_j² (B,) float64, from 1 (one charge is all that a query sees) to M (all alike): Kish's effective sample size.

    Two log-partition functions give it: w_j² are the weights of the exponent N + D instead of (N + D)/2 (D = ∞: of σ/√2), so
    Σ w² = Z(2p)/Z(p)². Nothing of size B × M is kept. partition: log Z(p) where it is known, as `field.posterior` gives it.
    Raises: as `posterior_mean`.
    """
    charges = as_charges(charges)
    dim, aug_dim = charges.dim, checks.aug_dim(aug_dim)
    squared = charges if charges.log_weights is None else charges.reweighted(charges.log_weights.mul(2).exp())
    once = log_partition(x, r, charges, aug_dim, labels=labels) if partition is None else partition
    if math.isinf(aug_dim):
        twice = log_partition(x, r / math.sqrt(2), squared, aug_dim, labels=labels)
    else:
        twice = log_partition(x, r, squared, dim + 2 * aug_dim, labels=labels)
    return (2 * once - twice).exp().clamp(min=1.0)


class Truncated(NamedTuple):
    """mean (B, *shape): the posterior mean over the k nearest charges alone. left_out (B,) float64: the weight of the others, exact.
    bound (B,) float64: no more than this is ‖mean − posterior mean over all‖."""

    mean: Tensor
    left_out: Tensor
    bound: Tensor


def truncated_mean(
    x: Tensor,  # (B, *shape)
    r: Tensor | float,  # (B,), σ√D; σ itself where D = ∞
    charges: Charges | Tensor,  # (M, *shape)
    k: int,
    aug_dim: float = 1.0,
) -> Truncated:
    """The posterior mean of the k nearest charges, as nearest-neighbour indices give it, with its rigorous error.

    m − m_k = W (m_rest − m_k) with W the weight of all other charges, which the log-partition function gives exactly; m_rest lies
    in the charges' hull, so the error is at most W (R + ‖m_k − μ‖), R the largest ‖y − μ‖.

    Raises: ArgumentError for charges with weights (the nearest need not be the heaviest), k outside 1 … M, and as `posterior_mean`.
    """
    charges = as_charges(charges)
    if charges.log_weights is not None:
        raise ArgumentError(
            "truncated_mean takes charges without weights: the nearest need not be the heaviest"
        )
    distance, index = nearest_charges(x, charges, k)
    radius = checks.per_row("r", r, x, positive=True).double()[:, None]
    if math.isinf(checks.aug_dim(aug_dim)):
        logits = -0.5 * (distance / radius).square()
    else:
        logits = -0.5 * (charges.dim + aug_dim) * torch.log1p((distance / radius).square())
    inside = logits.logsumexp(1)
    near = charges.values(index.flatten()).double().view(*index.shape, -1)
    mean = torch.einsum("bk,bkn->bn", logits.softmax(1), near)
    total = log_partition(x, r, charges, aug_dim)
    left_out = -torch.expm1((inside - total).clamp(max=0.0))
    reach = charges.sq_norms.max().sqrt() + (mean - charges.center.double()).norm(dim=1)
    return Truncated(mean.to(x.dtype).view(x.shape), left_out, left_out * reach)
