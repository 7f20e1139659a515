"""Symptoms that users of neighbouring projects reported, as they would show in derivatives and torch's transforms: one test or more for each.

Each row was seen failing at commit 1564364, with these tests run in a worktree of that commit.

| source of the symptom | kind | test |
|---|---|---|
| functorch #207, pytorch #187284 | forward mode is silently 0 | `test_forward_mode_is_the_slope` |
| pytorch #58509 | second derivatives are silently wrong | `test_second_derivatives`, `test_gradient_penalty` |
| pytorch #130284 | torch.func ends in internal errors | `test_torch_func`, `test_transforms_that_are_refused` |
| (none) | a number that changes breaks or repeats compilation | `test_numbers_while_compiling` |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import pfgm_fast as pf
from pfgm_fast.backends import reference
from tests.small_problem import BACKENDS, DOUBLE, FIELD, network, problem

# ---- derivatives


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aug_dim", [1.0, 2.5, math.inf])
@pytest.mark.parametrize("name", FIELD)
def test_forward_mode_is_the_slope(name: str, aug_dim: float, backend: str) -> None:
    """Along a direction in x and r at once, against central differences; plain forward AD and torch.func alike."""
    x, r, charges = problem()
    dx, dr, h = torch.randn_like(x), torch.randn_like(r), 1e-6

    def function(x: Tensor, r: Tensor) -> Tensor:
        return FIELD[name](x, r, charges, aug_dim)

    with pf.use_backend(backend):
        due = (function(x + h * dx, r + h * dr) - function(x - h * dx, r - h * dr)) / (2 * h)
        _, got = jvp(function, (x, r), (dx, dr))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual
            plain = torch.autograd.forward_ad.unpack_dual(function(dual(x, dx), dual(r, dr))).tangent
    torch.testing.assert_close(got, due, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(plain, got, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aug_dim", [1.0, 2.5, math.inf])
def test_every_output_of_the_score_operator(aug_dim: float, backend: str) -> None:
    """g, x − m, Σ w c, Σ w c ‖ρ‖² and lse, in both modes: what second derivatives are made of."""
    x, r, charges = problem(2, 3)
    inputs = (x.requires_grad_(), r.requires_grad_())
    with pf.use_backend(backend):
        for op in (torch.ops.pfgm_fast.score, torch.ops.pfgm_fast.poisson_field):
            assert torch.autograd.gradcheck(
                lambda x, r, op=op: op(*charges.query(x, r, aug_dim)), inputs, check_forward_ad=True
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aug_dim", [1.0, 2.5, math.inf])
def test_second_derivatives(aug_dim: float, backend: str) -> None:
    """Of log_density in x and r, reverse over reverse and forward over reverse, weights unequal."""
    x, r, charges = problem(2, 3)
    with pf.use_backend(backend):
        assert torch.autograd.gradgradcheck(
            lambda x, r: pf.log_density(x, r, charges, aug_dim),
            (x.requires_grad_(), r.requires_grad_()),
            check_fwd_over_rev=True,
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("z", [2.0, 9.0])
def test_second_derivatives_of_the_steps(z: float, backend: str) -> None:
    """Below and above z_exp, by every tensor and by z itself."""
    x, _, _ = problem(2, 3)
    vx, vz = network(2, 3)
    vx2, vz2 = network(2, 3)
    at, to = torch.full((2,), z, dtype=DOUBLE), torch.full((2,), 0.7 * z, dtype=DOUBLE)
    leaves = [t.requires_grad_() for t in (x, vx, vz, vx2, vz2, at, to)]
    with pf.use_backend(backend):
        for function, inputs in (
            (lambda x, vx, vz, z, t: pf.euler_step(x, vx, vz, z, t), [leaves[i] for i in (0, 1, 2, 5, 6)]),
            (lambda x, vx, vz, v, w, z, t: pf.heun_step(x, vx, vz, v, w, z, t), leaves),
            (lambda vx, vz, z: pf.drift(vx, vz, z), [leaves[i] for i in (1, 2, 5)]),
        ):
            assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
            assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("step", ["euler_step", "heun_step", "drift"])
def test_gradient_penalty(step: str) -> None:
    """Through a network whose v_x and v_z both depend on x, against the formula in plain PyTorch."""
    x, _, _ = problem()
    at, to = torch.tensor(1.0, dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE)

    def penalty(formula: Callable[..., Tensor]) -> Tensor:
        q = x.clone().requires_grad_()
        v, w = 0.2 * q.tanh(), -1 - 0.1 * q.sum(1).tanh()
        args = {"euler_step": (q, v, w), "heun_step": (q, v, w, 0.9 * v, 1.1 * w), "drift": (v, w)}[step]
        (slope,) = torch.autograd.grad(formula(*args).square().sum(), q, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), q)[0]

    numbers = (at,) if step == "drift" else (at, to)
    due = penalty(lambda *a: getattr(reference, step)(*a, *numbers, 5.0, 5.0))
    got = penalty(lambda *a: getattr(pf, step)(*a, *(float(n) for n in numbers)))
    torch.testing.assert_close(got, due, rtol=1e-10, atol=1e-12)


def test_derivatives_that_are_refused() -> None:
    """Third moments, data, and a moment's own derivative: a sentence, never a number."""
    x, r, charges = problem()
    q = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pf.posterior_mean(q, r, charges).square().sum(), q, create_graph=True)
    with pytest.raises(
        pf.DerivativeError, match=r"second_moment has no derivative with respect to x: .*third"
    ):
        slope.sum().backward()
    with pytest.raises(pf.DerivativeError, match="charges are data"):
        pf.posterior_mean(x, r, torch.randn(5, 4, dtype=DOUBLE, requires_grad=True))
    with pytest.raises(pf.DerivativeError, match="charges are data"):
        grad(lambda y: pf.log_density(x, r, y).sum())(torch.randn(5, 4, dtype=DOUBLE))
    with pytest.raises(pf.DerivativeError, match="weights are data"):
        pf.Charges(charges.data, torch.ones(9, requires_grad=True))
    with pytest.raises(pf.DerivativeError, match=r"with respect to charges: .* are data"):
        query = charges.query(x, r, 1.0)
        torch.ops.pfgm_fast.log_density(
            *query._replace(charges=charges.flat.clone().requires_grad_())
        ).sum().backward()


