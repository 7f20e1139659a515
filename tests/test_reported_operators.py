"""Symptoms that users of neighbouring projects reported, as they would show in the operators: one test or more for each.

Each row was seen failing at commit 1564364, with this file run in a worktree of that commit.

| source of the symptom | kind | test |
|---|---|---|
| functorch #207, pytorch #187284 | forward mode is silently 0 | `test_forward_mode_is_the_slope` |
| pytorch #58509 | second derivatives are silently wrong | `test_second_derivatives`, `test_gradient_penalty` |
| apex #973, pytorch #42479 | autocast, TF32 and default dtype reach kernels and derivatives | `test_settings_of_the_caller_change_nothing` |
| Liger-Kernel #273 | `out=` behind autograd's back | `test_out_moves_the_version`, `test_out_that_may_not_be` |
| scipy #18386 | two log-gammas cancel | tests/test_special.py |
| (none) | a clone without its library hides the one installed | `test_reason_names_both_copies` |
| torchdiffeq #27, #57, #244 | one NaN row ends the batch, a wrong culprit is named | `test_rk45_*` |
| pytorch #12013 | B = 0 | `test_empty_batch*` |
| gptorch #22 | a float64 network cannot be sampled | `test_float64_network` |
| pytorch #130284 | torch.func ends in internal errors | `test_torch_func`, `test_transforms_that_are_refused` |
| (none) | NumPy scalars are refused with a puzzling text | `test_numpy_numbers`, `test_what_is_no_number` |
| (none) | r > 0 that float32 holds as 0 | `test_r_that_vanishes` |
| (none) | a number that changes breaks or repeats compilation | `test_numbers_while_compiling` |
| (none) | `use_backend` leaks, or is not seen by backward | `test_use_backend_*` |
| (none) | a device nobody serves | `test_device_that_nobody_serves` |
| (none) | a GPU divides bytes through the reciprocal | `test_bytes_under_a_gpus_rule_of_division` |
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import pfgm_fast as pf
from pfgm_fast import checks
from pfgm_fast.backends import compiled, reference
from pfgm_fast.methods import PFGM, VESDE, PFGMpp, SubVPSDE
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.ops import dispatch
from pfgm_fast.ops.dispatch import status

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]
DOUBLE = torch.float64
FIELD: dict[str, Callable[..., Tensor]] = {
    "posterior_mean": pf.posterior_mean,
    "poisson_field": lambda *a: pf.poisson_field(*a)[0],
    "score": pf.score,
    "log_density": pf.log_density,
    "field_divergence": pf.field_divergence,
    "field_step": lambda x, r, *a: pf.field_step(x, r, 0.6 * r, *a),
}


def _problem(batch: int = 3, dim: int = 4) -> tuple[Tensor, Tensor, pf.Charges]:
    charges = pf.Charges(torch.randn(9, dim, dtype=DOUBLE), torch.rand(9) + 0.2)
    return torch.randn(batch, dim, dtype=DOUBLE), torch.rand(batch, dtype=DOUBLE) + 0.4, charges


def _network(batch: int = 3, dim: int = 4) -> tuple[Tensor, Tensor]:
    return 0.2 * torch.randn(batch, dim, dtype=DOUBLE), -torch.rand(batch, dtype=DOUBLE) - 0.5


# ---- derivatives


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aug_dim", [1.0, 2.5, math.inf])
@pytest.mark.parametrize("name", FIELD)
def test_forward_mode_is_the_slope(name: str, aug_dim: float, backend: str) -> None:
    """Along a direction in x and r at once, against central differences; plain forward AD and torch.func alike."""
    x, r, charges = _problem()
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
    x, r, charges = _problem(2, 3)
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
    x, r, charges = _problem(2, 3)
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
    x, _, _ = _problem(2, 3)
    vx, vz = _network(2, 3)
    vx2, vz2 = _network(2, 3)
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
    x, _, _ = _problem()
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
    x, r, charges = _problem()
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
    x, r, charges = _problem()

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
    x, _, _ = _problem()
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
    x, r, charges = _problem()
    labelled = pf.Charges(charges.data, labels=torch.arange(9) % 2)
    vx, vz = _network()
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


# ---- out=


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_moves_the_version(backend: str) -> None:
    """So that autograd refuses a gradient that was saved from what out= has overwritten."""
    w, saved = torch.ones(2, 6, requires_grad=True), torch.ones(2, 6)
    product = (w * saved).sum()
    with pf.use_backend(backend):
        pf.euler_step(torch.zeros(2, 6), torch.randn(2, 6), -torch.ones(2), 1.0, 0.5, out=saved)
    assert saved._version >= 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_that_may_not_be(backend: str) -> None:
    memory, vz = torch.randn(40), -torch.ones(3)
    x, vx = memory[:12].view(3, 4), torch.randn(3, 4)
    with pf.use_backend(backend):
        for out in (memory[4:16].view(3, 4), memory[11:23].view(3, 4)):
            with pytest.raises(pf.ArgumentError, match="shares some of an input's memory"):
                pf.euler_step(x, vx, vz, 1.0, 0.5, out=out)
            with pytest.raises(pf.ArgumentError, match="shares some of an input's memory"):
                pf.euler_step(vx, x, vz, 1.0, 0.5, out=out)
        column = torch.full((3, 1), -1.0)
        with pytest.raises(pf.ArgumentError, match="shares some of an input's memory"):
            pf.euler_step(torch.zeros(3, 1), torch.zeros(3, 1), column.view(3), 1.0, 0.5, out=column)
        with pytest.raises(pf.ArgumentError, match="out must be contiguous"):
            pf.euler_step(x, vx, vz, 1.0, 0.5, out=torch.empty(1, 4).expand(3, 4))
        for wanting in ("x", "vx", "vz", "out"):
            tensors = {"x": x.clone(), "vx": vx, "vz": vz.clone(), "out": torch.empty(3, 4)}
            tensors[wanting] = tensors[wanting].clone().requires_grad_()
            args = tensors["x"], tensors["vx"], tensors["vz"], 1.0, 0.5
            with pytest.raises(pf.DerivativeError, match="out= takes no part in autograd"):
                pf.euler_step(*args, out=tensors["out"])
            with torch.no_grad():
                due = pf.euler_step(*args)
                assert torch.equal(pf.euler_step(*args, out=tensors["out"]), due)
        for own in (x.clone(), vx.clone()):  # exactly an input's memory is allowed, as in torch.add
            other = torch.randn(3, 4)
            for args in ((own, other), (other, own)):
                kept = own.clone()
                due = pf.euler_step(*args, vz, 1.0, 0.5)
                assert torch.equal(pf.euler_step(*args, vz, 1.0, 0.5, out=own), due)
                own.copy_(kept)
        with torch.inference_mode():
            assert pf.euler_step(x.clone(), vx, vz, 1.0, 0.5, out=torch.empty(3, 4)).isfinite().all()


# ---- the caller's settings


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", ["bfloat16", "float16", "medium", "float64"])
def test_settings_of_the_caller_change_nothing(setting: str, backend: str) -> None:
    """Bit for bit: every function and its gradient by x and r, bytes and floats, D = 1 and ∞, preparation included."""
    raw = torch.randint(0, 256, (60, 24), dtype=torch.uint8)
    x, r = torch.randn(5, 24), torch.rand(5) + 0.5
    vx, vz = 0.3 * torch.randn(5, 24), -torch.ones(5)

    def everything() -> list[Tensor]:
        found: list[Tensor] = []
        for data in (raw, raw.float() / 255):
            charges = pf.Charges(data)
            found += [charges.center, charges.sq_norms, charges.values()]
            for aug_dim in (1.0, math.inf):
                for function in FIELD.values():
                    q, s = x.clone().requires_grad_(), r.clone().requires_grad_()
                    value = function(q, s, charges, aug_dim)
                    found += [value.detach(), *torch.autograd.grad((value * value).sum(), (q, s))]
        q, v = x.clone().requires_grad_(), vx.clone().requires_grad_()
        stepped = pf.euler_step(q, v, vz, 1.0, 0.5)
        return [*found, stepped.detach(), *torch.autograd.grad((stepped * stepped).sum(), (q, v))]

    with pf.use_backend(backend):
        due = everything()
        with (
            torch.autocast("cpu", getattr(torch, setting))
            if setting.endswith("16")
            else _default_dtype()
            if setting == "float64"
            else _precision(setting)
        ):
            got = everything()
    for a, b in zip(got, due, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# ---- bytes


class _DividesAsAGPU(TorchDispatchMode):
    """PyTorch on CUDA divides a float32 tensor by a Python number by multiplying with the number's float32 reciprocal."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name.startswith(
            ("aten::div.Tensor", "aten::div_.Tensor", "aten::div.Scalar", "aten::div_.Scalar")
        ):
            value, by = args[0], args[1]
            number = not isinstance(by, Tensor) or (by.dim() == 0 and value.dim() > 0)
            if number and value.dtype == torch.float32:
                reciprocal = float(np.float32(1) / np.float32(by))
                return value.mul_(reciprocal) if "div_" in name else value * reciprocal
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-1.0, 2.0), (0.0, 255.0)])
def test_bytes_under_a_gpus_rule_of_division(value_range: tuple[float, float]) -> None:
    """All 256, in Charges and in the reference: `byte / divisor + offset` in two roundings, as the kernels have them."""
    raw = torch.arange(256, dtype=torch.uint8)[:, None]
    low, high = value_range
    due = np.arange(256, dtype=np.float32) / np.float32(255.0 / (high - low)) + np.float32(low)
    with _DividesAsAGPU():
        charges = pf.Charges(raw, value_range=value_range)
        decoded = reference.decode(raw, charges.divisor, charges.offset, torch.float32)
        values = charges.values()
    for got in (decoded, values):
        assert torch.equal(got.flatten(), torch.from_numpy(due))


