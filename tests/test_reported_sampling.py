"""Symptoms that users of neighbouring projects reported, as they would show in sampling: one test or more for each.

Each row was seen failing at commit 1564364, with these tests run in a worktree of that commit.

| source of the symptom | kind | test |
|---|---|---|
| torchdiffeq #27, #57, #244 | one NaN row ends the batch, a wrong culprit is named | `test_rk45_*` |
| gptorch #22 | a float64 network cannot be sampled | `test_float64_network` |
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.methods import PFGM, VESDE, PFGMpp, SubVPSDE
from pfgm_fast.nn import DDPMpp, UNetConfig
from tests.small_problem import DOUBLE


def _field_net(
    charges: pf.Charges, bad_row: int | None = None, below: float = 1.0
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The target itself as a network; bad_row turns into NaN where z falls below."""

    def net(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        vx, vz = pf.pfgm_target(x, z, charges)
        if bad_row is not None and float(z[0]) < below:
            vx[bad_row] = math.nan
        return vx, vz

    return net


def test_rk45_goes_on_without_a_bad_row() -> None:
    charges = pf.Charges(torch.randn(10, 6))
    x0 = PFGM().prior((4, 6))
    due = pf.sample(_field_net(charges), (4, 6), "rk45", x0=x0).x
    with pytest.warns(RuntimeWarning, match=r"rk45: dx/dt is not finite in 1 of 4 rows at t = 0\.\d+"):
        got = pf.sample(_field_net(charges, bad_row=1), (4, 6), "rk45", x0=x0).x
    assert got[1].isnan().all()
    kept = [0, 2, 3]
    torch.testing.assert_close(got[kept], due[kept], rtol=0, atol=1e-3)


def test_rk45_says_what_the_network_gave() -> None:
    def nothing(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, math.nan), -torch.ones(len(x))

    def huge(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, 1e30), torch.full((len(x),), -1e-30)

    for net in (nothing, huge):
        with pytest.warns(RuntimeWarning, match="not finite in 2 of 2 rows at t = 40: the network's output"):
            assert pf.sample(net, (2, 6), "rk45").x.isnan().all()


def test_rk45_says_where_it_cannot_go_on() -> None:
    """A derivative that is different at every look at it: steps shrink to nothing, and nobody but the flow is blamed."""
    generator = torch.Generator().manual_seed(0)

    def rough(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return 1e6 * torch.randn(x.shape, generator=generator), torch.full((len(x),), -1e-6)

    with pytest.raises(pf.SolverError, match=r"rk45 cannot go on at t = .* with rtol = 1e-09"):
        pf.sample(rough, (2, 6), "rk45", z_max=40.0, z_min=10.0, rtol=1e-9, atol=1e-9)


def test_float64_network() -> None:
    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(1, 4, 8, (1, 2), 1, (2,), dropout=0.0)).double()
    for method in (PFGM(), PFGMpp(), VESDE(), SubVPSDE()):
        for solver in ("euler", "rk45"):
            loose = {"rtol": 0.5, "atol": 0.5} if solver == "rk45" else {}
            out = pf.sample(net, (2, 1, 4, 4), solver, steps=2, method=method, seed=0, **loose)
            assert out.x.dtype == DOUBLE
    assert pf.sample(net.float(), (2, 1, 4, 4), steps=2).x.dtype == torch.float32


def test_no_warnings_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        pf.sample(_field_net(pf.Charges(torch.randn(10, 6))), (2, 6), "rk45")


def test_rk45_that_would_not_end_says_so() -> None:
    def rough(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(1e6 * x) * torch.cos(1e5 * z)[:, None], -torch.ones(len(x))

    with pytest.raises(
        pf.SolverError, match=r"max_nfe = 300 evaluations and stands at t = .*allow larger tolerances"
    ):
        pf.sample(rough, (2, 6), "rk45", max_nfe=300, rtol=1e-8, atol=1e-8, seed=0)
