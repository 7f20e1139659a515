"""The field of all charges: ours (bytes, floats) against what others do, interleaved; each time beside its error."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from functools import partial
from statistics import quantiles
from typing import Any

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.cases import CASES, Case, Prepared, prepare
from benchmarks.compare import BAR, Times, compare
from benchmarks.report import Row
from pfgm_fast import peers
from tests.cases import direction_error

PEERS: dict[str, peers.Field] = {
    "Gram": peers.gram_field,
    "torch.cdist": peers.cdist_field,
    "the authors' formula": peers.authors_field,
    "KeOps": peers.keops_field,
    "JAX, jit": peers.jax_field,
    "PyTorch's attention": peers.attention_field,
    "FAISS, 2,000 nearest": peers.faiss_field,
}
EXACT = ("Gram", "JAX, jit", "PyTorch's attention")
"""The peers whose best time `best` is measured against."""
OPTIONAL = {"KeOps": "pykeops", "JAX, jit": "jax", "FAISS, 2,000 nearest": "faiss"}
KEOPS_LIMIT = 1 << 30  # operations B M N: beyond, a single call of its CPU reduction takes many seconds


def _memory() -> int:
    """Bytes that a peer may take here: half of what is free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _refusal(name: str, field: peers.Field, shape: tuple[int, int, int], case: Case) -> str | None:
    """Why a peer is not timed here, or None."""
    batch, count, dim = shape
    need = peers.bytes_needed(field, batch, count, dim)
    if need > _memory():
        return f"does not fit: {need / 1e9:.0f} GB"
    if name == "the authors' formula" and not case.authors:
        return "not asked for"
    if name in OPTIONAL and importlib.util.find_spec(OPTIONAL[name]) is None:
        return f"{OPTIONAL[name]} is not installed"
    if name == "KeOps" and batch * count * dim > KEOPS_LIMIT:
        return "not measured: over 2^30 differences"
    if name == "PyTorch's attention" and not math.isinf(case.aug_dim):
        return "not asked for"
    if name == "FAISS, 2,000 nearest" and batch * count > 1 << 23:
        return "not measured at this size"
    return None


def _compiled(setup: Prepared) -> tuple[peers.Field | None, str]:
    """torch.compile of the Gram version, already compiled for this shape; or None and why not."""
    if setup.values.numel() > 1 << 26:
        return None, "not measured at this size"
    compiled = torch.compile(peers.gram_field, dynamic=False)
    try:
        compiled(setup.x, setup.r, setup.values, setup.case.aug_dim)
    except Exception as broken:  # what it does not compile it says itself
        return None, f"{type(broken).__name__}: {str(broken).splitlines()[0][:80]}"
    return compiled, ""


def _exact(setup: Prepared) -> tuple[Tensor, Tensor]:
    """Some of the rows and x − m there in float64, by direct differences."""
    some = 32 if setup.values.numel() < 1 << 25 else 8
    rows = torch.linspace(0, len(setup.x) - 1, min(some, len(setup.x))).long()
    with pf.use_backend("reference"):
        charges = pf.Charges(setup.values.double())
        field, _ = pf.poisson_field(
            setup.x[rows].double(), setup.r[rows].double(), charges, setup.case.aug_dim
        )
    return rows, field


def _row(setup: Prepared, what: str, times: Times | None, gram: Times | None, **more: Any) -> Row:
    row: Row = {"kind": "field", "case": setup.case.name, "data": setup.what, "what": what, **more}
    if times is not None:
        row["ms"] = times.median * 1e3
        if len(times.rounds) > 1:
            fifths = quantiles(times.rounds, n=5, method="inclusive")
            row["p20"], row["p80"] = fifths[0] * 1e3, fifths[3] * 1e3
        if gram is not None:
            row["speedup"] = times.ratio_to(gram)
    return row


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_field(case: Case, benchmark: Any, rows: list[Row]) -> None:
    setup = prepare(case)
    queries = (setup.x, setup.r)
    functions: dict[str, Callable[[], Tensor]] = {
        f"ours, {dtype}": lambda charges=charges: pf.poisson_field(*queries, charges, case.aug_dim)[0]
        for dtype, charges in setup.charges.items()
        if dtype in case.bars
    }
    ours = list(functions)
    found: list[Row] = []
    for name, field in PEERS.items():
        reason = _refusal(name, field, setup.shape, case)
        if reason is None:
            functions[name] = partial(field, *queries, setup.values, case.aug_dim)
        elif reason != "not asked for":
            found.append(_row(setup, name, None, None, note=reason))
    compiled, reason = _compiled(setup)
    if compiled is not None:
        functions["torch.compile of Gram"] = partial(compiled, *queries, setup.values, case.aug_dim)
    else:
        found.append(_row(setup, "torch.compile of Gram", None, None, note=reason))

    picked, exact = _exact(setup)
    errors = {
        name: direction_error(function()[picked], exact, setup.r[picked])
        for name, function in functions.items()
    }
    first, *others = functions
    taken = compare(benchmark, functions[first], {name: functions[name] for name in others})
    taken[first] = taken.pop("ours")
    for name in functions:
        bars: dict[str, Any] = {}
        if name in ours:
            dtype = name.removeprefix("ours, ")
            bars = {"bar": case.bars[dtype], "aim": case.aims.get(dtype), "of": "best"}
            ratios = {peer: taken[name].ratio_to(taken[peer]) for peer in EXACT if peer in taken}
            bars["best_peer"] = min(ratios, key=lambda peer: ratios[peer])
            bars["best"] = ratios[bars["best_peer"]]
            if not errors[name] <= BAR:
                found.append(_row(setup, name, None, None, error=errors[name], note="wrong: no time", **bars))
                continue
        found.append(_row(setup, name, taken[name], taken["Gram"], error=errors[name], **bars))
    found.sort(key=lambda row: not row["what"].startswith("ours"))
    rows.extend(found)
    benchmark.extra_info["rows"] = found
    assert all(errors[name] <= BAR for name in ours), errors