# ---- numbers, devices, empty batches


def test_numpy_numbers() -> None:
    x, _r, charges = _problem()
    due = pf.posterior_mean(x, 0.5, charges, 128.0)
    for number in (np.float64(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5)):
        for aug_dim in (np.int64(128), np.float32(128), np.array(128), torch.tensor(128), 128):
            assert torch.equal(pf.posterior_mean(x, number, charges, aug_dim), due)
    vx, vz = _network()
    assert torch.equal(
        pf.euler_step(x, vx, vz, np.float64(2), np.int32(1), gamma=np.float32(5), z_exp=np.int64(5)),
        pf.euler_step(x, vx, vz, 2, 1),
    )
    assert pf.sample(charges, (2, 4), steps=np.int64(3)).nfe == 3
    assert pf.interpolate(x, 2 * x, np.int64(3)).shape == (3, 3, 4)


def test_what_is_no_number() -> None:
    x, _, charges = _problem()
    for call, message in (
        (lambda: pf.posterior_mean(x, True, charges), "r must be a number, finite and > 0; got True"),
        (lambda: pf.posterior_mean(x, "1", charges), "r must be a number, finite and > 0; got '1'"),
        (lambda: pf.posterior_mean(x, None, charges), "give one of r and sigma"),
        (
            lambda: pf.posterior_mean(x, 1.0, charges, True),
            "aug_dim (D) must be a number in (0, inf]; got True",
        ),
        (
            lambda: pf.posterior_mean(x, 1.0, charges, np.bool_(1)),
            "aug_dim (D) must be a number in (0, inf]; got ",
        ),
        (lambda: pf.posterior_mean(x, 1j, charges), "r must be a number, finite and > 0; got 1j"),
        (lambda: pf.pfgm_target(x, 1.0, charges, False), "gamma must be a finite number ≥ 0; got False"),
        (lambda: pf.sample(charges, (2, 4), steps=True), "steps must be an integer ≥ 1; got True"),
        (lambda: pf.sample(charges, (2, 4), steps=2.0), "steps must be an integer ≥ 1; got 2.0"),
        (lambda: pf.posterior_mean(x, np.ones(3), charges), "r must be a number, finite and > 0; got array("),
    ):
        with pytest.raises(pf.ArgumentError) as caught:
            call()
        assert str(caught.value).startswith(message)


