"""The fused steps against their formulas, and what a network can do to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.ops.dispatch import status

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]
SHAPES = [(1, 1), (3, 2), (5, 17), (4, 3, 8, 8), (2, 3071)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("z", [30.0, 2.0, 1e-3])
def test_steps_against_float64(backend: str, shape: tuple[int, ...], z: float) -> None:
    x, vx, vx2 = torch.randn(shape), 0.3 * torch.randn(shape), 0.3 * torch.randn(shape)
    vz, vz2 = -torch.rand(shape[0]) - 0.1, -torch.rand(shape[0]) - 0.1
    exact = [
        value.flatten(1).double() if value.dim() > 1 else value.double() for value in (x, vx, vz, vx2, vz2)
    ]
    zs, zn = (
        torch.tensor(z, dtype=torch.float32).double(),
        torch.tensor(0.8 * z, dtype=torch.float32).double(),
    )
    with pf.use_backend(backend):
        euler = pf.euler_step(x, vx, vz, z, 0.8 * z)
        heun = pf.heun_step(x, vx, vz, vx2, vz2, z, 0.8 * z)
        drift = pf.drift(vx, vz, z)
    close = {"rtol": 2e-5, "atol": 2e-6}
    expected = reference.euler_step(*exact[:3], zs, zn, 5.0, 5.0)
    torch.testing.assert_close(euler.flatten(1).double(), expected, **close)
    torch.testing.assert_close(
        heun.flatten(1).double(), reference.heun_step(*exact, zs, zn, 5.0, 5.0), **close
    )
    torch.testing.assert_close(
        drift.flatten(1).double(), reference.drift(exact[1], exact[2], zs, 5.0, 5.0), **close
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_is_the_same(backend: str) -> None:
    x, vx, vz = torch.randn(4, 3, 5), torch.randn(4, 3, 5), -torch.rand(4) - 0.1
    with pf.use_backend(backend):
        expected = pf.euler_step(x, vx, vz, 7.0, 6.0)
        returned = pf.euler_step(x, vx, vz, 7.0, 6.0, out=x)
    assert returned is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [0.0, 1.0, 1.0 + 1e-6, 5.0])
def test_never_nan_whatever_the_network_says(backend: str, norm: float) -> None:
    """n = ‖v_x‖/√N ≥ 1 is no field's, but a network may say so."""
    dim = 16
    vx = torch.full((2, dim), norm)
    with pf.use_backend(backend):
        stepped = pf.euler_step(torch.zeros(2, dim), vx, -torch.ones(2), 1.0, 0.5)
    assert stepped.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_network_outputs_are_read_in_x_dtype(backend: str, dtype: torch.dtype) -> None:
    x, vx, vz = torch.randn(3, 10), torch.randn(3, 10).to(dtype), (-torch.rand(3) - 0.5).to(dtype)
    with pf.use_backend(backend):
        got = pf.euler_step(x, vx, vz, 8.0, 7.0)
        expected = pf.euler_step(x, vx.float(), vz.float(), 8.0, 7.0)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_substitution_inverts_the_normalisation(backend: str) -> None:
    """For a true field with ‖E_x‖ = ‖x − y‖ the substituted v_z is the target's own: one charge, closed form x/z = const."""
    y, x, z = torch.zeros(1, 12), torch.randn(6, 12), torch.rand(6) + 0.5
    with pf.use_backend(backend):
        vx, vz = pf.pfgm_target(x, z, y, gamma=5.0)
        exact = pf.drift(vx, vz, z, z_exp=0.0)
        torch.testing.assert_close(exact, x / z[:, None])
        # n/(1 − n) γ recovers ‖E‖, not ‖E_x‖ exactly: the paper's approximation, close where ‖x‖ ≫ z
        far = pf.pfgm_target(100 * x, z, y, gamma=5.0)
        torch.testing.assert_close(pf.drift(*far, z), 100 * x / z[:, None], rtol=0.05, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_field_step_is_an_euler_step_of_the_true_field(backend: str) -> None:
    y, x, z = torch.randn(25, 3, 4), torch.randn(6, 3, 4), torch.rand(6) + 0.5
    with pf.use_backend(backend):
        field, _ = pf.poisson_field(x, z, y)
        torch.testing.assert_close(pf.field_step(x, z, 0.5 * z, y), x - 0.5 * field)
        torch.testing.assert_close(
            pf.field_step(x, z, 0.0, y), pf.posterior_mean(x, z, y), rtol=1e-5, atol=1e-6
        )
        assert math.isclose(float((pf.field_step(x, z, z, y) - x).abs().max()), 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_is_not_part_of_a_graph(backend: str) -> None:
    x, vx, vz = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5), -torch.ones(4)
    out = torch.empty(4, 5)
    with pf.use_backend(backend):
        with pytest.raises(pf.DerivativeError, match="out= takes no part in autograd"):
            pf.euler_step(x, 2 * vx, vz, 1.0, 0.9, out=out)
        with torch.no_grad():
            stepped = pf.euler_step(x, 2 * vx, vz, 1.0, 0.9, out=out)
        recorded = pf.euler_step(x, 2 * vx, vz, 1.0, 0.9)
    assert stepped is out
    assert not stepped.requires_grad
    assert recorded.requires_grad
    assert torch.equal(stepped, recorded)


def test_who_watches_operators_sees_the_step_into_out() -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = torch.randn(4, 5)
    with Watch():
        pf.euler_step(x, x, -torch.ones(4), 1.0, 0.9, out=torch.empty(4, 5))
    assert "pfgm_fast.euler_step.out" in seen
