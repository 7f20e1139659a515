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

from pfgm_fast.checks import has_tangent
from pfgm_fast.errors import ArgumentError, BackendError, DerivativeError
from pfgm_fast.ops import first_use
from pfgm_fast.ops.schema import FIELD_OPERATORS, REFERENCE_ONLY, Query, function_name

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

    Raises: ArgumentError for an unknown name. A backend that cannot serve a call raises BackendError at that call.
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


def _first_that_serves(op: str, wanted: str, x: Tensor, charges: Tensor | None) -> Any:
    order = TABLE.get(x.device.type, ()) if wanted == "auto" else (wanted,)
    reasons = []
    for name in order:
        reason = _refusal(name, op, x, charges)
        if reason is None:
            for passed_over in order[: order.index(name)]:
                if backend(passed_over).unavailable() is not None and passed_over in ("cpu", "cuda"):
                    backend("compiled").warn_once(passed_over, name)
            return backend(name)
        reasons.append(f"{name}: {reason}")
    raise BackendError(
        f"no backend can run {op} on {x.device.type} tensors: " + "; ".join(reasons or ["none is listed"])
    )


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, where the caller has it on: kernels, proofs and derivatives compute in the dtype that they are given."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _span(value: Tensor) -> tuple[int, int]:
    """Addresses from the first byte to behind the last."""
    if value.numel() == 0:
        return 0, 0
    steps = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.data_ptr(), value.data_ptr() + (steps + 1) * value.element_size()


def writable(op: str, out: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    """The rules of PyTorch's own `out=`: nothing in it wants a gradient, and out is an input's memory exactly or not at all.

    Returns inputs[1], as a copy where out is its memory: a row is read twice. Raises: DerivativeError, ArgumentError.
    """
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in (*tensors, out))
    if wanted or any(has_tangent(value) for value in (*tensors, out)):
        raise DerivativeError(
            f"{op}: out= takes no part in autograd, but a tensor of the call wants a gradient"
        )
    start, end = _span(out)
    second = tensors[1]
    for i, value in enumerate(tensors):
        low, high = _span(value)
        if low >= end or high <= start:
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
    or None), `not_built` (backend → why its library is not there), `chosen` (the backend asked for), `backends` (name → "ok" or the reason why not), `devices` (device → the backend
    that `auto` takes for float32). Print it with `pfgm-fast info`.
    """
    import platform

    import pfgm_fast

    backends = status()
    devices = {}
    for device, order in TABLE.items():
        if device == "cuda" and not torch.cuda.is_available():
            devices[device] = "no CUDA device is visible to PyTorch"
            continue
        devices[device] = next(name for name in order if backends[name] == "ok")
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
            name: backend("compiled").not_built(name)
            for name, built in (("cpu", build), ("cuda", cuda_build))
            if built is None
        },
        "gpus": gpus,
        "chosen": chosen_backend(),
        "backends": backends,
        "devices": devices,
    }