# ---- torch.func and compilation


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aug_dim", [1.0, math.inf])
def test_torch_func(aug_dim: float, backend: str) -> None:
    x, r, charges = problem()

    def density(x: Tensor, r: Tensor) -> Tensor:
        return pf.log_density(x[None], r[None], charges, aug_dim)[0]

    def mean(x: Tensor, r: Tensor) -> Tensor:
        return pf.posterior_mean(x[None], r[None], charges, aug_dim)[0]

    close = {"rtol": 1e-9, "atol": 1e-10}
    with pf.use_backend(backend):
        score, means = pf.score(x, r, charges, aug_dim), pf.posterior_mean(x, r, charges, aug_dim)
        curved = torch.autograd.functional.hessian(lambda q: density(q, r[0]), x[0])
        slopes = torch.autograd.functional.jacobian(lambda q: mean(q, r[0]), x[0])
        torch.testing.assert_close(grad(density)(x[0], r[0]), score[0], **close)
        torch.testing.assert_close(
            vjp(density, x[0], r[0])[1](torch.ones((), dtype=DOUBLE))[0], score[0], **close
        )
        torch.testing.assert_close(vmap(grad(density))(x, r), score, **close)
        torch.testing.assert_close(vmap(mean)(x, r), means, **close)
        torch.testing.assert_close(vmap(mean, (1, 0), 1)(x.T, r), means.T, **close)
        torch.testing.assert_close(
            vmap(mean, (None, 0))(x[0], r),
            pf.posterior_mean(x[:1].expand_as(x), r, charges, aug_dim),
            **close,
        )
        for jacobian in (jacrev(mean), jacfwd(mean)):
            torch.testing.assert_close(jacobian(x[0], r[0]), slopes, **close)
            torch.testing.assert_close(vmap(jacobian)(x, r)[0], slopes, **close)
        for second in (
            hessian(density),
            jacfwd(jacfwd(density)),
            jacrev(jacrev(density)),
            jacrev(jacfwd(density)),
        ):
            torch.testing.assert_close(second(x[0], r[0]), curved, **close)
        torch.testing.assert_close(vmap(hessian(density))(x, r)[0], curved, **close)
        in_r = torch.autograd.functional.hessian(lambda s: density(x[0], s), r[0])
        torch.testing.assert_close(hessian(density, argnums=1)(x[0], r[0]), in_r, **close)


