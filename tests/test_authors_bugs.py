"""What the authors' PFGM code gets wrong, once each: none of it may come back.

Each test says what goes wrong there, and holds this package to the right answer in every place that has the same formula.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from scipy import stats

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.compat import poisson_flow as compat
from pfgm_fast.methods import PFGM
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.ops.dispatch import status

PACKAGE = Path(pf.__file__).parent
BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]
ODD_SHAPES = [(1,), (3,), (7,), (1, 5, 5), (3, 3, 3), (2, 3, 7)]


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 27, 784, 3072, 12_289])
def test_prior_constant_is_no_truncated_log_gamma(dim: int) -> None:
    """There: log Γ(N/2) as a sum of logarithms of integers from int(N/2 − 1), wrong for odd N, and the constant of another density
    (2 z_max/S_N). Here: exact; at the centre of the prior, where nothing else is left, against scipy's t distribution."""
    got = PFGM(z_max=40.0).prior_log_density(torch.zeros(1, dim, dtype=torch.float64))
    expected = (
        math.lgamma((dim + 1) / 2) - 0.5 * (dim + 1) * math.log(math.pi) - dim * math.log(40.0)
    )  # Γ((N+1)/2)/π^((N+1)/2) z^(−N)
    assert float(got) == pytest.approx(expected, rel=1e-12)
    if dim == 1:
        assert float(got) == pytest.approx(stats.cauchy(scale=40.0).logpdf(0.0), rel=1e-12)


def test_likelihood_takes_other_than_three_channels() -> None:
    """There: `.view(B, 3, H, W)` in the likelihood's drift."""
    x = torch.rand(2, 1, 5, 3, dtype=torch.float64)
    lone = torch.zeros(1, 1, 5, 3, dtype=torch.float64)
    method = PFGM(z_exp=0.0, z_min=0.5)
    found = pf.log_likelihood(lambda x, z: pf.pfgm_target(x, z, lone), x, method, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_density, pf.log_density(x, 0.5, lone), rtol=0, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_networks_and_samplers_take_any_channels(channels: int) -> None:
    """There: 3 and 4 channels written into samplers and prior."""
    net = DDPMpp(UNetConfig(channels, 8, 8, (1, 2), 1, (4,)))
    for solver in ("euler", "heun"):
        assert pf.sample(net, (2, channels, 8, 8), solver, 2).x.shape == (2, channels, 8, 8)
    sde, identity = compat.Poisson({"sampling": {"N": 2}}), lambda x: x
    images, _ = compat.get_ode_sampler(sde, (2, channels, 8, 8), "forward_euler", identity)(net)
    assert images.shape == (2, channels, 8, 8)


def test_no_device_is_written_in() -> None:
    """There: `.cuda()` on tensors of whatever device. Here no line calls `.cuda()` or makes a tensor on "cuda" by name."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            named = [k for k in node.keywords if k.arg == "device" and isinstance(k.value, ast.Constant)]
            if name == "cuda" or any(str(k.value.value).startswith("cuda") for k in named):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_tensors_follow_their_input_on_a_device_without_values() -> None:
    """On the meta device, which no other device's tensor may meet: perturbation and prior stay there."""
    images = torch.empty(4, 2, 3, 3, device="meta")
    with torch.device("cpu"):
        x, z = PFGM().perturb(images)
    assert x.device.type == z.device.type == "meta"
    assert PFGM().prior_log_density(images).device.type == "meta"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1 - 1e-7, 1.0, 1 + 1e-7, 2.0, 1e3])
