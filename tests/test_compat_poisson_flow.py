"""The authors' checkpoints and function names, against what their own implementation computed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.compat import modules
from pfgm_fast.compat import poisson_flow as compat
from pfgm_fast.errors import ArgumentError, CheckpointError
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
    meta = [(name, torch.empty(shape, device="meta")) for name, shape in shapes.items()]
    found = modules.grouped(meta)
    config = modules.infer_config(found)
    assert config == UNetConfig(3, 32, 128, (1, 2, 2, 2), 4, (16,))
    assert modules.output_channels(found) == 4
    with torch.device("meta"):
        mine = DDPMpp(config)
    state = modules.unet_state(mine.unet, found)
    needed = mine.unet.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in needed.items()}
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
    sde = compat.Poisson({"training": {"restrict_M": False}})
    x = torch.randn(4000, 5)
    near = compat.forward_pz(sde, None, x, torch.zeros(4000), torch.Generator().manual_seed(0))
    far = compat.forward_pz(sde, None, x, torch.full((4000,), 200.0), torch.Generator().manual_seed(0))
    assert near.shape == (4000, 6)
    ratio = (far[:, :-1] - x).norm(dim=1) / (near[:, :-1] - x).norm(dim=1)
    assert float(ratio.median()) == pytest.approx(1.03**200, rel=1e-2)
    with pytest.raises(ArgumentError, match="m must have shape"):
        compat.forward_pz(sde, None, x, torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"perturbed must have shape \(B, 6\)"):
        compat.poisson_target(torch.randn(3, 5), x)


def test_forward_pz_restricts_m_near_the_data_and_leaves_the_callers() -> None:
    """|ε_z| < .005 (38% of them): m from [0, 0.7 M], so z < .005 · 1.03^(0.7·291); the others keep the m that was given."""
    sde = compat.Poisson()
    m = torch.full((4000,), 291.0)
    z = compat.forward_pz(sde, None, torch.zeros(4000, 2), m, torch.Generator().manual_seed(0))[:, -1]
    kept = z >= 0.005 * 1.03**291
    assert float(kept.float().mean()) == pytest.approx(0.617, abs=0.03)
    assert float(z[~kept].max()) < 0.005 * 1.03 ** (0.7 * 291) + 1e-3
    assert bool((m == 291).all())


CONFIG = SimpleNamespace(
    training=SimpleNamespace(M=250, tau=0.02, gamma=4.0, restrict_M=True, small_batch_size=6),
    sampling=SimpleNamespace(z_max=30.0, upper_norm=900.0, z_exp=1.0, N=7, ode_solver="improved_euler"),
    model=SimpleNamespace(sigma_end=0.02),
)


def test_their_config_is_read_by_attribute_or_key() -> None:
    """As ml_collections gives it, or plain dictionaries; what is missing is CIFAR-10's."""
    sde = compat.Poisson(CONFIG)
    assert (sde.M, sde.N, sde.method.sigma, sde.method.z_min) == (250, 7, 0.02, 1e-3)
    assert (sde.method.tau, sde.method.gamma, sde.method.z_max, sde.method.z_exp) == (0.02, 4.0, 30.0, 1.0)
    as_keys = {section: vars(values) for section, values in vars(CONFIG).items()}
    assert compat.settings(as_keys) == sde.method
    assert compat.settings(None) == compat.Poisson().method
    assert compat.settings({"training": {"restrict_M": False}}).near == 0.0


