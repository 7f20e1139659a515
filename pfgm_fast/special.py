"""Special functions where the library's own would cancel."""

from __future__ import annotations

import math


def radius_scale(aug_dim: float) -> float:
    """r/σ = √D (PFGM++, arXiv 2302.04265, section 4); 1 where D is infinite, where the field's functions take σ itself as r."""
    return 1.0 if math.isinf(aug_dim) else math.sqrt(aug_dim)


_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
"""B_2k/(2k (2k − 1)), k = 1..7: the coefficients of z^(1 − 2k) in log Γ(z)'s asymptotic series (DLMF 5.11.1)."""

_LARGE = 16.0
"""From here on the series' first neglected term, 3617/122400 z^(−15), is below 3e-20."""


def _stirling(z: float) -> float:
    """log Γ(z) − (z − ½) log z + z − ½ log 2π for z ≥ 16."""
    inverse_square = 1 / (z * z)
    total = 0.0
    for coefficient in reversed(_STIRLING):
        total = total * inverse_square + coefficient
    return total / z


def log_gamma_ratio(b: float, a: float) -> float:
    """log Γ(b + a) − log Γ(b) for b > 0, a ≥ 0, to a few roundings of the result: two `lgamma` lose log₁₀ b digits.

    For b ≥ 16: a log b + (b + a − ½) log1p(a/b) − a, and the difference of Stirling's series (DLMF 5.11.1).
    """
    if b < _LARGE:
        return math.lgamma(b + a) - math.lgamma(b)
    return a * math.log(b) + _growth(b, a) + (_stirling(b + a) - _stirling(b))


def _growth(b: float, a: float) -> float:
    """(b + a − ½) log1p(a/b) − a; where a/b is small its leading terms cancel and b drops out: a series in a/b."""
    ratio = a / b
    if ratio > 1e-3:
        return (b + a - 0.5) * math.log1p(ratio) - a
    # (b + a) log1p(a/b) − a = a Σ_k (−1)^(k + 1) (a/b)^k/(k (k + 1)), k ≥ 1
    series = sum((-1) ** (k + 1) * ratio**k / (k * (k + 1)) for k in range(1, 7))
    return a * series - 0.5 * math.log1p(ratio)
