"""What may stand for a network: (v_x, v_z), one tensor, a denoiser, the true field; what is refused, and with which words."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pfgm_fast as pf
from pfgm_fast.methods.pfgm import implied_vz

Y = torch.randn(14, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
CHARGES = pf.Charges(Y)
SHAPE = (5, 3, 4)

METHODS = {
    "pfgm": (pf.PFGM(), 1.0),
    "pfgmpp-1": (pf.PFGMpp(1.0), 1.0),
    "pfgmpp-64": (pf.PFGMpp(64.0), 64.0),
    "edm": (pf.EDM(), math.inf),
    "ve": (pf.VESDE(), math.inf),
    "vp": (pf.VPSDE(), math.inf),
    "subvp": (pf.SubVPSDE(), math.inf),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_denoiser_samples_as_the_field_does(name: str) -> None:
    """D(x; σ) of every method's D is one way of writing its flow; by `IdealDenoiser` and by any function in `Denoiser`."""
    method, aug_dim = METHODS[name]
    ideal = pf.IdealDenoiser(CHARGES, aug_dim)
    settings = {"solver": "heun", "steps": 15, "method": method, "seed": 2, "denoise": False}
    expected = pf.sample(CHARGES, SHAPE, **settings).x
    x0 = pf.sample(CHARGES, SHAPE, record=True, **settings).path[0][1]
    for net in (ideal, pf.Denoiser(lambda x, sigma: ideal(x, sigma))):
        out = pf.sample(net, SHAPE, x0=x0, **{k: v for k, v in settings.items() if k != "seed"})
        torch.testing.assert_close(out.x, expected, rtol=1e-6, atol=1e-6)


