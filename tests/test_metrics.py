"""Metrics against known answers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pfgm_fast.metrics import energy_distance, nearest_neighbors, sliced_wasserstein


def test_energy_distance_in_one_dimension_is_scipys() -> None:
    """scipy's is the square root of twice the integral of (F − G)²: its square is ours."""
    a, b = torch.randn(300, 1), torch.randn(200, 1) * 1.3 + 0.4
    expected = stats.energy_distance(a.flatten().numpy(), b.flatten().numpy()) ** 2
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_energy_distance_is_zero_for_the_same_set_and_falls_with_its_size() -> None:
    x = torch.randn(500, 2, 3)
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-9)
    near, far = torch.randn(500, 2, 3), torch.randn(500, 2, 3) + 0.5
    assert 0 < energy_distance(near, x) < 0.03 < energy_distance(far, x)


def test_nearest_neighbors_tell_copies_from_samples() -> None:
    data = torch.randn(400, 5)
    copies = nearest_neighbors(data[:50] + 1e-4, data)
    assert copies.nearest.tolist() == list(range(50))
    assert copies.ratio < 0.01
    fresh = nearest_neighbors(torch.randn(400, 5), data)
    assert fresh.ratio == pytest.approx(1.0, abs=0.15)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by s moves every projection by s·u; the mean of |u_1| on the sphere in N dimensions is known."""
    x = torch.randn(4000, 4)
    shifted = x + torch.tensor([2.0, 0, 0, 0])
    mean_abs = math.gamma(2) / (math.sqrt(math.pi) * math.gamma(2.5))
    got = sliced_wasserstein(shifted, x, 4000, torch.Generator().manual_seed(0))
    assert got == pytest.approx(2 * mean_abs, rel=0.03)
