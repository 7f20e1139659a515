"""Memorisation: are samples copies of the data?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.studies.nearest import nearest_charges

THRESHOLD = 1 / 3
"""A sample is called a copy where its nearest charge is three times nearer than the next (Yoon et al. 2023; arXiv 2310.02664)."""


class Memorization(NamedTuple):
    """ratio (n,): distance to the nearest charge over the distance to the nearest different one, in [0, 1]. nearest (n,): its index.
    distance (n,): to it, Euclidean. copies (n,) bool: ratio < threshold. fraction: of copies."""

    ratio: Tensor
    nearest: Tensor
    distance: Tensor
    copies: Tensor
    fraction: float


def memorization(
    samples: Tensor,  # (n, *shape)
    data: Charges | Tensor,  # (M, *shape)
    threshold: float = THRESHOLD,
) -> Memorization:
    """The literature's test of memorised data: ‖x − y₁‖/‖x − y₂‖ < 1/3, y₁ and y₂ the nearest two *different* training points.

    Duplicates in the data count as one point: the second neighbour is the nearest that is not equal to the first, else a copy of a
    duplicated image would have the ratio 1 and never be found. Exact distances (`nearest_charges`).

    Raises: ArgumentError for samples that are not finite, other shapes, a threshold outside (0, 1], data that are all one point.
    """
    charges = as_charges(data)
    if not 0 < threshold <= 1:
        raise ArgumentError(f"threshold must lie in (0, 1]; got {threshold}")
    if len(charges) < 2:
        raise ArgumentError("memorization compares two neighbours: the data must hold at least two points")
    distance, index = nearest_charges(samples, charges, min(4, len(charges)))
    first = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
    second, nearest = torch.full_like(first, float("nan")), torch.zeros_like(first, dtype=torch.int64)
    rows = torch.arange(len(samples), device=samples.device)
    while len(rows):
        same = _equal_to_first(charges, index)
        first[rows], nearest[rows] = distance[:, 0], index[:, 0]
        settled = ~same.all(1)
        at = (~same).to(torch.int8).argmax(1)
        second[rows[settled]] = distance.gather(1, at[:, None])[settled, 0]
        rows = rows[~settled]
        if len(rows) and index.shape[1] == len(charges):
            raise ArgumentError("all data points are equal: there is no second neighbour")
        if len(rows):
            distance, index = nearest_charges(samples[rows], charges, min(4 * index.shape[1], len(charges)))
    ratio = torch.where(second > 0, first / second, 1.0)
    copies = ratio < threshold
    return Memorization(ratio, nearest, first, copies, float(copies.double().mean()) if len(copies) else 0.0)


def joined(parts: Sequence[Memorization]) -> Memorization:
    """That of all samples, from those of parts of them."""
    ratio, nearest, distance, copies = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("ratio", "nearest", "distance", "copies")
    )
    return Memorization(
        ratio, nearest, distance, copies, float(copies.double().mean()) if len(copies) else 0.0
    )


def _equal_to_first(charges: Charges, index: Tensor) -> Tensor:
    """Which of the neighbours (n, k) hold the same values as the first."""
    stored = charges.flat[index.flatten()].view(*index.shape, -1)
    return (stored == stored[:, :1]).all(2)
