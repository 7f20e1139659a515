"""Symptoms that users of neighbouring projects reported, as they would show in the operators: one test or more for each.

Each row was seen failing at commit 1564364, with these tests run in a worktree of that commit.

| source of the symptom | kind | test |
|---|---|---|
| apex #973, pytorch #42479 | autocast, TF32 and default dtype reach kernels and derivatives | `test_settings_of_the_caller_change_nothing` |
| Liger-Kernel #273 | `out=` behind autograd's back | `test_out_moves_the_version`, `test_out_that_may_not_be` |
| scipy #18386 | two log-gammas cancel | tests/test_special.py |
| (none) | a clone without its library hides the one installed | `test_reason_names_both_copies` |
| pytorch #12013 | B = 0 | `test_empty_batch*` |
| (none) | NumPy scalars are refused with a puzzling text | `test_numpy_numbers`, `test_what_is_no_number` |
| (none) | r > 0 that float32 holds as 0 | `test_r_that_vanishes` |
| (none) | `use_backend` leaks, or is not seen by backward | `test_use_backend_*` |
| (none) | a device nobody serves | `test_device_that_nobody_serves` |
| (none) | a GPU divides bytes through the reciprocal | `test_bytes_under_a_gpus_rule_of_division` |
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pfgm_fast as pf
from pfgm_fast import checks
from pfgm_fast.backends import compiled, reference
from pfgm_fast.ops import dispatch
from tests.small_problem import BACKENDS, DOUBLE, FIELD, network, problem

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
    x, _r, charges = problem()
    due = pf.posterior_mean(x, 0.5, charges, 128.0)
    for number in (np.float64(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5)):
        for aug_dim in (np.int64(128), np.float32(128), np.array(128), torch.tensor(128), 128):
            assert torch.equal(pf.posterior_mean(x, number, charges, aug_dim), due)
    vx, vz = network()
    assert torch.equal(
        pf.euler_step(x, vx, vz, np.float64(2), np.int32(1), gamma=np.float32(5), z_exp=np.int64(5)),
        pf.euler_step(x, vx, vz, 2, 1),
    )
    assert pf.sample(charges, (2, 4), steps=np.int64(3)).nfe == 3
    assert pf.interpolate(x, 2 * x, np.int64(3)).shape == (3, 3, 4)


def test_what_is_no_number() -> None:
    x, _, charges = problem()
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
    x, r, charges = problem()
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
