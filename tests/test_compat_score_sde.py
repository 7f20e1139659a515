"""Checkpoints of score_sde_pytorch against an implementation of its networks written for this test."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import compat
from pfgm_fast.compat import score_sde
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.methods import PFGM, VPSDE, SubVPSDE
from tests import score_sde_reference as reference

BASE = {
    "channels": 3, "out": 3, "size": 16, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (8,),
    "fourier": False, "pyramid": None, "progressive": False,
}  # fmt: skip
SPECS = {
    "DDPM++": BASE,
    "NCSN++": {**BASE, "fourier": True, "pyramid": "residual"},
    "NCSN++ deep": {
        **BASE,
        "fourier": True,
        "pyramid": "residual",
        "multipliers": (1, 1, 2),
        "blocks": 2,
        "progressive": True,
    },
    "skips": {**BASE, "channels": 1, "out": 1, "pyramid": "skip", "progressive": True, "attention": (16, 8)},
    "no attention": {**BASE, "attention": (), "multipliers": (1, 2, 2)},
}


def written(tmp_path, spec):
    made = reference.modules(spec)
    torch.save(reference.checkpoint(made), tmp_path / "checkpoint_1.pth")
    return made, tmp_path / "checkpoint_1.pth"


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", SPECS)
def test_ve_on_data_in_01(tmp_path, name: str) -> None:
    """Their score, of x in [0, 1] under σ' = σ/2, as D = x + σ² score, in [−1, 1]; for positional networks VE must be asked for."""
    spec = SPECS[name]
    made, path = written(tmp_path, spec)
    net = score_sde.load_checkpoint(path, spec["size"], "ve")
    assert (net.sigma_min, net.sigma_max) == (0.02, 100.0)
    x, sigma = torch.randn(3, spec["channels"], 16, 16), torch.tensor([0.05, 1.0, 30.0])
    double = [{k: v.double() for k, v in module.items()} for module in made]
    theirs = sigma.double() / 2
    unit = (x.double() + 1) / 2
    condition = (
        theirs if spec["fourier"] else theirs.log()
    )  # without Fourier features their VE is discrete: ours goes by log σ
    score = reference.forward(spec, double, 2 * unit - 1, condition) / theirs.view(-1, 1, 1, 1)
    denoised = 2 * (unit + theirs.square().view(-1, 1, 1, 1) * score) - 1
    with torch.no_grad():
        assert error(net(x, sigma).double(), denoised) < 1e-4  # angles of 300 radians in float32
        assert error(net.double()(x.double(), sigma.double()), denoised) < 1e-10


@pytest.mark.parametrize(("sde", "method"), [("vp", VPSDE()), ("subvp", SubVPSDE())])
def test_vp_and_subvp(tmp_path, sde: str, method) -> None:
    """D = (x + s² score(x))/a at x = a (y + σ ε), score = −net/s; t from their marginal, not from our inverse."""
    made, path = written(tmp_path, BASE)
    net = score_sde.load_checkpoint(path, 16, sde)
    assert type(net) is type(score_sde.load_checkpoint(path, 16)) or sde == "subvp"
    t = torch.tensor([0.05, 0.4, 0.95], dtype=torch.float64)
    scale, deviation = method.marginal_prob(t)
    sigma, x = deviation / scale, torch.randn(3, 3, 16, 16, dtype=torch.float64)
    double = [{k: v.double() for k, v in module.items()} for module in made]
    a, s = (value.view(-1, 1, 1, 1) for value in (scale, deviation))
    score = -reference.forward(BASE, double, a * x, 999 * t) / s
    with torch.no_grad():
        assert error(net.double()(x, sigma), (a * x + s.square() * score) / a) < 1e-9
    assert net.sigma_max == pytest.approx(
        float(method.marginal_prob(torch.tensor(1.0))[1] / method.marginal_prob(torch.tensor(1.0))[0]),
        rel=1e-4,
    )


def test_trained_weights_and_centred_data(tmp_path) -> None:
    spec = SPECS["NCSN++"]
    made, path = written(tmp_path, spec)
    net = score_sde.load_checkpoint(path, 16, centered=True, sigma_max=90)
    assert (net.sigma_min, net.sigma_max, net.noise_scale) == (0.01, 90.0, 1.0)
    trained = score_sde.load_checkpoint(path, 16, ema=False)
    first = made[1]["weight"]
    assert torch.equal(net.model.map_layer0.weight, first)
    assert torch.equal(trained.model.map_layer0.weight, first + 1)
    assert torch.equal(trained.model.map_noise.freqs, made[0]["W"])
    with pytest.raises(ArgumentError, match="sde must be ve, vp or subvp"):
        score_sde.load_checkpoint(path, 16, "edm")


def test_load_any_tells_them_apart(tmp_path) -> None:
    """One more output channel is PFGM's; image size as if attention were at 16 × 16."""
    _, path = written(tmp_path, SPECS["NCSN++"])
    net, method = compat.load_any(path)
    assert net.model.config.image_size == 32
    assert method.aug_dim == math.inf
    assert (method.sigma_min, method.sigma_max) == (0.02, 80.0)
    assert pf.sample(net, (2, 3, 16, 16), "heun", 2, method=method).x.isfinite().all()
    _, path = written(tmp_path, {**BASE, "out": 4})
    net, method = compat.load_any(path, image_size=16)
    assert method == PFGM()
    vx, vz = net(torch.randn(2, 3, 16, 16), torch.ones(2))
    assert (vx.shape, vz.shape) == ((2, 3, 16, 16), (2,))
    with pytest.raises(CheckpointError, match="has 4 output channels for 3 of the image"):
        score_sde.load_checkpoint(path)


def test_other_architectures_are_refused(tmp_path) -> None:
    made, path = written(tmp_path, BASE)
    for change, message in (
        (made[:-1], "last module is no convolution"),
        ([*made, made[-1]], "left over"),
        (made[2:], "the first modules are conv"),
        ([{**m, "NIN_0.W": m["NIN_0.W"][:, :4]} if "NIN_0.W" in m else m for m in made], "differ in size"),
    ):
        torch.save(reference.checkpoint(change), path)
        with pytest.raises(CheckpointError, match=message):
            score_sde.load_checkpoint(path)
    with pytest.raises(CheckpointError, match="is image_size right"):
        torch.save(reference.checkpoint(made), path)
        score_sde.load_checkpoint(path, 15)
