"""The authors' checkpoints and function names, against what their own implementation computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.compat import poisson_flow as compat
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.methods import PFGM
from pfgm_fast.nn import DDPMpp, UNetConfig


@pytest.fixture(scope="module")
def fixtures(shared):
    return shared / "fixtures"


@pytest.fixture(scope="module")
def tiny(fixtures):
    return np.load(fixtures / "poisson_flow_tiny.npz")


@pytest.fixture(scope="module")
def net(fixtures):
    return compat.load_checkpoint(fixtures / "poisson_flow_tiny_checkpoint.pth", image_size=16)


@pytest.mark.data
def test_network_outputs(net, tiny) -> None:
    with torch.no_grad():
        vx, vz = net(torch.from_numpy(tiny["net_x"]), torch.from_numpy(tiny["net_z"]))
    scale = abs(tiny["net_vx"]).max()
    assert abs(vx.numpy() - tiny["net_vx"]).max() <= 1e-4 * scale
    assert abs(vz.numpy() - tiny["net_vz"]).max() <= 1e-4 * scale


@pytest.mark.data
@pytest.mark.parametrize(
    ("solver", "nfe", "tolerance"),
    [("forward_euler", 10, 1e-3), ("improved_euler", 19, 1e-3), ("rk45", 193, 2e-2)],
)
def test_trajectories(net, tiny, solver: str, nfe: int, tolerance: float) -> None:
    out = compat.PoissonFlow().sample(
        net, (4, 3, 16, 16), solver, 10, x0=torch.from_numpy(tiny["sampler_x0"])
    )
    expected = tiny[f"sampler_{solver}"]
    assert abs(out.x.numpy() - expected).max() <= tolerance * abs(expected).max()
    assert out.nfe <= nfe


@pytest.mark.data
def test_target(tiny) -> None:
    charges = torch.from_numpy(tiny["field_charges_uint8"])
    points = torch.cat([torch.from_numpy(tiny["field_x"]), torch.from_numpy(tiny["field_z"])[:, None]], 1)
    got = compat.poisson_target(points, charges).double().numpy()
    assert np.linalg.norm(got - tiny["field_target_float64"], axis=1).max() <= 1e-5 * np.sqrt(3072)


@pytest.mark.data
def test_the_released_cifar10_network_fits(fixtures) -> None:
    """All 565 entries of the authors' state dict: the architecture is inferred, and every parameter has its place."""
    shapes = json.loads((fixtures / "poisson_flow_cifar10_ddpmpp_shapes.json").read_text())
    assert len(shapes) == 565
    modules = compat._grouped((name, tuple(shape)) for name, shape in shapes.items())
    config = compat.infer_config(modules, 32)
    assert config == UNetConfig(3, 32, 128, (1, 2, 2, 2), 4, (16,))
    with torch.device("meta"), torch.no_grad():
        mine = DDPMpp(config)
        for index, layer in enumerate(mine.blocks_in_order()):
            theirs = {name: torch.empty(shape) for name, shape in modules[index].items()}
            compat._fill(layer, theirs, f"module {index}")
    assert index == max(modules)
    theirs_count = sum(int(np.prod(s)) for name, s in shapes.items() if name != "sigmas")
    assert sum(p.numel() for p in mine.parameters()) == theirs_count


@pytest.mark.data
def test_round_trip_of_every_weight(fixtures) -> None:
    """The trained weights differ from the averages' only where the file says so: nothing is left at its initial value."""
    raw = torch.load(fixtures / "poisson_flow_tiny_checkpoint.pth", weights_only=True)
    trained = compat.load_checkpoint(fixtures / "poisson_flow_tiny_checkpoint.pth", 16, ema=False)
    total = sum(v.double().sum() for k, v in raw["model"].items() if "all_modules" in k)
    assert float(sum(p.detach().double().sum() for p in trained.parameters()) - total) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.data
def test_truncated_and_foreign_checkpoints(fixtures, tmp_path) -> None:
    whole = (fixtures / "poisson_flow_tiny_checkpoint.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CheckpointError, match=r"cannot be read.*expected a checkpoint of Newbeeer/Poisson_flow"
    ):
        compat.load_checkpoint(tmp_path / "cut.pth", 16)
    with pytest.raises(CheckpointError, match="there is no file"):
        compat.load_checkpoint(tmp_path / "none.pth", 16)


def test_foreign_checkpoints(tmp_path) -> None:
    torch.save({"state": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no 'model'"):
        compat.load_checkpoint(tmp_path / "other.pth", 16)
    torch.save(
        {"model": {"module.all_modules.0.weight": torch.zeros(2, 2)}, "ema": {}}, tmp_path / "short.pth"
    )
    with pytest.raises(CheckpointError, match="'ema' does not hold"):
        compat.load_checkpoint(tmp_path / "short.pth", 16)
    with pytest.raises(CheckpointError, match=r"not those of a DDPM\+\+"):
        compat.load_checkpoint(tmp_path / "short.pth", 16, ema=False)


def test_forward_pz_grows_with_m_and_takes_any_shape() -> None:
    """Not three channels, not images at all: odd dimensions too."""
    method = PFGM()
    x = torch.randn(4000, 5)
    near = compat.forward_pz(method, x, torch.zeros(4000), torch.Generator().manual_seed(0))
    far = compat.forward_pz(method, x, torch.full((4000,), 200.0), torch.Generator().manual_seed(0))
    assert near.shape == (4000, 6)
    ratio = (far[:, :-1] - x).norm(dim=1) / (near[:, :-1] - x).norm(dim=1)
    assert float(ratio.median()) == pytest.approx(1.03**200, rel=1e-2)
    with pytest.raises(ArgumentError, match="m must have shape"):
        compat.forward_pz(method, x, torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"perturbed must have shape \(B, 6\)"):
        compat.poisson_target(torch.randn(3, 5), x)


def test_drift_is_finite_where_the_authors_is_not() -> None:
    """‖v_x‖ ≥ √N, which a network can say, divided by zero in the substitution of v_z."""
    vx = 3 * torch.ones(2, 1, 5, 5)

    def net(x, z):
        return vx, -torch.ones(2)

    dx, _ = compat.PoissonFlow().ode(net, torch.zeros(2, 1, 5, 5), 0.5)
    assert dx.isfinite().all()
    assert pf.sample(net, (2, 1, 5, 5), steps=5).x.isfinite().all()


def test_no_bias_in_the_denominators() -> None:
    """A charge exactly under the query at a tiny z: the authors' +1e-7 on distances changes the field by 10%."""
    points = torch.tensor([[0.5, 0.0, 1e-6]])
    target = compat.poisson_target(points, torch.tensor([[0.5, 1e-6], [0.5, -1e-6]]), gamma=5.0)
    assert float(target[0, 0]) == 0.0
    assert float(target[0, -1]) == pytest.approx(-(2**0.5) * 1e-6 / (1e-6 + 5), rel=1e-6)
