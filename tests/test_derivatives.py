"""Score and divergence against what they are the closed forms of: finite differences, autograd's Jacobian, the flow."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.ops.dispatch import status

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]
DOUBLE = torch.float64


def _problem(dim: int) -> tuple[torch.Tensor, torch.Tensor, pf.Charges]:
    charges = pf.Charges(torch.randn(9, dim, dtype=DOUBLE), torch.rand(9) + 0.2)
    return torch.randn(4, dim, dtype=DOUBLE), torch.rand(4, dtype=DOUBLE) + 0.3, charges


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aug_dim", [0.5, 1.0, 6.0, math.inf])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_score_is_the_slope_of_log_density(backend: str, aug_dim: float, dim: int) -> None:
    x, r, charges = _problem(dim)
    h = 1e-5
    with pf.use_backend(backend):
        score = pf.score(x, r, charges, aug_dim)
        for k in range(dim):
            step = torch.zeros(dim, dtype=DOUBLE)
            step[k] = h
            rise = pf.log_density(x + step, r, charges, aug_dim) - pf.log_density(
                x - step, r, charges, aug_dim
            )
            torch.testing.assert_close(score[:, k], rise / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aug_dim", [0.5, 1.0, 6.0, math.inf])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_divergence_is_the_trace_of_the_jacobian(backend: str, aug_dim: float, dim: int) -> None:
    x, r, charges = _problem(dim)

    def field(row: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """x − m by the formula itself, for autograd."""
        squares = (charges.values() - row).square().sum(1)
        logits = (
            -squares / (2 * radius**2)
            if math.isinf(aug_dim)
            else -0.5 * (dim + aug_dim) * (squares + radius**2).log()
        )
        return row - torch.softmax(logits + charges.log_weights, 0) @ charges.values()

    expected = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda row, i=i: field(row, r[i]), x[i]).trace()
            for i in range(len(x))
        ]
    )
    with pf.use_backend(backend):
        divergence = pf.field_divergence(x, r, charges, aug_dim)
    torch.testing.assert_close(divergence, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_of_the_pfgm_drift(backend: str) -> None:
    """The ODE of PFGM, dx/dz = v_x/v_z (eq. 6), is (x − m)/z whatever γ is: its divergence is the field's over z."""
    x, z, charges = _problem(5)
    h = 1e-5
    with pf.use_backend(backend):
        expected = pf.field_divergence(x, z, charges) / z
        total = torch.zeros(len(x), dtype=DOUBLE)
        for k in range(5):
            slopes = []
            for sign in (1, -1):
                moved = x.clone()
                moved[:, k] += sign * h
                vx, vz = pf.pfgm_target(moved, z, charges)
                slopes.append(vx[:, k] / vz)
            total += (slopes[0] - slopes[1]) / (2 * h)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
