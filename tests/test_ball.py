"""The steps that hold a network's field to the ball of the data: what they never change, and what they mend."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast import data
from pfgm_fast.methods import from_dict
from pfgm_fast.ops.dispatch import status
from pfgm_fast.studies.errors import exact_network
from pfgm_fast.studies.quality import Target

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]
DIGITS = data.load("digits").charges()
DATA = {
    "digits": DIGITS.values(),
    "digits, centred": DIGITS.values() - DIGITS.values().mean(0),
    "far from the origin": DIGITS.values() + 300,
    "a line": torch.linspace(-1, 3, 40)[:, None],
    "plane, one far out": torch.cat([torch.randn(200, 2), torch.tensor([[80.0, -60.0]])]),
    "one charge": torch.randn(1, 3, 4),
    "one charge far out": torch.randn(1, 5) + 1e4,
    "long rows": torch.randn(3, 20_000),
}


def radius_of(charges: Tensor) -> float:
    return float(charges.flatten(1).double().norm(dim=1).max())


def queries(charges: Tensor, z: float) -> Tensor:
    """(12, *shape): around charges, at the distance that the field's lines have at z, and much nearer and farther."""
    rows = charges[torch.arange(12) % len(charges)]
    spread = torch.tensor([1e-2, 1.0, 1.0, 1.0, 1.0, 30.0]).repeat(2).view(-1, *[1] * (rows.dim() - 1))
    return rows + spread * z * torch.randn(rows.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("z", [1e-3, 0.3, 20.0, 1e5, 1e9])
def test_a_true_field_is_never_changed(backend: str, name: str, z: float) -> None:
    charges, radius = DATA[name], radius_of(DATA[name])
    x, z_next = queries(charges, z), 0.3 * z
    rows = x.new_full((12,), z)
    with pf.use_backend(backend):
        v = pf.pfgm_target(x, rows, charges)
        as_is = pf.euler_step(x, *v, z, z_next, z_exp=0)
        v_next = pf.pfgm_target(as_is, 0.3 * rows, charges)
        corrected = pf.heun_step(x, *v, *v_next, z, z_next, z_exp=0)
        drift = pf.drift(*v, z, z_exp=0)
        held = (
            pf.euler_step(x, *v, z, z_next, z_exp=0, radius=radius),
            pf.heun_step(x, *v, *v_next, z, z_next, z_exp=0, radius=radius),
            pf.drift(*v, z, z_exp=0, x=x, radius=radius),
        )
    for got, expected in zip(held, (as_is, corrected, drift), strict=True):
        if backend == "reference":  # z v_x/v_z, then over z: two roundings more
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
        else:
            assert torch.equal(got, expected)


def implied_mean(x: Tensor, v: tuple[Tensor, Tensor], z: float, **ball: float) -> Tensor:
    """(B, N) float64: where the step to z' = 0 ends."""
    return pf.euler_step(x.double(), v[0].double(), v[1].double(), z, 0.0, **ball).flatten(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [0.9, 0.97, 0.99, 1.01, 1.03, 1.1, 2.0, 1e6])
@pytest.mark.parametrize("z", [0.1, 3.0])
def test_the_mean_of_a_wrong_amplitude_is_in_the_ball_and_no_farther_from_the_truth(
    backend: str, factor: float, z: float
) -> None:
    """n off by 1 to 10%, and beyond 1, where the direction is right: below z_exp n alone says how far the data are."""
    charges, radius = DATA["digits"], radius_of(DATA["digits"])
    x = charges[:64] + z * torch.randn(64, *charges.shape[1:])
    with pf.use_backend(backend):
        vx, vz = pf.pfgm_target(x, torch.full((64,), z), charges)
        truth = pf.posterior_mean(x, z, charges).flatten(1).double()
        without = implied_mean(x, (factor * vx, vz), z)
        held = implied_mean(x, (factor * vx, vz), z, radius=radius)
    room = (1 + 2.0**-10) * radius + 2.0**-8.5 * x.flatten(1).norm(dim=1)
    assert bool((held.norm(dim=1) <= room).all())
    moved = (held != without).any(1)
    error, before = (held - truth).norm(dim=1), (without - truth).norm(dim=1)
    assert bool((error[moved] <= before[moved] * 1.001).all())
    if factor == 1e6:
        assert float(before.min()) > 1e3 > 2.1 * radius > float(error.max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_line_that_misses_the_ball_ends_on_its_nearest_point(backend: str) -> None:
    x, vx = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, -0.5]])
    with pf.use_backend(backend):
        held = pf.euler_step(x, vx, -torch.ones(1), 6.0, 0.0, radius=2.0)
    torch.testing.assert_close(held, torch.tensor([[2.0, 0.0]]), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("off", [0.01, -0.01, 0.05, -0.1, 0.1])
def test_networks_whose_length_is_off_sample_in_the_ball(off: float) -> None:
    """Heun with 10 evaluations, the amplitude wrong by a function of x within ±off, which makes n ≥ 1 of 5%."""
    method = pf.PFGM.from_data(DIGITS)
    assert method.data_radius == pytest.approx(radius_of(DATA["digits"]))
    exact = exact_network(method, DIGITS)

    def net(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        vx, vz = exact(x, z)
        return (1 + off * torch.sin(7 * x.flatten(1).sum(1))).view(-1, 1, 1, 1) * vx, vz

    shape, target = (200, *DIGITS.shape), Target(DIGITS)
    drawn = {
        held: pf.sample(net, shape, "heun", 5, method=m, seed=1, denoise=True).x.flatten(1)
        for held, m in ((True, method), (False, replace(method, data_radius=None)))
    }
    assert bool((drawn[True].norm(dim=1) <= 1.01 * method.data_radius).all())
    held = target.quality(drawn[True].view(shape)).excess
    assert held < 0.01
    lost = drawn[False].norm(dim=1) > 3 * method.data_radius
    if abs(off) >= 0.05:
        assert bool(lost.any())
        assert held < 1e-3 * target.quality(drawn[False].view(shape)).excess


def test_a_network_that_says_n_above_one_samples_in_the_ball() -> None:
    method = pf.PFGM.from_data(DIGITS)

    def net(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return x / x.flatten(1).square().mean(1).sqrt().view(-1, 1, 1, 1) * 1.2, -torch.ones_like(z)

    for solver in ("euler", "heun", "rk45"):
        out = pf.sample(net, (8, *DIGITS.shape), solver, 6, method=method, seed=0).x.flatten(1)
        assert bool((out.norm(dim=1) <= 1.05 * method.data_radius).all()), solver


def test_methods_of_earlier_runs_are_not_held_and_the_switch_is_none() -> None:
    old = pf.PFGM.from_data(DIGITS).to_dict()
    radius = old.pop("data_radius")
    assert from_dict(old).data_radius is None
    assert from_dict(old | {"data_radius": radius}).to_dict()["data_radius"] == radius
    assert pf.PFGM.from_data(DIGITS, data_radius=None).radius(64) is None
    assert pf.PFGM(data_radius="box").radius(64) == 8.0
    x, v = torch.randn(2, 64), (2 * torch.randn(2, 64), -torch.ones(2))
    off, on = (m.flow(lambda x, z: v).euler(x, v, 2.0, 1.0) for m in (from_dict(old), pf.PFGM(data_radius=1)))
    assert torch.equal(off, pf.euler_step(x, *v, 2.0, 1.0))
    assert torch.equal(on, pf.euler_step(x, *v, 2.0, 1.0, radius=1.0))
    assert not torch.equal(off, on)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_inside_on_the_line_and_on_the_sphere(backend: str) -> None:
    """Of a row that is left alone, one whose amplitude moves, and one whose line misses the ball."""
    x = torch.tensor([[0.5, 0.2, 0.1], [4.0, 0.3, 0.2], [5.0, 4.0, 0.0]], dtype=torch.float64)
    vx = torch.tensor([[0.1, 0.1, 0.2], [1.1, 0.1, 0.1], [0.2, -1.0, 0.5]], dtype=torch.float64)
    inputs = x.requires_grad_(), vx.requires_grad_(), -torch.ones(3, dtype=torch.float64).requires_grad_()
    with pf.use_backend(backend):
        assert torch.autograd.gradcheck(lambda *a: pf.euler_step(*a, 2.0, 1.0, radius=2.0), inputs)
        assert torch.autograd.gradcheck(lambda x, *v: pf.drift(*v, 2.0, x=x, radius=2.0), inputs)
        assert torch.autograd.gradcheck(lambda x, *v: pf.heun_step(x, *v, *v, 2.0, 1.0, radius=2.0), inputs)


def test_bad_radius() -> None:
    x, v = torch.zeros(2, 3), (torch.zeros(2, 3), -torch.ones(2))
    for radius in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(pf.ArgumentError, match="radius"):
            pf.euler_step(x, *v, 1.0, 0.5, radius=radius)
        with pytest.raises(pf.ArgumentError, match="data_radius"):
            pf.PFGM(data_radius=radius)
    with pytest.raises(pf.ArgumentError, match="x, which a radius needs"):
        pf.drift(*v, 1.0, radius=1.0)