def test_torch_func_of_a_network_in_a_step() -> None:
    """Per-sample gradients of a network's parameters through euler_step: grad inside vmap inside functional_call."""
    x, _, _ = problem()
    net = torch.nn.Linear(4, 4, dtype=DOUBLE)

    def loss(parameters: dict[str, Tensor], x: Tensor, z: Tensor) -> Tensor:
        vx = 0.1 * functional_call(net, parameters, (x[None],))
        return pf.euler_step(x[None], vx, -torch.ones(1, dtype=DOUBLE), z, 0.5 * z).square().sum()

    z = torch.rand(3, dtype=DOUBLE) + 0.5
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    per_sample = vmap(grad(loss), (None, 0, 0))(parameters, x, z)
    for i in range(3):
        alone = torch.autograd.grad(loss(dict(net.named_parameters()), x[i], z[i]), list(net.parameters()))
        for got, due in zip(per_sample.values(), alone, strict=True):
            torch.testing.assert_close(got[i], due)


def test_transforms_that_are_refused() -> None:
    x, r, charges = problem()
    labelled = pf.Charges(charges.data, labels=torch.arange(9) % 2)
    vx, vz = network()
    for call, words in (
        (
            lambda: vmap(lambda y: pf.posterior_mean(x, r, y))(torch.randn(2, 5, 4, dtype=DOUBLE)),
            "charges are data",
        ),
        (
            lambda: vmap(lambda q, k: pf.score(q[None], 1.0, labelled, labels=k[None]))(
                x, torch.tensor([0, 1, 0])
            ),
            "labels are data",
        ),
        (
            lambda: vmap(
                lambda q, v: pf.euler_step(q[None], v[None], vz[:1], 1.0, 0.5, out=torch.empty(1, 4))
            )(x.float(), vx.float()),
            "leave out away|out must be",
        ),
        (
            lambda: vmap(
                lambda y: torch.ops.pfgm_fast.log_density(*charges.query(x, r, 1.0)._replace(charges=y))
            )(torch.randn(2, 5, 4, dtype=DOUBLE)),
            r"cannot be mapped \(vmap\) over charges",
        ),
    ):
        with pytest.raises(pf.PfgmError, match=words):
            call()
    by_class = grad(lambda q: pf.log_density(q, r, labelled, labels=torch.tensor([0, 1, 0])).sum())(x)
    torch.testing.assert_close(by_class, pf.score(x, r, labelled, labels=torch.tensor([0, 1, 0])))


@pytest.mark.parametrize("dynamic", [None, True])
def test_numbers_while_compiling(dynamic: bool | None) -> None:
    """z or r a Python number that changes: no graph break, and two graphs at most (the first one, then one for all)."""
    import torch._dynamo.testing

    charges, x = pf.Charges(torch.randn(20, 3, 4)), torch.randn(5, 3, 4)
    down = -torch.ones(5)
    for function in (
        lambda x, z: pf.pfgm_target(x, z, charges)[0],
        lambda x, z: pf.log_density(x, z, charges),
        lambda x, z: pf.field_step(x, z, 0.5 * z, charges),
        lambda x, z: pf.heun_step(x, 0.1 * x, down, 0.2 * x, down, z, 0.5 * z),
    ):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled_function = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
        for z in (0.5, 0.7, 1.3, 4.4):
            torch.testing.assert_close(compiled_function(x, z), function(x, z))
        assert counter.frame_count <= 2


def test_derivatives_while_compiling() -> None:
    charges, x = pf.Charges(torch.randn(20, 4)), torch.randn(5, 4)
    due = pf.score(x, 0.7, charges)

    def total(x: Tensor) -> Tensor:
        return pf.log_density(x, 0.7, charges).sum()

    torch._dynamo.reset()
    leaf = x.clone().requires_grad_()
    compiled_total = torch.compile(total, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled_total(leaf), leaf)[0], due)
    torch.testing.assert_close(torch.compile(grad(total), backend="aot_eager", fullgraph=True)(x), due)