def test_r_that_vanishes() -> None:
    x, charges = torch.zeros(2, 3), torch.rand(4, 3)
    for r in (1e-60, torch.tensor(1e-60, dtype=DOUBLE), torch.tensor([1.0, 1e-60], dtype=DOUBLE)):
        with pytest.raises(pf.ArgumentError, match=r"finite and > 0 in float32; .* 1e-60, which is 0 there"):
            pf.posterior_mean(x, r, charges)
    with pytest.raises(pf.ArgumentError, match=r"1e\+60, which is infinite there"):
        pf.posterior_mean(x, 1e60, charges)
    assert pf.posterior_mean(x.double(), 1e-60, charges.double()).isfinite().all()


def test_device_that_nobody_serves() -> None:
    """No such device is here: a fake tensor stands for one at the door, and the dispatcher's table is looked at."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(2, 3, device="xpu")
        with pytest.raises(
            pf.BackendError, match=r"no backend runs on xpu tensors, and x is on xpu:0: .*x\.cpu\(\)"
        ):
            checks.batch("x", fake)
        with pytest.raises(pf.BackendError, match="no backend can run posterior_mean on xpu tensors"):
            dispatch.choose("posterior_mean", fake, fake)
    for key in ("MPS", "XPU"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("pfgm_fast::posterior_mean", key)


@pytest.mark.parametrize("labelled", [False, True])
def test_empty_batch(labelled: bool) -> None:
    charges = pf.Charges(torch.rand(6, 3, 2), labels=torch.arange(6) % 2)
    x, r = torch.zeros(0, 3, 2), torch.zeros(0)
    labels = {"labels": torch.zeros(0, dtype=torch.int64)} if labelled else {}
    rows = (pf.log_density(x, r, charges, **labels), pf.field_divergence(x, r, charges, **labels))
    wide = (
        pf.posterior_mean(x, r, charges, **labels),
        pf.poisson_field(x, 1.0, charges, **labels)[0],
        pf.score(x, r, charges, math.inf, **labels),
        pf.pfgm_target(x, r, charges, **labels)[0],
        pf.field_step(x, r, r, charges, **labels),
        pf.euler_step(x, x, r, 1.0, 0.5),
        pf.heun_step(x, x, r, x, r, 1.0, 0.5),
        pf.encode(charges, x, **labels).x,
        pf.round_trip(charges, x, **labels).images,
        pf.log_likelihood(charges, x, **labels).latents,
    )
    assert all(value.shape == (0,) and value.dtype == torch.float32 for value in rows)
    assert all(value.shape == (0, 3, 2) and value.dtype == torch.float32 for value in wide)
    assert pf.log_likelihood(charges, x, **labels).log_density.shape == (0,)
    for solver in ("euler", "rk45"):
        bits = pf.bits_per_dim(charges, x.byte(), solver=solver, steps=2, **labels).bits
        assert bits.shape == (0,) and bits.dtype == DOUBLE
    leaf = x.clone().requires_grad_()
    pf.log_density(leaf, r, charges).sum().backward()
    assert leaf.grad is not None and leaf.grad.shape == x.shape


def test_labels_that_no_charge_has() -> None:
    charges = pf.Charges(torch.rand(6, 3), labels=torch.arange(6) % 2)
    for wanted in (2, -1):
        for function in (pf.posterior_mean, pf.log_density, pf.score):
            with pytest.raises(pf.ArgumentError, match=f"no charge has the label {wanted}"):
                function(torch.zeros(2, 3), 1.0, charges, labels=torch.tensor([0, wanted]))


# ---- sampling


def _field_net(
    charges: pf.Charges, bad_row: int | None = None, below: float = 1.0
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The target itself as a network; bad_row turns into NaN where z falls below."""

    def net(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        vx, vz = pf.pfgm_target(x, z, charges)
        if bad_row is not None and float(z[0]) < below:
            vx[bad_row] = math.nan
        return vx, vz

    return net


def test_rk45_goes_on_without_a_bad_row() -> None:
    charges = pf.Charges(torch.randn(10, 6))
    x0 = PFGM().prior((4, 6))
    due = pf.sample(_field_net(charges), (4, 6), "rk45", x0=x0).x
    with pytest.warns(RuntimeWarning, match=r"rk45: dx/dt is not finite in 1 of 4 rows at t = 0\.\d+"):
        got = pf.sample(_field_net(charges, bad_row=1), (4, 6), "rk45", x0=x0).x
    assert got[1].isnan().all()
    kept = [0, 2, 3]
    torch.testing.assert_close(got[kept], due[kept], rtol=0, atol=1e-3)


def test_rk45_says_what_the_network_gave() -> None:
    def nothing(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, math.nan), -torch.ones(len(x))

    def huge(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, 1e30), torch.full((len(x),), -1e-30)

    for net in (nothing, huge):
        with pytest.warns(RuntimeWarning, match="not finite in 2 of 2 rows at t = 40: the network's output"):
            assert pf.sample(net, (2, 6), "rk45").x.isnan().all()


def test_rk45_says_where_it_cannot_go_on() -> None:
    """A derivative that is different at every look at it: steps shrink to nothing, and nobody but the flow is blamed."""
    generator = torch.Generator().manual_seed(0)

    def rough(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return 1e6 * torch.randn(x.shape, generator=generator), torch.full((len(x),), -1e-6)

    with pytest.raises(pf.SolverError, match=r"rk45 cannot go on at t = .* with rtol = 1e-09"):
        pf.sample(rough, (2, 6), "rk45", z_max=40.0, z_min=10.0, rtol=1e-9, atol=1e-9)


def test_float64_network() -> None:
    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(1, 4, 8, (1, 2), 1, (2,), dropout=0.0)).double()
    for method in (PFGM(), PFGMpp(), VESDE(), SubVPSDE()):
        for solver in ("euler", "rk45"):
            loose = {"rtol": 0.5, "atol": 0.5} if solver == "rk45" else {}
            out = pf.sample(net, (2, 1, 4, 4), solver, steps=2, method=method, seed=0, **loose)
            assert out.x.dtype == DOUBLE
    assert pf.sample(net.float(), (2, 1, 4, 4), steps=2).x.dtype == torch.float32


# ---- backends


def test_use_backend_is_set_where_it_is_entered() -> None:
    before = dispatch.chosen_backend()
    block = pf.use_backend("reference")
    assert dispatch.chosen_backend() == before
    with block, pf.use_backend("auto"), block:  # entered again within itself
        assert dispatch.chosen_backend() == "reference"
    with block:
        assert dispatch.chosen_backend() == "reference"
    assert dispatch.chosen_backend() == before
    with pytest.warns(RuntimeWarning, match="chose nothing: it is a block"):
        pf.use_backend("cpu")


def test_use_backend_in_interleaved_generators() -> None:
    before = dispatch.chosen_backend()

    def generate(name: str) -> Iterator[str]:
        with pf.use_backend(name):
            yield dispatch.chosen_backend()

    first, second = generate("reference"), generate("cpu")
    assert (next(first), next(second)) == ("reference", "cpu")
    first.close()
    assert dispatch.chosen_backend() == "cpu"
    second.close()
    assert dispatch.chosen_backend() == before


def test_use_backend_is_seen_by_backward_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU's backward runs: in a thread that has no context."""
    x, r, charges = _problem()
    seen: list[str] = []
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *a: seen.append(dispatch.chosen_backend()) or choose(*a))
    leaf = x.requires_grad_()
    with pf.use_backend("reference"):
        total = pf.posterior_mean(leaf, r, charges).square().sum()
    seen.clear()
    thread = threading.Thread(target=total.backward)
    thread.start()
    thread.join()
    assert seen and set(seen) == {"reference"}


