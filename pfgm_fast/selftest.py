"""Does what is installed here compute what it should: every backend against the reference in float64, on this machine.

`selftest()` and `pfgm-fast selftest` give a table of errors and times, in two minutes at most. It is the first thing to run on a new machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends import reference
from pfgm_fast.ops.first_use import (
    BARS,
    CHECKED,
    SMALL,
    Exact,
    Shape,
    arguments,
    case,
    error_of,
    exact_of,
    lost,
    quiet,
    result,
)
from pfgm_fast.ops.schema import FIELD_OPERATORS, NETWORK_OPERATORS, Query, function_name

FIELDS = tuple(op for op in BARS if op in FIELD_OPERATORS)
STEPS = ("normalize_field", "drift", "euler_step", "heun_step")

REAL = {
    "128 x 4096 x 3072, bytes": Shape(128, 4096, 3072, True, every_operator=False),
    "128 x 4096 x 3072, floats": Shape(128, 4096, 3072, False, every_operator=False),
    "128 x 4096 x 3072, bytes, spread": Shape(128, 4096, 3072, True, spread=True, every_operator=False),
    "64 x 60000 x 784, bytes": Shape(64, 60000, 784, True, every_operator=False),
    "4096 x 4096 x 2": Shape(4096, 4096, 2, False, every_operator=False),
    "4 x 256 x 196608, bytes": Shape(4, 256, 196608, True, every_operator=False),
    "128 x 50000 x 3072, bytes": Shape(128, 50000, 3072, True, every_operator=False),
}
TIME_IS_UP = "not run: the time is up"


@dataclass(frozen=True)
class Row:
    """One backend on one case. error: the worst operator's error over its bar, times 1e-5, so that 1e-5 is the bar of all."""

    backend: str
    device: str
    case: str
    error: float | None = None
    worst: str = ""  # operator
    seconds: float | None = None  # of poisson_field, the median call
    note: str = ""
    ok: bool = True