def test_no_nan_where_the_network_exceeds_every_field(backend: str, length: float) -> None:
    """There: ‖v_x‖/√N = 1 divides by zero in the substitution of v_z, and more turns its sign, so that sampling runs away. Here:
    finite, along v_x, with its own sign, in the drift, the steps and the derivative."""
    vx = length * torch.ones(2, 9)
    with pf.use_backend(backend):
        slope = pf.drift(vx, -torch.ones(2), 0.1)
        steps = [
            pf.euler_step(torch.zeros(2, 9), vx, -torch.ones(2), 0.1, 0.05),
            pf.heun_step(torch.zeros(2, 9), vx, -torch.ones(2), vx, -torch.ones(2), 0.1, 0.05),
        ]
    assert all(value.isfinite().all() for value in (slope, *steps))
    assert bool((slope < 0).all())  # v_z < 0: x moves along v_x as z falls
    assert all(bool((x > 0).all()) for x in steps)
    exact = vx.double().requires_grad_()
    (gradient,) = torch.autograd.grad(pf.drift(exact, -torch.ones(2, dtype=torch.float64), 0.1).sum(), exact)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_bias_in_the_fields_weights(backend: str) -> None:
    """There: 1e-7 on distances and on the sum of weights. At distances of 1e-6 that turns the field by degrees; here it is the
    float64 reference's to 1e-5 of its length."""
    y = torch.tensor([[0.0, 0.0], [3e-6, 0.0], [0.0, 2e-6]])
    x, z = torch.tensor([[1e-6, 1e-6], [2e-6, 0.0]]), torch.tensor([1e-6, 5e-7])
    with pf.use_backend("reference"):
        exact, _ = pf.poisson_field(x.double(), z.double(), y.double())
    with pf.use_backend(backend):
        field, _ = pf.poisson_field(x, z, y)
    error = (field.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert float(error.max()) < 1e-5


def test_no_bias_in_the_drift() -> None:
    """There: dx/dz = v_x/(v_z + 1e-5), which near z_min, where v_z is small, is a relative error of 1e-5/v_z; and v is normalised
    with + 1e-7 once more in the likelihood. Here: v_x/v_z."""
    vx, vz = torch.tensor([[3e-5, -4e-5]], dtype=torch.float64), torch.tensor([-2e-5], dtype=torch.float64)
    torch.testing.assert_close(pf.drift(vx, vz, 9.0), vx / vz[:, None], rtol=1e-12, atol=0)
    ours = compat.Poisson().ode(lambda x, z: (vx, vz), torch.zeros(1, 2, dtype=torch.float64), math.log(9.0))
    torch.testing.assert_close(ours, 9 * vx / vz[:, None], rtol=1e-12, atol=0)
    assert float((9 * vx / (vz[:, None] + 1e-5) - ours).abs().max() / ours.abs().max()) > 0.9  # theirs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_data_of_odd_dimension(backend: str, shape: tuple[int, ...]) -> None:
    """There: N is channels × size², N/2 an integer. Here, from data to samples and densities, any shape: rules, perturbation, target,
    prior, sampling, likelihood, all against N = the number of elements."""
    dim = math.prod(shape)
    data = torch.randn(12, *shape)
    with pf.use_backend(backend):
        charges = pf.Charges(data)
        method = PFGM.from_data(charges)
        assert method.upper_norm == pytest.approx(
            max(2.0, math.sqrt(dim) * method.sigma * (1 + method.tau) ** method.m_exp)
        )
        x, z = method.perturb(data, torch.Generator().manual_seed(0))
        vx, vz = pf.pfgm_target(x, z, charges)
        assert x.shape == vx.shape == data.shape
        norms = (vx.flatten(1).square().sum(1) + vz.square()).sqrt()
        assert float(norms.max()) < math.sqrt(dim)
        exact = reference.row(
            x[0].flatten().double(), z[0].double(), charges.flat, None, 1.0, 0.0, 1.0
        ).weights
        far = x[0].flatten().double() - exact @ charges.flat.double()
        direction = torch.cat([far, z[:1].double()])
        expected = -math.sqrt(dim) * direction / (direction.norm() + 5)
        got = torch.cat([vx[0].flatten(), vz[:1]]).double()
        assert float((got - expected).norm() / expected.norm()) < 1e-4
        out = pf.sample(charges, (3, *shape), steps=20, method=method)
        assert out.x.shape == (3, *shape)
        assert out.x.isfinite().all()
        found = pf.log_likelihood(charges, out.x, method, solver="heun", steps=10)
        assert found.log_density.isfinite().all()
