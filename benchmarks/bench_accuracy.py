"""Errors of everybody on the hard questions of accuracy.py; ours is timed on each, so that the figure is one of the timed code."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch

import pfgm_fast as pf
from benchmarks import accuracy
from benchmarks.bench_field import OPTIONAL, PEERS
from benchmarks.compare import BAR
from benchmarks.report import Row


@pytest.mark.parametrize(("data", "question"), accuracy.names(), ids=", ".join)
def test_errors(data: str, question: str, benchmark: Any, rows: list[Row]) -> None:
    case = accuracy.build(data, question)
    exact = accuracy.expected(case)
    charges = pf.Charges(case.charges)
    values = charges.values()
    field = benchmark.pedantic(
        lambda: pf.poisson_field(case.x, case.r, charges, case.aug_dim)[0], rounds=2, warmup_rounds=1
    )
    errors = {"ours": accuracy.error(field, case, exact)}
    for name, peer in PEERS.items():
        if name in OPTIONAL and importlib.util.find_spec(OPTIONAL[name]) is None:
            continue
        if name == "PyTorch's attention" and not math.isinf(case.aug_dim):
            continue  # it knows no other D
        pairs = zip(case.x.split(4), case.r.split(4), strict=True)  # the authors' memory is the batch's
        got = torch.cat([peer(x, r, values, case.aug_dim) for x, r in pairs])
        errors[name] = accuracy.error(got, case, exact)
    rows.extend(
        {"kind": "accuracy", "data": data, "case": question, "what": name, "error": error}
        for name, error in errors.items()
    )
    benchmark.extra_info["errors"] = errors
    assert errors["ours"] <= BAR
