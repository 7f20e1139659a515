"""The constants of the densities against mpmath, from D = 1e-3 to the Gaussian limit."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.methods.base import poisson_prior_log_density
from pfgm_fast.special import log_gamma_ratio

DIMS = (1, 2, 3, 784, 3072, 196608)
AUG_DIMS = (1e-3, 0.5, 1.0, 2.5, 15.9, 31.9, 32.0, 33.0, 128.0, 2048.0, 1e6, 1e9, 1e12, 1e15, 1e20)


def _kernel_at_zero(dim: int, aug_dim: float, r: float) -> mpmath.mpf:
    """log of Γ((N + D)/2)/(Γ(D/2) π^(N/2) r^N), with 160 digits."""
    n, d = mpmath.mpf(dim) / 2, mpmath.mpf(aug_dim) / 2
    return mpmath.loggamma(n + d) - mpmath.loggamma(d) - n * mpmath.log(mpmath.pi) - dim * mpmath.log(r)


@pytest.mark.parametrize("dim", DIMS)
def test_ratio_of_gamma_functions(dim: int) -> None:
    with mpmath.workdps(160):
        for b in (*(d / 2 for d in AUG_DIMS), 15.999999, 16.0, 1e25, 1e60):
            true = mpmath.loggamma(mpmath.mpf(b) + mpmath.mpf(dim) / 2) - mpmath.loggamma(b)
            assert abs(log_gamma_ratio(b, dim / 2) - true) <= 1e-13 * abs(true), b


@pytest.mark.parametrize("dim", DIMS[:-1])
def test_density_on_a_lone_charge(dim: int) -> None:
    """At x = y the density is the kernel's constant alone. r = σ√D, so that the limit exists."""
    y = torch.zeros(1, dim, dtype=torch.float64)
    with mpmath.workdps(160):
        for aug_dim in AUG_DIMS:
            r = 0.5 * math.sqrt(aug_dim)
            true = _kernel_at_zero(dim, aug_dim, r)
            assert abs(float(pf.log_density(y, r, y, aug_dim)) - true) <= 1e-9 * (1 + abs(true)), aug_dim
            prior = float(poisson_prior_log_density(y, r, aug_dim))
            assert abs(prior - true) <= 1e-9 * (1 + abs(true)), aug_dim


def test_density_goes_to_the_gaussian() -> None:
    """Away from the charges too: the difference falls as 1/D, until nothing but rounding is left."""
    charges = pf.Charges(torch.rand(20, 3072, dtype=torch.float64))
    x = charges.values(slice(0, 2)) + 0.1
    limit = pf.log_density(x, 0.5, charges, math.inf)
    for aug_dim, bound in ((1e9, 1e-2), (1e12, 1e-5), (1e15, 1e-8), (1e18, 1e-8)):
        got = pf.log_density(x, 0.5 * math.sqrt(aug_dim), charges, aug_dim)
        assert (got - limit).abs().max() <= bound, aug_dim
