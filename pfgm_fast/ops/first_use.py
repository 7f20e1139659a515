"""Is a backend right, on one small case: what the dispatcher asks before a GPU backend serves its first call of a kind.

The case and its result in float64 on the CPU are also what `pfgm_fast.selftest` is made of. A check takes well below a second, but for what
Triton compiles; a backend that misses it is refused with the reason, and `auto` goes on to the next. PFGM_FAST_SELFCHECK=0 turns
it off.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends import reference
from pfgm_fast.errors import BackendError
from pfgm_fast.ops.schema import NETWORK_OPERATORS, Query

ENVIRONMENT = "PFGM_FAST_SELFCHECK"
CHECKED = ("cuda", "triton")
"""Backends that are checked at first use: machine code that was made for, or on, a device that its makers may not have seen."""

BARS = {
    "poisson_field": 1e-5,
    "posterior_mean": 1e-5,
    "field_step": 1e-5,
    "log_density": 3e-5,
    "score": 5e-5,
    "second_moment": 1e-4,
    "normalize_field": 1e-5,
    "drift": 1e-5,
    "euler_step": 1e-5,
    "heun_step": 1e-5,
    "group_norm_silu": 1e-5,
    "group_norm_silu_backward": 1e-5,
}
"""Operator → the largest error that passes, as `error_of` measures it."""


@dataclass(frozen=True)
class Shape:
    """A case: queries B, charges M, dimension N; how the charges are stored; D; q not equal; all weights spread; every operator."""

    batch: int
    count: int
    dim: int
    as_bytes: bool
    aug_dim: float = 1.0
    weighted: bool = False
    spread: bool = False
    every_operator: bool = True


SMALL = {
    "bytes": Shape(24, 300, 96, True),
    "bytes, odd N": Shape(7, 131, 77, True),
    "bytes, spread": Shape(9, 300, 192, True, spread=True),
    "bytes, D = 2048": Shape(9, 200, 192, True, 2048.0),
    "floats": Shape(24, 300, 60, False),
    "floats, weights": Shape(9, 200, 37, False, weighted=True),
    "floats, D = inf": Shape(9, 200, 40, False, math.inf),
    "floats, spread": Shape(9, 300, 192, False, spread=True),
    "N = 2": Shape(33, 200, 2, False),
}
FAMILIES = {"bytes": SMALL["bytes"], "floats": SMALL["floats"], "small N": SMALL["N = 2"]}
"""What a first call of a field operator is checked with: the kernels differ by these."""


# ---- one case ------------------------------------------------------------------------------------------------------------


def case(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Any]:
    """x, r and Charges on the CPU; queries from on top of a charge to far from all. The global generators are not touched."""
    from pfgm_fast.charges import Charges

    draw = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=draw, dtype=dtype, device="cpu")
    size = (shape.count, shape.dim)
    if shape.as_bytes:
        y = torch.randint(0, 256, size, generator=draw, dtype=torch.uint8, device="cpu")
    else:
        y = normal(*size)
    weights = torch.rand(shape.count, generator=draw, device="cpu") + 0.01 if shape.weighted else None
    charges = Charges(y, weights)
    radii = torch.logspace(-2, 1, shape.batch, dtype=dtype, device="cpu") * math.sqrt(shape.dim / 96)
    if shape.spread:
        radii = torch.full_like(radii, 300 * math.sqrt(shape.dim / 3072))
    picked = charges.values(torch.arange(shape.batch, device="cpu") % shape.count).to(dtype)
    noise = normal(shape.batch, shape.dim)
    x = picked + radii[:, None] * noise / noise.norm(dim=1, keepdim=True)
    return x, (radii / math.sqrt(shape.dim) if math.isinf(shape.aug_dim) else 0.3 * radii), charges


def arguments(op: str, query: Query) -> tuple[Any, ...]:
    """An operator's arguments on the device of the query."""
    if op in NETWORK_OPERATORS:
        return _network_arguments(op, query.x)
    x, r = query.x, query.r
    direction = x / x.norm(dim=1, keepdim=True)
    vz, z = -0.5 - 0.1 * torch.ones_like(r), torch.full_like(r, 2.0)
    return {
        "second_moment": (query, direction, 1),
        "field_step": (query, 0.7 * r),
        "normalize_field": (x, r, 5.0),
        "drift": (direction, vz, z, 5.0, 5.0),
        "euler_step": (x, direction, vz, z, 0.9 * z, 5.0, 5.0),
        "heun_step": (x, direction, vz, 0.9 * direction, vz, z, 0.9 * z, 5.0, 5.0),
    }.get(op, (query,))


def _network_arguments(op: str, x: Tensor) -> tuple[Any, ...]:
    """x (B, N) as images of four channels of N pixels, in two groups."""
    image = (x[:, None] * torch.arange(1, 5, device=x.device, dtype=x.dtype)[:, None]).contiguous()
    ones, rows = torch.ones_like(image[0, :, 0]), 0.5 * image[:, :, 0].contiguous()
    norm, sums = (1.5 * ones, 0.5 * ones), (rows[:, :2].contiguous(), 0.5 + rows[:, :2].square())
    if op == "group_norm_silu":
        return (image, *norm, 2, 1e-6, True, None, rows, rows)
    return (0.5 * image, image, *norm, *sums, 2, True, rows, None, None)