@dataclass(frozen=True)
class Report:
    rows: tuple[Row, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Nothing that ran missed its bar."""
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        lines = [
            "| backend | device | case | error (bar 1e-05) | worst in | time | |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            error = "" if row.error is None else f"{row.error:.1e}"
            took = "" if row.seconds is None else f"{row.seconds * 1e3:.3g} ms"
            state = row.note if row.ok else f"MISSED {row.note}".rstrip()
            lines.append(
                f"| {row.backend} | {row.device} | {row.case} | {error} | {row.worst} | {took} | {state} |"
            )
        ran, missed = (
            sum(row.error is not None or not row.ok for row in self.rows),
            sum(not row.ok for row in self.rows),
        )
        said = f"{missed} MISSED" if missed else "all passed" if ran else "nothing could be checked"
        left = sum(row.note == TIME_IS_UP for row in self.rows)
        more = f"; {left} not run: the time was up" if left else ""
        lines += ["", f"{ran} checks in {self.seconds:.0f} s: {said}{more}"]
        return "\n".join(lines)


# ---- the whole -----------------------------------------------------------------------------------------------------------


def selftest(
    backends: tuple[str, ...] | None = None, seconds: float = 120.0, say: Callable[[Row], None] | None = None
) -> Report:
    """Every backend that can run here against the reference in float64 on the CPU, on small and on real shapes.

    Returns a Report: `rows`, `ok`; as a string, a Markdown table.

    Args:
        backends: Names; None: all. One that cannot run is a row with its reason, not a miss.
        seconds: No check begins after so long, ≥ 0; what was then not run is a row that says so, not a miss.
        say: Called with each row as it is found.

    Raises:
        ArgumentError: An unknown name.
    """
    from pfgm_fast.ops.dispatch import NAMES
    from pfgm_fast.ops.dispatch import _checked as known

    chosen = tuple(known(name, "backends") for name in backends) if backends else NAMES
    began, rows = time.monotonic(), []
    for row in _rows(chosen, began + seconds):
        rows.append(row)
        if say:
            say(row)
    return Report(tuple(rows), time.monotonic() - began)


def _rows(names: tuple[str, ...], until: float) -> Iterator[Row]:
    from pfgm_fast.ops.dispatch import backend

    places = []
    for name in names:
        reason = backend(name).unavailable()
        if reason is not None:
            yield Row(name, "", "all", note=f"does not run here: {reason}")
            continue
        devices = [torch.device("cpu")]
        if torch.cuda.is_available() and name != "cpu":
            gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
            devices = gpus if name in CHECKED else devices + gpus
        places += [(name, device) for device in devices]
    cases = [(title, shape, True) for title, shape in SMALL.items()]
    cases += [(title, shape, False) for title, shape in REAL.items() if _affordable(shape)]
    gone: set[torch.device] = set()
    # Triton compiles for seconds what others compute in milliseconds: when the time is up, only its own cases are left out.
    for compiles in (False, True):
        turn = [place for place in places if (place[0] == "triton") == compiles]
        yield from _field_rows(turn, cases, until, gone)
        for name, device in turn:
            if device not in gone:
                yield _steps_row(name, device, until)


def _field_rows(
    places: list[tuple[str, torch.device]],
    cases: list[tuple[str, Shape, bool]],
    until: float,
    gone: set[torch.device],
) -> Iterator[Row]:
    """Case by case, each on every place; gone: devices that a case cost."""
    for title, shape, small in cases:
        made: list[Any] = []  # made where a first backend asks
        for name, device in places:
            slow = not small and (name == "reference" or (device.type == "cpu" and name in CHECKED))
            if slow:
                continue
            if device in gone:
                yield Row(
                    name, str(device), title, note="not run: an earlier case cost the device, restart Python"
                )
                continue
            if time.monotonic() > until:
                yield Row(name, str(device), title, note=TIME_IS_UP)
                continue
            if not made:
                drawn = case(shape, torch.float32)
                picked = torch.linspace(0, shape.batch - 1, shape.batch if small else 6).long()
                made.append((*drawn, exact_of(*drawn, shape.aug_dim, picked)))
            row = _row(name, device, title, shape, *made[0])
            yield row
            if not row.ok and lost(device):
                gone.add(device)


def _affordable(shape: Shape) -> bool:
    """The largest case takes a few gigabytes on the CPU and is for GPUs."""
    return torch.cuda.is_available() or shape.count * shape.dim < 100_000_000


def _row(
    name: str,
    device: torch.device,
    title: str,
    shape: Shape,
    x: Tensor,
    r: Tensor,
    charges: Any,
    exact: Exact,
) -> Row:
    from pfgm_fast.ops.dispatch import backend

    module = backend(name)
    operators = FIELDS if shape.every_operator else ("poisson_field", "log_density")
    found: dict[str, float] = {}
    try:
        with quiet(device):
            query = charges.to(device).query(x.to(device), r.to(device), shape.aug_dim)
            reason = module.refuses("poisson_field", query.x, query.charges)
            if reason is not None:
                return Row(name, str(device), title, note=f"not served: {reason}")
            for op in operators:
                got = result(getattr(module, op)(*arguments(op, query)))[exact.rows]
                found[op] = error_of(op, got, exact.of(op), exact.query) / BARS[op] * 1e-5
            field = partial(module.poisson_field, query)
            same = torch.equal(result(field()), result(field()))
            took = _seconds(field, device)
    except Exception as broken:
        return Row(
            name, str(device), title, note=f"{type(broken).__name__}: {str(broken)[:200]}", ok=False
        )  # fmt: skip
    return _judged(Row(name, str(device), title, seconds=took), found, same)


def _steps_row(name: str, device: torch.device, until: float) -> Row:
    """The fused steps and what networks are made of, at rows short and long."""
    from pfgm_fast.ops.dispatch import backend

    title, module = "steps, 5 x 77 and 3 x 12288", backend(name)
    if time.monotonic() > until:
        return Row(name, str(device), title, note=TIME_IS_UP)
    found: dict[str, float] = {}
    try:
        with quiet(device):
            for batch, dim in ((5, 77), (3, 12288)):
                draw = torch.Generator().manual_seed(1)
                x = torch.randn(batch, dim, generator=draw, device="cpu")
                query = Query(x, torch.rand(batch, generator=draw, device="cpu") + 0.5, x, None, None, None, 1.0, 0.0, 1.0)  # fmt: skip
                there = query._replace(x=x.to(device), r=query.r.to(device))
                double = query._replace(x=x.double(), r=query.r.double(), charges=x.double())
                for op in (*STEPS, *NETWORK_OPERATORS):
                    reason = module.refuses(function_name(op), there.x, None)
                    if reason is not None and op in NETWORK_OPERATORS:
                        continue
                    if reason is not None:
                        return Row(name, str(device), title, note=f"not served: {reason}")
                    got = result(getattr(module, op)(*arguments(op, there)))
                    expected = result(getattr(reference, op)(*arguments(op, double)))
                    error = error_of(op, got, expected, double) / BARS[op] * 1e-5
                    found[op] = max(found.get(op, 0.0), error) if error == error else error
    except Exception as broken:
        return Row(
            name, str(device), title, note=f"{type(broken).__name__}: {str(broken)[:200]}", ok=False
        )  # fmt: skip
    return _judged(Row(name, str(device), title), found, True)


def _judged(row: Row, found: dict[str, float], same: bool) -> Row:
    """With the worst error of the operators, NaN before all; `same`: whether two calls agreed to the bit."""
    worst = max(found, key=lambda op: math.inf if math.isnan(found[op]) else found[op])
    ok = found[worst] <= 1e-5 and same
    note = "" if same else "two calls on the same input differ"
    return Row(row.backend, row.device, row.case, found[worst], worst, row.seconds, note, ok)


def _seconds(function: Callable[[], Any], device: torch.device, calls: int = 3) -> float:
    """Median of a few calls, each waited for."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times)
