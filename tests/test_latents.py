"""Latents: encoding, round trips, interpolation, temperature, classes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.latents import encode, interpolate, round_trip
from pfgm_fast.methods import PFGM, VESDE, VPSDE, PFGMpp
from pfgm_fast.nn import DDPMpp, UNetConfig


def ring() -> pf.Charges:
    return pf.Charges(torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))


METHODS = [
    PFGM(z_max=40.0, z_min=0.3),
    PFGMpp(aug_dim=3.0, sigma_min=0.2),
    VESDE(sigma_min=0.2, sigma_max=30.0),
    VPSDE(t_min=0.05),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_data_to_prior_to_data(method) -> None:
    """The flow of the true field is undone to the solver's tolerance; the latents are those of the path that was taken."""
    x = ring().values(slice(0, 6)) + 0.2 * torch.randn(6, 5, dtype=torch.float64)
    found = round_trip(ring(), x, method, rtol=1e-8, atol=1e-8)
    assert found.error.shape == (6,)
    assert float(found.error.max()) < 1e-4
    loose = round_trip(ring(), x, method, rtol=1e-3, atol=1e-3)
    assert float(loose.error.max()) > float(found.error.max())
    assert found.nfe > loose.nfe > 20


def test_prior_to_data_to_prior() -> None:
    method, charges = PFGM(z_max=40.0, z_min=0.3), ring()
    x0 = method.prior((6, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.2
    out = pf.sample(charges, (6, 5), "rk45", method=method, x0=x0, rtol=1e-9, atol=1e-9)
    back = encode(charges, out.x, method, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.x, x0, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("solver", "nfe"), [("euler", 100), ("heun", 200)])
def test_fixed_grids_run_backwards_too(solver: str, nfe: int) -> None:
    x, method = ring().values(slice(0, 4)) + 0.3, PFGM(z_max=40.0, z_min=0.3)
    fine = encode(ring(), x, method, rtol=1e-8, atol=1e-8)
    coarse = encode(ring(), x, method, solver=solver, steps=100)
    assert coarse.nfe == nfe
    error = float((coarse.x - fine.x).norm() / fine.x.norm())
    finer = encode(ring(), x, method, solver=solver, steps=200)
    assert error < (0.1 if solver == "euler" else 0.005)
    assert float((finer.x - fine.x).norm() / fine.x.norm()) < error * (0.6 if solver == "euler" else 0.35)
    with pytest.raises(pf.ArgumentError, match="is stochastic"):
        encode(ring(), x, method, solver="reverse_diffusion")


def test_a_network_in_float32_goes_there_and_back() -> None:
    torch.manual_seed(1)  # v_z of some untrained networks comes near 0, where dx/dz has no bound
    net = DDPMpp(UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.5)).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    found = round_trip(net, x, PFGM(z_max=20.0, z_min=6.0), rtol=1e-5, atol=1e-5)
    assert float(found.error.max()) < 1e-2
    assert found.latents.dtype == torch.float32
    assert net.training


def test_interpolation_turns_evenly_and_keeps_norms_between() -> None:
    a, b = 3 * torch.randn(4, 2, 9), 50 * torch.randn(4, 2, 9)
    way = interpolate(a, b, 7)
    assert way.shape == (7, 4, 2, 9)
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    flat = way.flatten(2).double()
    norms = flat.norm(dim=2)
    ratios = norms[1:] / norms[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-5, atol=0)
    unit = flat / norms[..., None]
    angles = (unit[1:] * unit[:-1]).sum(2).clamp(-1, 1).acos()
    torch.testing.assert_close(angles, angles[:1].expand_as(angles), rtol=1e-4, atol=1e-5)


def test_interpolation_of_parallel_and_opposite_latents_is_finite() -> None:
    a = torch.randn(2, 6)
    torch.testing.assert_close(interpolate(a, 4 * a, 3)[1], 2 * a)
    assert interpolate(a, -a, 5).isfinite().all()
    with pytest.raises(pf.ArgumentError, match="norm zero"):
        interpolate(a, torch.zeros_like(a), 3)
    with pytest.raises(pf.ArgumentError, match="count must be"):
        interpolate(a, a, 1)


def test_temperature_scales_the_start() -> None:
    """Of one charge the flow is x/z = const: samples scale with the prior."""
    lone = pf.Charges(torch.zeros(1, 4, dtype=torch.float64))
    draws = [
        pf.sample(lone, (5, 4), steps=5, temperature=t, generator=torch.Generator().manual_seed(0)).x
        for t in (1.0, 0.5)
    ]
    torch.testing.assert_close(draws[1], 0.5 * draws[0])
    with pytest.raises(pf.ArgumentError, match="temperature must be"):
        pf.sample(lone, (5, 4), temperature=0.0)
    spread = [
        pf.sample(
            ring(), (200, 5), steps=40, temperature=t, generator=torch.Generator().manual_seed(0)
        ).x.std()
        for t in (1.0, 0.05)
    ]
    assert float(spread[1]) < 0.8 * float(spread[0])


@pytest.mark.slow
def test_conditional_training_and_sampling_end_to_end(tmp_path) -> None:
    """A small network learns three classes of digits with their labels; a classifier finds in its samples the labels asked for."""
    from pfgm_fast.data import load
    from pfgm_fast.metrics.features import accuracy, train_classifier
    from pfgm_fast.training import RunConfig, TrainConfig, Trainer

    digits = load("digits")
    few = digits.select((digits.labels < 3).nonzero().flatten())
    train = TrainConfig(
        steps=220,
        batch=96,
        lr=2e-3,
        warmup=20,
        decay=0.4,
        ema=(0.97,),
        flip=False,
        conditional=True,
        sample_every=0,
        checkpoint_every=1000,
    )
    network = UNetConfig(1, 8, 16, (1, 2), 1, (4,), dropout=0.0, classes=3)
    trainer = Trainer(RunConfig("digits", network=network, train=train), tmp_path, images=few)
    trainer.run(progress=False)
    classifier = train_classifier(few, epochs=8)
    assert accuracy(classifier, few) > 0.98
    labels = torch.arange(96) % 3
    out = pf.sample(
        trainer.ema_network(),
        (96, 1, 8, 8),
        "euler",
        40,
        method=trainer.method,
        labels=labels,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        found = classifier(out.x.clamp(-1, 1)).argmax(1)
    assert float((found == labels).float().mean()) > 0.8
    swapped = pf.sample(
        trainer.ema_network(),
        (96, 1, 8, 8),
        "euler",
        40,
        method=replace(trainer.method),
        labels=(labels + 1) % 3,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():  # the very same starts, other labels: other digits
        found = classifier(swapped.x.clamp(-1, 1)).argmax(1)
    assert float((found == (labels + 1) % 3).float().mean()) > 0.8
    assert math.isfinite(float(out.x.abs().max()))
