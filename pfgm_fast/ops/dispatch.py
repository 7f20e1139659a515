"""The one table that decides which backend serves a call, and what may be said about it (`info`)."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pfgm_fast.checks import has_tangent
from pfgm_fast.errors import ArgumentError, BackendError, DerivativeError
from pfgm_fast.ops import first_use
from pfgm_fast.ops.schema import FIELD_OPERATORS, NETWORK_OPERATORS, REFERENCE_ONLY, Query, function_name

TABLE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}
"""device → backends in the order of preference. A backend that `refuses` a call (by operator, device or dtype) is passed
over under `auto`; which of its kernels serves which shape is a backend's own affair."""

QUERY_LENGTH = len(Query._fields)
NAMES = ("reference", "cpu", "triton", "cuda")
ENVIRONMENT = "PFGM_FAST_BACKEND"
_START = os.environ.get(ENVIRONMENT, "auto")  # read once: every call of every operator asks

_choices: ContextVar[tuple[use_backend, ...]] = ContextVar("pfgm_fast_backend", default=())
"""The `with use_backend(...)` blocks that this thread or task is in, innermost last."""


def _checked(name: str, said_by: str) -> str:
    if name not in ("auto", *NAMES):
        raise ArgumentError(f"{said_by} must be 'auto' or one of {', '.join(NAMES)}; got {name!r}")
    return name


class use_backend:  # noqa: N801 - used like a function, as `with use_backend("cpu"):`
    """Choose the backend within a `with` block: `with use_backend("reference"): ...`.

    "auto" asks the table. Blocks nest, an object may be entered again, and a block ends what it began wherever it ends
    (interleaved generators). The choice belongs to the thread or asyncio task; backward runs with the choice of its
    forward, in whichever thread. The environment variable PFGM_FAST_BACKEND, read at import, holds outside all blocks.

    Args:
        name: One of "auto", "reference", "cpu", "triton", "cuda".

    Raises:
        ArgumentError: An unknown name.
        BackendError: At the call that the backend cannot serve.
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name, "use_backend(name)")
        self._entered = False

    def __enter__(self) -> str:
        self._entered = True
        _choices.set((*_choices.get(), self))
        return self.name

    def __exit__(self, *_: object) -> None:
        choices = _choices.get()
        at = max((i for i, choice in enumerate(choices) if choice is self), default=None)
        if at is not None:  # another thread may end what this one never entered
            _choices.set(choices[:at] + choices[at + 1 :])

    def __del__(self) -> None:
        if not getattr(self, "_entered", True):
            warnings.warn(
                f"use_backend({self.name!r}) chose nothing: it is a block, `with use_backend({self.name!r}): ...`",
                RuntimeWarning,
                stacklevel=2,
            )


def chosen_backend() -> str:
    """What is asked for: the innermost `use_backend`, else PFGM_FAST_BACKEND, else "auto"."""
    choices = _choices.get()
    return choices[-1].name if choices else _checked(_START, ENVIRONMENT)


def backend(name: str) -> Any:
    """The backend's module. Importing one compiles nothing and needs none of its libraries."""
    return importlib.import_module(f"pfgm_fast.backends.{name}")


def _refusal(name: str, op: str, x: Tensor, charges: Tensor | None) -> str | None:
    module = backend(name)
    return module.unavailable() or module.refuses(op, x, charges) or first_use.refusal(name, op, x, charges)


_chosen: dict[Any, Any] = {}
"""What `choose` found, for each operator, wish, device and dtype: all that a refusal may depend on."""


def status() -> dict[str, str]:
    """Each backend's state: "ok", or the reason why it cannot run here."""
    return {name: backend(name).unavailable() or "ok" for name in NAMES}


def choose(op: str, x: Tensor, charges: Tensor | None) -> Any:
    """The module of the backend that serves this call.

    Raises: BackendError with each asked backend's reason.
    """
    wanted = "reference" if op in REFERENCE_ONLY else chosen_backend()
    key = (
        op,
        wanted,
        x.device,  # with its index: a machine may have two kinds of GPU
        x.dtype,
        None if charges is None else (charges.device, charges.dtype),
        first_use.family(x, charges),
    )
    module = _chosen.get(key)
    if module is None:
        module = _first_that_serves(op, wanted, x, charges)
        if not first_use.capturing(x.device):  # nothing can be checked there: the next call asks again
            _chosen[key] = module
    return module


def _asked(op: str, wanted: str, x: Tensor, charges: Tensor | None) -> dict[str, str | None]:
    """Backends in the order in which they are asked, each with its refusal; the last one serves where that is None."""
    answers: dict[str, str | None] = {}
    elsewhere = ("reference",) if op in NETWORK_OPERATORS else ()  # a network runs wherever PyTorch does
    for name in TABLE.get(x.device.type, elsewhere) if wanted == "auto" else (wanted,):
        answers[name] = _refusal(name, op, x, charges)
        if answers[name] is None:
            break
    return answers