def result(value: Any) -> Tensor:
    """An operator's first output, (B,) or (B, N)."""
    first = (value[0] if isinstance(value, tuple) else value).double().cpu()
    return first.flatten(1) if first.dim() > 2 else first


def error_of(op: str, got: Tensor, expected: Tensor, exact: Query) -> float:
    """The worst row's error: of unit directions, or relative to what sets the operator's scale. NaN stays NaN."""
    if op == "log_density":
        return float((got - expected).abs().max() / (1 + expected.abs().max()))
    if op == "poisson_field":
        joined = [torch.cat([field, exact.r[:, None]], 1) for field in (got, expected)]
        unit = [field / field.norm(dim=1, keepdim=True) for field in joined]
        return float((unit[0] - unit[1]).norm(dim=1).max())
    scale = expected.norm(dim=1)
    if op in ("posterior_mean", "field_step"):
        scale = scale + exact.charges.norm(dim=1).max()
    if op == "score":
        scale = scale + 1e-6 / exact.r
    return float(((got - expected).norm(dim=1) / scale).max())


@dataclass(frozen=True)
class Exact:
    """A case in float64 on the CPU, its operators computed at `rows` of the queries, each once."""

    query: Query
    rows: Tensor
    results: dict[str, Tensor]

    def of(self, op: str) -> Tensor:
        if op not in self.results:
            self.results[op] = result(getattr(reference, op)(*arguments(op, self.query)))
        return self.results[op]


def exact_of(x: Tensor, r: Tensor, charges: Any, aug_dim: float, rows: Tensor) -> Exact:
    values = charges.values().double()
    query = Query(
        x[rows].double(), r[rows].double(), values, charges.log_weights, None, None, 1.0, 0.0, aug_dim
    )
    return Exact(query, rows, {})


@contextlib.contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """Whatever mode the caller is in: no gradients, and reading a result is no fault."""
    with torch.no_grad():
        if device.type != "cuda":
            yield
            return
        mode = torch.cuda.get_sync_debug_mode()
        if mode:  # setting it warns, even to what it is
            torch.cuda.set_sync_debug_mode("default")
        try:
            with torch.cuda.device(device):
                yield
        finally:
            if mode:
                torch.cuda.set_sync_debug_mode(mode)


# ---- at first use --------------------------------------------------------------------------------------------------------


verdicts: dict[str, str] = {}
"""What each check of this process came to, "passed" or why not, by backend, operator, kind of call and device; for `info`."""

_lost: dict[torch.device, str] = {}
"""Devices on which nothing runs any more in this process, and what happened."""


def refusal(name: str, op: str, x: Tensor, charges: Tensor | None) -> str | None:
    """Why the backend may not serve calls like this one: what its check came to, or None. Asked once for each kind of call.

    Raises: BackendError where a check cost the device: no other backend could serve there either.
    """
    if x.device in _lost:
        raise BackendError(_lost[x.device])
    if not due(name, x.device):
        return None
    reason = _checked(name, op.removesuffix("_out"), family(x, charges), x.device, x.dtype)
    if x.device in _lost:
        raise BackendError(_lost[x.device])
    return reason


def family(x: Tensor, charges: Tensor | None) -> str:
    """Calls of one operator that the same kernels serve, about."""
    if charges is None:
        return "steps"
    if x.shape[1] <= 16:
        return "small N"
    return "bytes" if charges.dtype == torch.uint8 else "floats"


def due(name: str, device: torch.device) -> bool:
    """Whether a check is asked for, and can be made."""
    checked = name in CHECKED and device.type == "cuda" and os.environ.get(ENVIRONMENT) != "0"
    return checked and not capturing(device)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be read back."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def lost(device: torch.device) -> bool:
    """Whether nothing can run on the device any more in this process, as after an illegal address."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).add_(1).cpu()
    except Exception:
        return True
    return False


@cache
def _checked(name: str, op: str, family: str, device: torch.device, dtype: torch.dtype) -> str | None:
    reason = _check(name, op, family, device, dtype)
    verdicts[f"{name}: {op}, {family}, {str(dtype).removeprefix('torch.')} on {device}"] = reason or "passed"
    return reason


def _check(name: str, op: str, family: str, device: torch.device, dtype: torch.dtype) -> str | None:
    from pfgm_fast.ops.dispatch import backend

    advice = f"({ENVIRONMENT}=0 turns the check off, `pfgm-fast selftest` says more)"
    dtype = dtype if dtype == torch.float64 else torch.float32
    try:
        shape = FAMILIES.get(family, SMALL["floats"])
        with quiet(device):
            x, r, charges = case(shape, dtype)
            exact = exact_of(x, r, charges, shape.aug_dim, torch.arange(shape.batch))
            query = charges.to(device).query(x.to(device), r.to(device), shape.aug_dim)
            got = result(getattr(backend(name), op)(*arguments(op, query)))
            error = error_of(op, got, exact.of(op), exact.query)
    except Exception as broken:
        said = f"its check at first use broke in {op}, {family}: {type(broken).__name__}: {broken}"
        if lost(device):
            _lost[device] = (
                f"{device} can do nothing more in this process, which must be restarted: {name}: {said}. In the new one "
                f"`with use_backend(...)` or PFGM_FAST_BACKEND can choose another backend"
            )
        return f"{said} {advice}"
    if error <= BARS[op]:
        return None
    return (
        f"its check at first use missed in {op}, {family}: error {error:.1e}, at most {BARS[op]:.0e} {advice}"
    )
