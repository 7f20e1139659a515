"""`group_norm_silu` and its gradients, on every backend, against float64: layouts, ragged channels, large means, the networks' groups."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.nn.layers import GroupNormSiLU, group_norm
from pfgm_fast.ops import dispatch
from pfgm_fast.ops.dispatch import status

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]
CASES = {
    "ddpmpp, 28 × 28": (2, 32, 28, 28, 8, 1e-6),
    "ddpmpp, lowest level": (3, 128, 4, 4, 32, 1e-6),
    "adm": (2, 192, 5, 5, 32, 1e-5),
    "one group, ragged": (2, 37, 5, 7, 1, 1e-6),
    "one pixel": (3, 12, 1, 1, 3, 1e-5),
    "one channel a group": (2, 6, 9, 3, 6, 1e-5),
    "several tiles": (1, 8, 30, 45, 2, 1e-6),
}
"""B, C, H, W, groups, eps."""
BARS = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float64: 1e-12}
"""Relative L2 error, of the result and each gradient; bfloat16 rounds the result and dx once (2⁻⁹ at most), the others not at all.
Triton's interpreter, unlike its compilers, cuts to bfloat16 instead of rounding: 2⁻⁸."""


def _case(name: str, dtype: torch.dtype, last: bool, numbers: str) -> tuple[list[Tensor | None], int, float]:
    """x, weight, bias, add, scale, shift; x's channels have means up to 60 of their own."""
    batch, channels, height, width, groups, eps = CASES[name]
    draw = torch.Generator().manual_seed(3)
    kind = torch.promote_types(dtype, torch.float32)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=kind)

    x = 3 * normal(batch, channels, height, width) + 20 * normal(channels, 1, 1)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    rows = [normal(batch, channels) for _ in range(3)]
    kept = {"none": (), "add": (0,), "scale": (1, 2), "all": (0, 1, 2)}[numbers]
    some = [row if i in kept else None for i, row in enumerate(rows)]
    return [x, 1 + 0.5 * normal(channels), normal(channels), *some], groups, eps


def _formula(inputs: list[Tensor | None], groups: int, eps: float, silu: bool) -> Tensor:
    x, weight, bias, add, scale, shift = inputs
    columns = [None if row is None else row[:, :, None, None] for row in (add, scale, shift)]
    z = F.group_norm(x if columns[0] is None else x + columns[0], groups, weight, bias, eps)
    z = z if columns[1] is None else z * (1 + columns[1])
    z = z if columns[2] is None else z + columns[2]
    return F.silu(z) if silu else z


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-9))