def _first_that_serves(op: str, wanted: str, x: Tensor, charges: Tensor | None) -> Any:
    answers = _asked(op, wanted, x, charges)
    *passed_over, name = answers or ("none",)
    if answers.get(name, "none is listed") is None:
        for other in passed_over:
            if backend(other).unavailable() is not None and other in ("cpu", "cuda"):
                backend("compiled").warn_once(other, name)
        return backend(name)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in answers.items()) or "none is listed"
    raise BackendError(f"no backend can run {op} on {x.device.type} tensors: {reasons}")


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, where the caller has it on: kernels, proofs and derivatives compute in the dtype that they are given."""
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _span(value: Tensor) -> tuple[int, int]:
    """Addresses from the first byte to behind the last."""
    start = value.data_ptr()
    if value.is_contiguous():
        return start, start + value.nbytes
    if value.numel() == 0:
        return start, start
    steps = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return start, start + (steps + 1) * value.element_size()


def writable(op: str, out: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    """The rules of PyTorch's own `out=`: nothing in it wants a gradient, and out is an input's memory exactly or not at all.

    Returns inputs[1], as a copy where out is its memory: a row is read twice. Raises: DerivativeError, ArgumentError.
    """
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    wanted = torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors, out)
    if wanted or (forward_ad._current_level >= 0 and any(map(has_tangent, (*tensors, out)))):
        raise DerivativeError(
            f"{op}: out= takes no part in autograd, but a tensor of the call wants a gradient"
        )
    start, end = _span(out)
    second = tensors[1]
    for i, value in enumerate(tensors):
        low = value.data_ptr()
        if low >= end or (low + value.nbytes <= start and value.is_contiguous()):
            continue
        low, high = _span(value)
        if high <= start:
            continue
        same = (low, high) == (start, end) and value.shape == out.shape and value.dtype == out.dtype
        if not same or not value.is_contiguous():
            raise ArgumentError(
                f"{op}: out shares some of an input's memory, but not all of it in order: pass a copy"
            )
        if i == 1:
            second = value.clone()
    return second


def kernel(op: str) -> Callable[..., Any]:
    """The front operator's kernel: ask the table, call the backend's function of the same name."""
    name = function_name(op)

    def call(*args: Any, **kwargs: Any) -> Any:
        with full_precision(args[0].device.type):
            return getattr(choose(name, args[0], None), name)(*args, **kwargs)

    def call_field(*args: Any) -> Any:
        query = Query(*args[:QUERY_LENGTH])
        with full_precision(query.x.device.type):
            return getattr(choose(name, query.x, query.charges), name)(query, *args[QUERY_LENGTH:])

    def call_into(x: Tensor, vx: Tensor, *args: Any, out: Tensor) -> None:
        with full_precision(x.device.type):
            vx = writable(name, out, (x, vx, *args))
            getattr(choose(name, x, None), name)(x, vx, *args, out=out)
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)

    kernel = call_field if op in FIELD_OPERATORS else call_into if op.endswith(".out") else call
    kernel.__name__ = name
    return kernel


def info() -> dict[str, Any]:
    """What was built, what will run where, and why not.

    Returns a dict: `version`, `torch`, `python`, `build` and `cuda_build` (what the two compiled libraries say of themselves,
    or None), `not_built` (backend → why its library is not there), `gpus`, `chosen` (the backend asked for), `backends` (name →
    "ok" or the reason why not), `devices` (device → the backend that `auto` takes for the field of float32 queries; on a GPU this
    makes the checks of first use), `checks` (what these came to in this process). Print it with `pfgm-fast info`.
    """
    import platform

    import pfgm_fast

    devices = {device: _taken(device) for device in TABLE}
    build: dict[str, Any] | None = None
    with contextlib.suppress(Exception):  # a report must not fail where a driver is broken
        build = importlib.import_module("pfgm_fast._C").build_info()
    cuda_build: dict[str, str] | None = None
    with contextlib.suppress(Exception):
        cuda_build = backend("cuda").build_info()
    gpus: list[str] = []
    with contextlib.suppress(Exception):  # a report must not fail where a driver is broken
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "version": pfgm_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "build": build,
        "cuda_build": cuda_build,
        "not_built": {
            name: _absence(name, library)
            for name, library, built in (("cpu", "_C", build), ("cuda", "_C_cuda", cuda_build))
            if built is None
        },
        "gpus": gpus,
        "chosen": chosen_backend(),
        "backends": {name: _state(name, reason) for name, reason in status().items()},
        "devices": devices,
        "checks": dict(first_use.verdicts),
    }


KINDS = {"bytes": (40, torch.uint8), "floats": (40, torch.float32), "small N": (2, torch.float32)}
"""Kinds of field calls that different kernels serve (`first_use.family`): N and the dtype of the charges."""


def _taken(device: str) -> str:
    """What `auto` takes there for poisson_field: one name, or one for each kind of call."""
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device is visible to PyTorch"
    found = {}
    for kind, (dim, dtype) in KINDS.items():
        try:
            x, charges = torch.zeros(1, dim, device=device), torch.zeros(1, dim, device=device, dtype=dtype)
            answers = _asked("poisson_field", "auto", x, charges)
            found[kind] = next((name for name, reason in answers.items() if reason is None), "none")
        except Exception as broken:  # a report must not fail where a device is broken
            found[kind] = f"none: {broken}"
    if len(set(found.values())) == 1:
        return found["bytes"]
    return "; ".join(f"{kind}: {name}" for kind, name in found.items())


def _state(name: str, reason: str) -> str:
    """A backend's state with what its checks of first use and the GPUs that are here add to it."""
    if reason != "ok" or name not in first_use.CHECKED:
        return reason
    with contextlib.suppress(Exception):  # as above
        x = torch.zeros(1, 40, device="cuda" if torch.cuda.is_available() else "cpu")
        refused = backend(name).refuses("poisson_field", x, x)
        if refused is not None:
            return refused
    made = {what: verdict for what, verdict in first_use.verdicts.items() if what.startswith(f"{name}: ")}
    missed = {what: verdict for what, verdict in made.items() if verdict != "passed"}
    if missed:
        return f"refused where its check missed ({len(missed)} of {len(made)}): {next(iter(missed.values()))}"
    return "ok"


def _absence(name: str, library: str) -> str:
    """Why a compiled library does not say what it is: how its build ended, or why it does not load."""
    compiled = backend("compiled")
    built = compiled.build_outcome().get(name, {}).get("state") == "built"
    return (compiled.loading_error(library) if built else None) or compiled.not_built(name)
