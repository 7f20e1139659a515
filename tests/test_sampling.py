"""sample(): true-field sampling, evaluations, seeds, paths."""

from __future__ import annotations

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import data
from pfgm_fast.methods import PFGM
from pfgm_fast.nn import DDPMpp, UNetConfig


def _net() -> DDPMpp:
    return DDPMpp(UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.1))


def test_the_true_field_lands_on_training_digits() -> None:
    charges = data.load("digits").charges()
    method = PFGM.from_data(charges)
    out = pf.sample(
        charges, (48, 1, 8, 8), "euler", 200, method=method, generator=torch.Generator().manual_seed(0)
    )
    distance = torch.cdist(out.x.flatten(1), charges.values().flatten(1)).min(1).values
    assert out.nfe == 200
    assert float(distance.median()) <= 0.05


@pytest.mark.parametrize(("solver", "steps", "nfe"), [("euler", 7, 7), ("heun", 7, 13)])
def test_evaluations(solver: str, steps: int, nfe: int) -> None:
    out = pf.sample(_net(), (2, 1, 8, 8), solver, steps)
    assert out.nfe == nfe
    assert out.x.isfinite().all()


def test_rk45_counts_and_converges() -> None:
    """With the true field, tighter tolerances take more evaluations and end closer to a fine Euler solution."""
    charges = pf.Charges(torch.randn(20, 6, dtype=torch.float64))
    x0 = 20 * torch.randn(5, 6, dtype=torch.float64)
    fine = pf.sample(charges, (5, 6), "heun", 4000, z_min=0.5, x0=x0).x
    loose = pf.sample(charges, (5, 6), "rk45", z_min=0.5, x0=x0, rtol=1e-3, atol=1e-3)
    tight = pf.sample(charges, (5, 6), "rk45", z_min=0.5, x0=x0, rtol=1e-8, atol=1e-8)
    assert tight.nfe > loose.nfe > 10
    assert (tight.x - fine).abs().max() < 1e-4 < (loose.x - fine).abs().max() + 1e-4


def test_seeds_paths_and_modes() -> None:
    net = _net().train()
    draws = [
        pf.sample(net, (3, 1, 8, 8), steps=4, generator=torch.Generator().manual_seed(5), record=True)
        for _ in range(2)
    ]
    assert torch.equal(draws[0].x, draws[1].x)  # dropout is off meanwhile
    assert net.training  # and the mode comes back
    assert draws[0].path[0][0] == 40.0
    assert len(draws[0].path) == 5
    assert torch.equal(draws[0].path[-1][1], draws[0].x)


def test_x0_is_used_and_not_changed() -> None:
    x0 = torch.randn(2, 5) * 30
    before = x0.clone()
    charges = pf.Charges(torch.randn(9, 5))
    assert torch.equal(
        pf.sample(charges, (2, 5), steps=3, x0=x0).x, pf.sample(charges, (2, 5), steps=3, x0=x0).x
    )
    assert torch.equal(x0, before)


def test_labels_draw_from_their_class() -> None:
    y = torch.cat([torch.randn(30, 4) - 20, torch.randn(30, 4) + 20])
    charges = pf.Charges(y, labels=torch.arange(60) // 30)
    wanted = torch.tensor([0, 1, 1, 0, 1])
    out = pf.sample(charges, (5, 4), steps=60, labels=wanted, generator=torch.Generator().manual_seed(0))
    assert torch.equal((out.x.mean(1) > 0).long(), wanted)
