"""The bar itself: 1e-5 of the unit direction against float64, on real data and every hard question of benchmarks/accuracy.py."""

from __future__ import annotations

import pytest
import torch

import pfgm_fast as pf
from benchmarks import accuracy
from pfgm_fast.ops.dispatch import status
from tests.cases import TOLERANCE

BACKENDS = [name for name in ("cpu",) if status()[name] == "ok"]
_DECODED = [pytest.mark.data, pytest.mark.slow]  # images are decoded from the shared data
NAMES = [
    pytest.param(*name, id=", ".join(name), marks=[] if name[0] in accuracy.SMALL else _DECODED)
    for name in accuracy.names()
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("data", "question"), NAMES)
def test_direction_is_right(backend: str, data: str, question: str) -> None:
    case = accuracy.build(data, question)
    exact = accuracy.expected(case)
    stored = {case.charges.dtype: case.charges, torch.float32: pf.Charges(case.charges).values()}
    with pf.use_backend(backend):
        for dtype, charges in stored.items():
            field, _ = pf.poisson_field(case.x, case.r, charges, case.aug_dim)
            assert accuracy.error(field, case, exact) <= TOLERANCE, dtype