def _model(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pf.pfgm_target(x, z, torch.zeros(1, *x.shape[1:]), gamma=4.0)


def test_samplers_have_their_arguments_and_returns() -> None:
    """model → (inverse_scaler(samples), evaluations); the start may be given; eps is where z ends."""
    sde, shape = compat.Poisson(CONFIG), (3, 2, 3, 5)
    x0 = sde.prior_sampling(shape)
    assert float(x0.flatten(1).norm(dim=1).max()) <= 900 * (1 + 1e-5)
    halved = compat.get_sampling_fn(CONFIG, sde, shape, lambda x: (x + 1) / 2, 0.5)
    images, nfe = halved(_model, x0)
    ours = pf.sample(_model, shape, "heun", 7, z_min=0.5, x0=x0, method=sde.method)
    assert nfe == ours.nfe == 13
    torch.testing.assert_close(images, (ours.x + 1) / 2)
    images, nfe = compat.get_ode_sampler(sde, shape, "forward_euler", lambda x: x, 0.5)(_model)
    assert images.shape == shape
    assert nfe == 7
    images, nfe = compat.get_rk45_sampler_pfgm(sde, shape, lambda x: x, eps=2.0)(_model, x=x0)
    torch.testing.assert_close(images, x0 * 2 / 30, rtol=1e-2, atol=1e-2)
    with pytest.raises(ArgumentError, match="ode_solver must be one of"):
        compat.get_ode_sampler(sde, shape, "heun", lambda x: x)
    with pytest.raises(ArgumentError, match="method must be 'RK45'"):
        compat.get_rk45_sampler_pfgm(sde, shape, lambda x: x, method="BDF")


def test_ode_is_the_derivative_in_log_z() -> None:
    """Of one charge dx/dz = x/z, so z dx/dz = x; t is log z, as a number or once for each row."""
    x, sde = torch.randn(4, 1, 3, 3), compat.Poisson(CONFIG)
    for t in (np.log(9.0), torch.full((4,), float(np.log(9.0)))):
        torch.testing.assert_close(sde.ode(_model, x, t), x)


def test_loss_is_theirs() -> None:
    """Zero for the field of the batch itself, and the broadcast formula's value for another model, in float64."""
    sde, batch = compat.Poisson(CONFIG), torch.rand(20, 1, 3, 3, dtype=torch.float64)

    def exact(x, z):
        assert x.shape == (6, 1, 3, 3)  # training.small_batch_size
        return pf.pfgm_target(x, z, batch, gamma=4.0)

    assert float(compat.get_loss_fn(sde, True)(exact, batch)) < 1e-20
    seen = []

    def zero(x, z):
        seen.append(torch.cat([x.flatten(1), z[:, None]], 1))
        return torch.zeros_like(x), torch.zeros_like(z)

    for reduce_mean in (True, False):
        loss = compat.get_loss_fn(sde, True, reduce_mean)(zero, batch)
        charges = torch.cat([batch.flatten(1), torch.zeros(20, 1, dtype=torch.float64)], 1)
        rho = seen[-1][:, None] - charges
        weights = torch.softmax(-10 * rho.norm(dim=2).log(), 1)
        field = (weights[..., None] * rho).sum(1)
        squares = (3 * field / (field.norm(dim=1, keepdim=True) + 4)).square()
        expected = squares.mean() if reduce_mean else 0.5 * squares.sum(1).mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(ArgumentError, match="only method_name 'poisson'"):
        compat.get_loss_fn(sde, True, method_name="vesde")


def test_likelihood_fn_is_theirs_with_an_exact_constant() -> None:
    """One charge, above z_exp: the closed form in bits, with their seven bits for a cell of 1/128; odd N and one channel."""
    sde = compat.Poisson(z_max=40.0, z_exp=0.0)
    data = torch.randn(3, 1, 3, 3, dtype=torch.float64)

    def model(x, z):
        return pf.pfgm_target(x, z, torch.zeros(1, 1, 3, 3, dtype=x.dtype))

    bits, nfe = compat.get_likelihood_fn_pfgm(sde, eps=0.5, rtol=1e-6, atol=1e-6)(model, data)
    density = pf.log_density(data, 0.5, torch.zeros(1, 1, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(bits, 7 - density / (9 * np.log(2)), rtol=1e-4, atol=1e-4)
    assert nfe > 10
    far = 100 * torch.randn(2, 9)
    torch.testing.assert_close(
        sde.prior_logp(far), pf.log_density(far.double(), 40.0, torch.zeros(1, 9, dtype=torch.float64))
    )


def test_drift_is_finite_where_the_authors_is_not() -> None:
    """‖v_x‖ ≥ √N, which a network can say, divided by zero in the substitution of v_z."""
    vx = 3 * torch.ones(2, 1, 5, 5)

    def net(x, z):
        return vx, -torch.ones(2)

    assert compat.Poisson().ode(net, torch.zeros(2, 1, 5, 5), np.log(0.5)).isfinite().all()
    assert pf.sample(net, (2, 1, 5, 5), steps=5).x.isfinite().all()


def test_no_bias_in_the_denominators() -> None:
    """A charge exactly under the query at a tiny z: the authors' +1e-7 on distances changes the field by 10%."""
    points = torch.tensor([[0.5, 0.0, 1e-6]])
    target = compat.poisson_target(points, torch.tensor([[0.5, 1e-6], [0.5, -1e-6]]), gamma=5.0)
    assert float(target[0, 0]) == 0.0
    assert float(target[0, -1]) == pytest.approx(-(2**0.5) * 1e-6 / (1e-6 + 5), rel=1e-6)
