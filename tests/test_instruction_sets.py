"""The kernels are compiled three times; what this processor would not choose by itself is right as well."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pfgm_fast.ops.dispatch import status
from tests.cases import CASES, TOLERANCE

SCRIPT = """
import sys, torch, pfgm_fast as pf
from tests.cases import CASES, direction_error
for name, build in CASES.items():
    case = build()
    with pf.use_backend("reference"):
        values = pf.Charges(pf.Charges(case.charges).values().double(), case.weights)
        exact = pf.poisson_field(case.x.double(), case.r.double(), values, case.aug_dim)[0]
    with pf.use_backend("cpu"):
        field = pf.poisson_field(case.x, case.r, pf.Charges(case.charges, case.weights), case.aug_dim)[0]
    print(name, direction_error(field, exact, case.r))
"""


@pytest.mark.skipif(status()["cpu"] != "ok", reason="the cpu backend is not built")
@pytest.mark.parametrize("name", ["avx2", "portable"])
def test_every_instruction_set_is_right(name: str) -> None:
    """A processor without AVX2 takes the portable kernels for both."""
    environment = os.environ | {"PFGM_FAST_CPU_ISA": name}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment
    )
    errors = {case: float(error) for case, error in (line.split() for line in done.stdout.splitlines())}
    assert set(errors) == set(CASES)
    assert {case: error for case, error in errors.items() if not error <= TOLERANCE} == {}
