"""How far samples are from the data's distribution, exactly where it can be: the data are the target, not a second sample of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.studies.nearest import nearest_charges

_BLOCK = 2048


def _mean_distance(a: Tensor, b: Tensor) -> float:
    """The mean of ‖a_i − b_j‖ over all pairs, rows of float32; products give the squares, sums are float64."""
    total = 0.0
    for part in a.split(_BLOCK):
        for other in b.split(_BLOCK):
            total += float(torch.cdist(part, other, compute_mode="use_mm_for_euclid_dist").double().sum())
    return total / (len(a) * len(b))


@dataclass(frozen=True)
class Quality:
    """excess: the energy distance over E‖Y − Y'‖, unbiased, so that it is about 0 (either side) for perfect samples; error: its root
    (0 where it is negative), linear in small deviations. residual: root mean square over samples and elements of the distance to the
    nearest charge. chi_square, p_value: of the counts of the groups of charges that the
    samples hit, None where fewer than five samples are expected in a group."""

    excess: float
    error: float
    residual: float
    chi_square: float | None
    p_value: float | None


class Target:
    """A data set (M, *shape) as the distribution that samples should have: each charge with the same probability.

    Its distances and its groups are made once. groups: equal parts of the charges along their two principal axes, for the chi-square
    of which parts the samples hit (at least five samples are expected in each).
    """

    def __init__(self, charges: Charges, groups: int = 49, most: int = 10_000) -> None:
        if charges.log_weights is not None:
            raise ArgumentError("the target takes charges without weights")
        self.charges = charges
        step = max(1, len(charges) // most)
        # Of more charges an even selection stands for all, in the distances alone.
        self.points = charges.values(slice(0, None, step)).flatten(1).float()
        self.spread = _mean_distance(self.points, self.points)
        self.group = _groups(self._places(), max(2, math.isqrt(groups)))

    def _places(self) -> Tensor:
        """(M, 2): all charges along the two principal axes of `points`."""
        mean = self.points.mean(0)
        with torch.random.fork_rng(devices=[]):  # the method is randomised
            torch.manual_seed(0)
            _, _, axes = torch.pca_lowrank(self.points - mean, min(2, self.points.shape[1]), center=False)
        parts = (self.charges.values(part).flatten(1).float() for part in self.charges.blocks())
        return torch.cat([(part - mean) @ axes for part in parts])

    def quality(self, samples: Tensor) -> Quality:
        """Of samples (n, *shape), finite, n ≥ 2. Raises: ArgumentError for samples that are not finite."""
        flat = samples.flatten(1).float()
        if len(flat) < 2 or not bool(flat.isfinite().all()):
            raise ArgumentError("quality needs at least two samples, all finite")
        within = _mean_distance(flat, flat) * len(flat) / (len(flat) - 1)
        excess = (2 * _mean_distance(flat, self.points) - within - self.spread) / self.spread
        distance, index = nearest_charges(samples, self.charges, 1)
        residual = float((distance.square().mean() / flat.shape[1]).sqrt())
        hits = torch.bincount(self.group[index[:, 0]], minlength=int(self.group.max()) + 1).double()
        share = torch.bincount(self.group).double() / len(self.group)
        chi = p_value = None
        if len(share) > 1 and bool((share * len(flat) >= 5).all()):
            found = stats.chisquare(hits.numpy(), (share * len(flat)).numpy())
            chi, p_value = float(found.statistic), float(found.pvalue)
        return Quality(excess, math.sqrt(max(0.0, excess)), residual, chi, p_value)

    def floor(self, count: int, repeats: int = 8, seed: int = 0) -> list[float]:
        """The excess of `count` perfect samples, drawn from the charges themselves, several times."""
        generator = torch.Generator().manual_seed(seed)
        out = []
        for _ in range(repeats):
            rows = torch.randint(len(self.charges), (count,), generator=generator)
            drawn = self.charges.values(rows).flatten(1).float()
            within = _mean_distance(drawn, drawn) * count / (count - 1)
            out.append((2 * _mean_distance(drawn, self.points) - within - self.spread) / self.spread)
        return out


def _groups(place: Tensor, side: int) -> Tensor:
    """(M,) int64: side × side groups of equal size of places (M, 2): quantiles of the first axis and, within each, of the second."""
    first = place[:, 0].argsort().argsort() * side // len(place)
    group = torch.zeros_like(first)
    for k in range(side):
        rows = (first == k).nonzero().flatten()
        along = place[rows, -1].argsort().argsort() * side // max(1, len(rows))
        group[rows] = k * side + along
    return group