def test_reason_names_both_copies(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python started in a clone that was not built, with a built copy installed."""
    installed = tmp_path / "site-packages" / "pfgm_fast"
    installed.mkdir(parents=True)
    (installed / f"_missing{compiled.EXTENSION_SUFFIXES[0]}").touch()
    monkeypatch.setitem(compiled.BACKENDS, "_missing", "cpu")
    alone = compiled.loading_error.__wrapped__("_missing")
    monkeypatch.syspath_prepend(str(installed.parent))
    hidden = compiled.loading_error.__wrapped__("_missing")
    assert alone is not None and str(installed) not in alone
    assert hidden is not None and hidden.startswith(alone)
    assert str(installed) in hidden and str(compiled.Path(pf.__file__).resolve().parent) in hidden


def test_no_warnings_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        pf.sample(_field_net(pf.Charges(torch.randn(10, 6))), (2, 6), "rk45")


def test_rk45_that_would_not_end_says_so() -> None:
    def rough(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(1e6 * x) * torch.cos(1e5 * z)[:, None], -torch.ones(len(x))

    with pytest.raises(
        pf.SolverError, match=r"max_nfe = 300 evaluations and stands at t = .*allow larger tolerances"
    ):
        pf.sample(rough, (2, 6), "rk45", max_nfe=300, rtol=1e-8, atol=1e-8, seed=0)
