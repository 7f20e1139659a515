"""A call that goes straight to the backend table gives what PyTorch's dispatcher gives; whatever watches or changes calls is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pfgm_fast as pf
from pfgm_fast.ops import front

FIELD = ("posterior_mean", "poisson_field", "score", "log_density", "field_step")
OPERATORS = (*FIELD, "normalize_field", "drift", "euler_step", "heun_step", "group_norm_silu")


def _arguments(op: str) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(0)
    x, vx = torch.randn(2, 3, 8, generator=draw)
    z, vz = torch.rand(2, 3, generator=draw) + 0.5
    charges = pf.Charges(torch.randn(40, 8, generator=draw))
    query = charges.query(x, z, 1.0)
    image, norm = x.view(1, 6, 2, 2), torch.rand(2, 6, generator=draw) + 0.5
    return {
        "field_step": (*query, 0.5 * z),
        "normalize_field": (x, z, 5.0),
        "drift": (vx, -vz, z, 5.0, 5.0),
        "euler_step": (x, vx, -vz, z, 0.9 * z, 5.0, 5.0, None),
        "heun_step": (x, vx, -vz, vx + 0.1, -vz, z, 0.9 * z, 5.0, 5.0, 3.0),
        "group_norm_silu": (image, *norm, 3, 1e-6, True, None, norm[:1], norm[1:]),
    }.get(op, tuple(query))


def _outputs(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


class Seen(TorchDispatchMode):
    """Names of the operators that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("op", OPERATORS)
def test_straight_and_dispatched_are_the_same(op: str, backend: str) -> None:
    args = _arguments(op)
    assert not front.watched(args)
    with pf.use_backend(backend):
        straight = _outputs(getattr(front, op)(*args))
        with Seen() as seen:
            dispatched = _outputs(getattr(front, op)(*args))
    assert f"pfgm_fast::{op}" in seen.names
    assert all(torch.equal(a, b) for a, b in zip(straight, dispatched, strict=True))


def test_every_operator_that_the_package_calls_is_there() -> None:
    from pfgm_fast.ops.schema import SCHEMAS

    inner = {
        "second_moment",
        "gaussian_moments",
        "group_norm_silu_backward",
    }  # derivatives': called by PyTorch's autograd
    assert set(OPERATORS) | {"euler_step.out"} | inner == set(SCHEMAS)
    assert all(callable(getattr(front, op)) for op in OPERATORS)


class Subclass(torch.Tensor):
    pass


Watch = Callable[[], AbstractContextManager[Any]]
MODES: dict[str, tuple[Watch, bool]] = {
    "nothing": (nullcontext, False),
    "no_grad": (torch.no_grad, False),
    "inference mode": (torch.inference_mode, False),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), False),
    "a dispatch mode": (Seen, True),
    "a default device": (lambda: torch.device("cpu"), True),
    "forward mode": (torch.autograd.forward_ad.dual_level, True),
    "the profiler": (lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), True),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_watches_is_asked(mode: str) -> None:
    args = _arguments("poisson_field")
    context, expected = MODES[mode]
    with context():
        assert front.watched(args) == expected


def test_tensors_that_are_no_plain_ones_are_watched() -> None:
    x, *rest = _arguments("poisson_field")
    wanted = x.clone().requires_grad_()
    for value in (wanted, x.as_subclass(Subclass), x.to("meta")):
        assert front.watched((value, *rest))
    assert front.watched((*rest[:1], x.as_subclass(Subclass)))
    with torch.no_grad():
        assert not front.watched((wanted, *rest))
    torch.vmap(lambda row: row.sum() if front.watched((row, *rest)) else None)(x)
    traced = []
    torch.jit.trace(lambda v: traced.append(front.watched((v,))) or v + 1, x, check_trace=False)
    assert traced == [True]


def test_profiles_name_the_operators() -> None:
    x, z, charges = torch.randn(3, 8), torch.rand(3) + 0.5, pf.Charges(torch.randn(40, 8))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pf.pfgm_target(x, z, charges)
    names = {event.key for event in profile.key_averages()}
    assert {"pfgm_fast::poisson_field", "pfgm_fast::normalize_field"} <= names