def _leaves(inputs: list[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    return [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]


@pytest.mark.parametrize("numbers", ["none", "add", "scale", "all"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend: str, case: str, dtype: torch.dtype, last: bool, numbers: str) -> None:
    if backend == "cpu" and dtype == torch.float64:
        pytest.skip("served by the reference")
    _check(backend, case, dtype, last, numbers)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "one of every two channels": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "a slice of channels-last": lambda x: torch.cat([x, x], 1).to(memory_format=torch.channels_last)[:, : x.shape[1]],
    "expanded over the batch": lambda x: x[:1].expand_as(x),
    "sequences": lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2),
    "volumes": lambda x: x.unflatten(3, (-1, 1)).contiguous(memory_format=torch.channels_last_3d),
}  # fmt: skip


@pytest.mark.parametrize("add", [False, True], ids=["", "add"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_keeps_to_what_cuda_takes(
    layout: str, add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's group norm takes any suggested memory format on a CPU, on CUDA the contiguous one alone: held to that here."""
    (x, *norm, rows, _, _), groups, eps = _case("one group, ragged", torch.float32, False, "add")
    x, right = LAYOUTS[layout](x), torch.native_group_norm

    def of_cuda(wide: Tensor, *more: object) -> object:
        assert wide.is_contiguous(memory_format=torch.contiguous_format)
        return right(wide, *more)

    monkeypatch.setattr(torch, "native_group_norm", of_cuda)
    rows = rows if add else None
    got = reference.group_norm_silu(x, *norm, groups, eps, True, rows)[0]
    wide = (
        x.double() if rows is None else x.double() + rows.double().reshape(*rows.shape, *(1,) * (x.dim() - 2))
    )
    expected = F.silu(F.group_norm(wide, groups, *(n.double() for n in norm), eps))
    assert _error(got, expected) < BARS[torch.float32]


@pytest.mark.interpreter
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    ("case", "dtype", "last", "numbers"),
    [
        ("ddpmpp, lowest level", torch.bfloat16, True, "add"),
        ("ddpmpp, lowest level", torch.float32, False, "scale"),
        ("one group, ragged", torch.float32, True, "all"),
        ("one group, ragged", torch.float64, False, "scale"),
        ("one pixel", torch.float32, True, "none"),
        ("several tiles", torch.float32, True, "add"),
        ("several tiles", torch.bfloat16, False, "none"),
    ],
    ids=str,
)
def test_in_tritons_interpreter(case: str, dtype: torch.dtype, last: bool, numbers: str) -> None:
    torch.use_deterministic_algorithms(True)  # memory from torch.empty is NaN
    try:
        _check("triton", case, dtype, last, numbers)
    finally:
        torch.use_deterministic_algorithms(False)


def _check(backend: str, case: str, dtype: torch.dtype, last: bool, numbers: str) -> None:
    inputs, groups, eps = _case(case, dtype, last, numbers)
    inputs, exact = _leaves(inputs), _leaves(inputs, torch.float64)
    silu = numbers != "all"
    with pf.use_backend(backend):
        got, mean, rstd = torch.ops.pfgm_fast.group_norm_silu(*inputs[:3], groups, eps, silu, *inputs[3:])
        want = torch.randn(got.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
        found = torch.autograd.grad(got, [t for t in inputs if t is not None], want)
    expected = _formula(exact, groups, eps, silu)
    theirs = torch.autograd.grad(expected, [t for t in exact if t is not None], want.double())
    assert got.dtype == dtype and got.stride() == inputs[0].stride()
    assert mean.shape == rstd.shape == (len(got), groups) and not mean.requires_grad
    bar = 2.0**-8 if backend == "triton" and dtype == torch.bfloat16 else BARS[dtype]
    assert _error(got.detach(), expected.detach()) < bar
    scale = max(
        float(t.norm()) for t in theirs
    )  # a sum that cancels (the gradient of add) is judged beside the others
    for ours, exact_one in zip(found, theirs, strict=True):
        assert (ours.double() - exact_one).norm() < bar * max(float(exact_one.norm()), 1e-2 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_that_is_not_finite_spoils_its_group_alone(dtype: torch.dtype) -> None:
    inputs, groups, eps = _case("ddpmpp, lowest level", dtype, True, "none")
    inputs[0][1, 5, 2, 2] = float("nan")
    out = torch.ops.pfgm_fast.group_norm_silu(*inputs[:3], groups, eps, True, None, None, None)[0]
    bad = out.float().isnan().flatten(2).any(2)
    assert bad[1, 4:8].all() and int(bad.sum()) == 4


def test_second_derivatives_and_transforms() -> None:
    inputs, groups, eps = _case("one channel a group", torch.float64, False, "all")
    inputs = _leaves(inputs)

    def ours(*given: Tensor) -> Tensor:
        return torch.ops.pfgm_fast.group_norm_silu(*given[:3], groups, eps, True, *given[3:])[0]

    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs, fast_mode=True)
    single = [t.detach().float() for t in inputs]
    tangents = [torch.randn_like(t) for t in single]
    both = [
        torch.func.jvp(f, tuple(single), tuple(tangents))[1]
        for f in (ours, lambda *g: _formula(list(g), groups, eps, True))
    ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(t, d) for t, d in zip(single, tangents, strict=True)]
        tangent = torch.autograd.forward_ad.unpack_dual(ours(*duals)).tangent
    torch.testing.assert_close(tangent, both[1], rtol=1e-4, atol=1e-4)
    rows = torch.vmap(lambda x: ours(x, *single[1:3], *(t[:1] for t in single[3:])))(single[0][:, None])
    again = torch.cat([ours(x[None], *single[1:3], *(t[:1] for t in single[3:])) for x in single[0]])
    torch.testing.assert_close(rows[:, 0], again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
def test_the_module_takes_any_layout_and_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = group_norm(24)
    nn_norm = torch.nn.GroupNorm(6, 24, eps=1e-6)
    norm.load_state_dict(nn_norm.state_dict())
    assert list(norm.state_dict()) == ["weight", "bias"] and isinstance(norm, torch.nn.GroupNorm)
    assert isinstance(norm, GroupNormSiLU) and "silu=True" in repr(norm)
    x = torch.randn(4, 48, 10, 10).to(dtype)
    for view in (
        x[:, ::2],
        x[:, :24],
        x[:, :24].transpose(2, 3),
        x[::2, 24:].to(memory_format=torch.channels_last),
    ):
        expected = F.silu(nn_norm.double()(view.double()))
        assert _error(norm(view).detach(), expected.detach()) < (
            1e-5 if dtype in (torch.float32, torch.float64) else 3e-3
        )


def test_compiles_whole_in_both_layouts() -> None:
    norm = group_norm(12)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 12, 6, 5).contiguous(memory_format=layout).requires_grad_()
        got, expected = (f(x, torch.ones(2, 12)) for f in (compiled, norm))
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)]
        torch.testing.assert_close(*grads)


def test_a_network_runs_on_devices_without_kernels() -> None:
    """The reference serves where the table lists no backend; operators of charges are refused there."""

    class Elsewhere:
        device, dtype = torch.device("mps"), torch.float32

    answers = dispatch._asked("group_norm_silu", "auto", Elsewhere(), None)  # type: ignore[arg-type]
    assert answers == {"reference": None}
    assert dispatch._asked("poisson_field", "auto", Elsewhere(), None) == {}  # type: ignore[arg-type]