def test_a_denoiser_chooses_the_method() -> None:
    """Without a method: PFGM++ of its own D; within its own σ, with the method too."""
    net = pf.Denoiser(lambda x, sigma: 0 * x, sigma_min=0.02, sigma_max=50.0, aug_dim=32.0)
    path = pf.sample(net, SHAPE, steps=6, seed=0, record=True).path
    assert [path[0][0], path[-2][0], path[-1][0]] == [50.0, 0.02, 0.0]
    start = pf.PFGMpp(32.0, sigma_max=50.0).prior((1, 3, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(path[0][1][:1], start)
    given = pf.sample(net, SHAPE, steps=6, seed=0, record=True, method=pf.PFGMpp(32.0, sigma_max=10.0)).path
    assert [given[0][0], given[-2][0]] == [10.0, 0.02]
    with pytest.warns(UserWarning, match=r"of D = 32, the prior of 'edm' of D = inf"):
        pf.sample(net, SHAPE, steps=2, method=pf.EDM())


def test_aug_dim_alone_is_pfgmpp() -> None:
    for aug_dim in (1.0, 16.0, math.inf):
        one = pf.sample(CHARGES, SHAPE, steps=8, seed=0, aug_dim=aug_dim).x
        other = pf.sample(CHARGES, SHAPE, steps=8, seed=0, method=pf.PFGMpp(aug_dim)).x
        assert torch.equal(one, other)
    out = pf.sample(CHARGES, SHAPE, steps=8, seed=0, method=pf.PFGMpp(3.0), aug_dim=16.0).x
    assert torch.equal(out, pf.sample(CHARGES, SHAPE, steps=8, seed=0, aug_dim=16.0).x)
    with pytest.raises(pf.ArgumentError, match="aug_dim \\(D\\) belongs to PFGMpp; the method is 'vp'"):
        pf.sample(CHARGES, SHAPE, method=pf.VPSDE(), aug_dim=2.0)
    with pytest.raises(pf.ArgumentError, match="aug_dim"):
        pf.sample(CHARGES, SHAPE, aug_dim=-1.0)


def test_the_device_is_the_nets() -> None:
    assert pf.sample(CHARGES, SHAPE, steps=2, device="cpu").x.device.type == "cpu"
    assert pf.sample(lambda x, z: (x, z), SHAPE, steps=2, device="cpu").x.device.type == "cpu"
    for net in (CHARGES, nn.Linear(4, 4)):
        with pytest.raises(pf.ArgumentError, match="net is on cpu, not on device meta"):
            pf.sample(net, SHAPE, device="meta")
    with pytest.raises(pf.ArgumentError, match="device 'nonsense'"):
        pf.sample(CHARGES, SHAPE, device="nonsense")


def test_v_x_alone_is_enough_for_pfgm() -> None:
    """v_z follows from ‖v_x‖: to rounding for the true field, near and far."""
    x = 3 * torch.randn(5, 3, 4, dtype=torch.float64)
    for z in (1e-3, 0.3, 4.0, 200.0):
        vx, vz = pf.pfgm_target(x, z, CHARGES)
        torch.testing.assert_close(implied_vz(vx, x.new_full((5,), z), 5.0), vz, rtol=1e-9, atol=0)
    n_above_one = implied_vz(10 * torch.ones(2, 12), torch.ones(2), 5.0)
    assert bool((n_above_one.isfinite() & (n_above_one < 0)).all())

    method, x0 = pf.PFGM(z_exp=0.0), 40 * torch.randn(5, 3, 4, dtype=torch.float64)
    alone = pf.sample(lambda x, z: pf.pfgm_target(x, z, CHARGES)[0], SHAPE, steps=20, method=method, x0=x0)
    both = pf.sample(lambda x, z: pf.pfgm_target(x, z, CHARGES), SHAPE, steps=20, method=method, x0=x0)
    torch.testing.assert_close(alone.x, both.x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["edm", "ve", "pfgm"])
def test_outputs_of_other_libraries(name: str) -> None:
    """A tensor, a tuple of one, an object with `.sample`: the same samples."""
    method, _ = METHODS[name]
    outs = [
        pf.sample(lambda x, c, wrap=wrap: wrap(0.1 * x), SHAPE, steps=4, method=method, seed=0).x
        for wrap in (lambda v: v, lambda v: (v,), lambda v: SimpleNamespace(sample=v))
    ]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("net", "said"),
    [
        (lambda x, c: (x[:, :1], c), "returned \\(5, 1, 4\\) and \\(5,\\) for x \\(5, 3, 4\\)"),
        (lambda x, c: (x, x), "returned \\(5, 3, 4\\) and \\(5, 3, 4\\)"),
        (lambda x, c: {"v": x}, "returned dict"),
        (lambda x, c: None, "returned NoneType"),
        (lambda x: x, "too many positional arguments"),
        (lambda x, c, needed: x, "missing a required argument: 'needed'"),
    ],
)
def test_a_broken_contract_is_named(name: str, net, said: str) -> None:
    with pytest.raises(pf.ArgumentError, match=said) as caught:
        pf.sample(net, SHAPE, steps=2, method=METHODS[name][0])
    assert "a network is called as net(x (B, *shape), condition (B,)[, labels])" in str(caught.value)
    assert "pf.Denoiser(net)" in str(caught.value)


class Net(nn.Module):
    """Tells what it was given; float32."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(-0.1))
        self.seen: list[tuple] = []

    def forward(self, x, condition, labels=None):
        self.seen.append((x.dtype, condition.clone(), labels))
        return self.factor * x


@pytest.mark.parametrize("name", METHODS)
def test_a_float32_network_in_float64_steps(name: str) -> None:
    net, x0 = Net(), torch.randn(SHAPE, dtype=torch.float64)
    for solver in ("heun", "dpm_solver++", "rk45"):
        out = pf.sample(net, SHAPE, solver, 3, method=METHODS[name][0], x0=x0)
        assert out.x.dtype == torch.float64
    assert {dtype for dtype, *_ in net.seen} == {torch.float32}


@pytest.mark.parametrize("labels", [torch.arange(5), torch.eye(5)])
def test_labels_reach_the_network_as_given(labels: torch.Tensor) -> None:
    net = Net()
    pf.sample(net, SHAPE, steps=2, method=pf.EDM(), labels=labels)
    assert all(torch.equal(given, labels) for *_, given in net.seen)
    net.seen.clear()
    pf.sample(net, SHAPE, steps=1, method=pf.EDM(), labels=labels, guidance=2.0)
    assert [given is None for *_, given in net.seen] == [False, True]
    if labels.dim() == 1:
        net.seen.clear()
        pf.sample(net, SHAPE, steps=1, method=pf.EDM(), labels=labels, guidance=2.0, null_label=9)
        assert net.seen[1][2].tolist() == [9] * 5


def test_the_condition_is_what_the_documents_say() -> None:
    """EDM's networks are given ln(σ)/4, VE's and VP's 999 t, PFGM's z."""
    for method, times in (
        (pf.EDM(), lambda t: math.log(t) / 4),
        (pf.PFGMpp(c_noise_scale=250.0), lambda t: 250 * math.log(t)),
        (pf.VPSDE(), lambda t: 999 * t),
        (pf.PFGM(), lambda t: t),
    ):
        net = Net()
        path = pf.sample(net, SHAPE, steps=5, method=method, record=True).path
        expected = [times(t) for t, _ in path[:-1]]
        assert [float(condition[0]) for _, condition, _ in net.seen] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_denoiser_trains_and_inverts(name: str) -> None:
    """The exact denoiser has the least loss, none where the target is exact too; latents and likelihoods take it as the field."""
    method, aug_dim = METHODS[name]
    ideal, images = pf.IdealDenoiser(CHARGES, aug_dim), Y[:6].float()
    charges = pf.Charges(Y.float())

    def loss(net) -> float:
        return float(
            method.loss(net, images, torch.arange(6), charges, torch.Generator().manual_seed(0)).sum()
        )

    assert loss(ideal) < loss(pf.Denoiser(lambda x, sigma: 0.9 * ideal(x, sigma)))
    if "pfgm" in name or name == "edm":
        assert loss(ideal) < 1e-6
    x = Y[:4] + 0.1
    settings = {"solver": "heun", "steps": 30}
    expected = pf.encode(CHARGES, x, method, **settings).x
    torch.testing.assert_close(pf.encode(ideal, x, method, **settings).x, expected, rtol=1e-5, atol=1e-5)
    there = [pf.log_likelihood(n, x, method, exact=True, **settings).log_density for n in (ideal, CHARGES)]
    torch.testing.assert_close(there[0], there[1], rtol=1e-4, atol=1e-3)


def test_latents_choose_the_method_as_sampling_does() -> None:
    ideal, x = pf.IdealDenoiser(CHARGES, 16.0), Y[:3] + 0.1
    expected = pf.encode(CHARGES, x, pf.PFGMpp(16.0), solver="heun", steps=12).x
    torch.testing.assert_close(pf.encode(ideal, x, solver="heun", steps=12).x, expected, rtol=1e-6, atol=1e-6)
