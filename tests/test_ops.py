"""The operators as PyTorch sees them: opcheck, derivatives, torch.compile, the backend table."""

from __future__ import annotations

import math
import re

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.ops.dispatch import status
from pfgm_fast.ops.schema import FIELD_OPERATORS, SCHEMAS

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]


def _arguments(op: str, requires_grad: bool = False) -> tuple[tuple, dict]:
    x, r = (
        torch.randn(4, 6).requires_grad_(requires_grad),
        (torch.rand(4) + 0.5).requires_grad_(requires_grad),
    )
    query = (x, r, torch.randn(9, 6), None, None, None, 1.0, 0.0, 1.0)
    z, z_next, vx, vz = torch.tensor(3.0), torch.tensor(2.0), torch.randn(4, 6), -torch.rand(4) - 0.5
    step = (vx, vz, z, 5.0, 5.0)
    image, rows = torch.randn(2, 6, 3, 5).requires_grad_(requires_grad), torch.randn(2, 6)
    norm, sums = (torch.rand(6) + 0.5, torch.randn(6)), (torch.randn(2, 3), torch.rand(2, 3) + 0.5)
    return {
        "group_norm_silu": ((image, *norm, 3, 1e-6, True, rows, None, None), {}),
        "group_norm_silu_backward": (
            (image.detach(), image.detach(), *norm, *sums, 3, True, None, rows, rows),
            {},
        ),
        "second_moment": ((*query, torch.randn(4, 6), 1), {}),
        "field_step": ((*query, r.detach() * 0.5), {}),
        "normalize_field": ((x, r, 5.0), {}),
        "drift": (step, {}),
        "euler_step": ((x, vx, vz, z, z_next, 5.0, 5.0), {}),
        "euler_step in a ball": ((x, vx, vz, z, z_next, 5.0, 5.0, 2.0), {}),
        "drift in a ball": ((vx, vz, z, 5.0, 5.0, x, 2.0), {}),
        "euler_step.out": ((x.detach(), vx, vz, z, z_next, 5.0, 5.0), {"out": torch.empty(4, 6)}),
        "heun_step": ((x, vx, vz, vx + 0.1, vz, z, z_next, 5.0, 5.0), {}),
    }.get(op, (query, {}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [*SCHEMAS, "drift in a ball", "euler_step in a ball"])
def test_opcheck(op: str, backend: str) -> None:
    args, kwargs = _arguments(
        op,
        requires_grad=op
        not in ("second_moment", "gaussian_moments", "euler_step.out", "group_norm_silu_backward"),
    )
    packet = getattr(torch.ops.pfgm_fast, re.split("[. ]", op)[0])
    with pf.use_backend(backend):
        torch.library.opcheck(packet.out if op.endswith(".out") else packet.default, args, kwargs)


@pytest.mark.parametrize("aug_dim", [1.0, 2.5, math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend: str, aug_dim: float) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    r = (torch.rand(3, dtype=torch.float64) + 0.3).requires_grad_()
    charges = pf.Charges(torch.randn(12, 4, dtype=torch.float64), torch.rand(12) + 0.1)
    with pf.use_backend(backend):
        for function in (pf.posterior_mean, pf.log_density, pf.score, lambda *a: pf.poisson_field(*a)[0]):
            assert torch.autograd.gradcheck(lambda x, r, f=function: f(x, r, charges, aug_dim), (x, r))
        assert torch.autograd.gradcheck(lambda x, r: pf.field_step(x, r, 0.7 * r, charges, aug_dim), (x, r))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_the_steps(backend: str) -> None:
    double = {"dtype": torch.float64}
    x, vx = torch.randn(3, 4, **double).requires_grad_(), (0.1 * torch.randn(3, 4, **double)).requires_grad_()
    vz = (-torch.rand(3, **double) - 0.5).requires_grad_()
    with pf.use_backend(backend):
        for z in (2.0, 9.0):  # below and above z_exp
            assert torch.autograd.gradcheck(lambda *a, z=z: pf.euler_step(*a, z, 0.5 * z), (x, vx, vz))
            assert torch.autograd.gradcheck(lambda *a, z=z: pf.drift(*a, z), (vx, vz))
        assert torch.autograd.gradcheck(lambda x, vx, vz: pf.pfgm_target(x, -vz, vx)[0], (x, vx.detach(), vz))


@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_is_the_trace_of_the_jacobian(backend: str) -> None:
    x, charges = torch.randn(2, 5, dtype=torch.float64), pf.Charges(torch.randn(8, 5, dtype=torch.float64))
    with pf.use_backend(backend):
        for aug_dim in (1.0, 64.0, math.inf):
            for i in range(2):
                jacobian = torch.autograd.functional.jacobian(
                    lambda row, d=aug_dim: pf.poisson_field(row[None], 0.8, charges, d)[0][0], x[i]
                )
                got = pf.field_divergence(x[i : i + 1], 0.8, charges, aug_dim)
                torch.testing.assert_close(got[0], jacobian.trace())


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole(backend: str) -> None:
    charges = pf.Charges(torch.randn(20, 3, 4))

    def step(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        vx, vz = pf.pfgm_target(x, z, charges)
        return pf.euler_step(x, vx, vz, z, 0.9 * z).square().sum(1)

    x, z = torch.randn(5, 3, 4), torch.rand(5) + 1
    with pf.use_backend(backend):
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, z), step(x, z))


def test_forced_backend_that_cannot_serve_raises_with_its_reason() -> None:
    x, y = torch.randn(2, 3), torch.randn(4, 3)
    with pf.use_backend("cuda"), pytest.raises(pf.BackendError, match="cuda: "):
        pf.posterior_mean(x, 1.0, y)
    pf.posterior_mean(x, 1.0, y)  # what was chosen before holds again


def test_every_operator_has_a_reference() -> None:
    from pfgm_fast.backends import reference
    from pfgm_fast.ops.schema import function_name

    assert set(FIELD_OPERATORS) <= set(SCHEMAS)
    assert all(callable(getattr(reference, function_name(op))) for op in SCHEMAS)
