"""Every Triton kernel, compiled ahead of time for GPUs that are not here, is what it should be.

One configuration of each kernel for sm_80 and sm_90; with PFGM_FAST_COMPILE_ALL=1 (`make test-all`) all of them for every architecture.
Two processes compile, neither of them this one: see tests/triton_aot.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.triton_aot import narrow_offsets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]
ROOT = Path(__file__).resolve().parent.parent

SHARED = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory that a block can have (CUDA C++ Programming Guide, table of compute capabilities; CDNA 3 ISA: LDS). sm_80's table
serves sm_86, sm_89 and sm_120 too, whose blocks have 99 KiB, not the 163 of sm_80."""
REGISTERS = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512}
"""Registers that a thread can have."""
ALL = os.environ.get("PFGM_FAST_COMPILE_ALL") == "1"
ARCHITECTURES = tuple(SHARED) if ALL else ("sm_90", "sm_80")


def _fits(report: dict[str, Any]) -> bool:
    """A block's registers are on the multiprocessor: 65,536; on CDNA 3, 512 a lane in each of four units of 64 lanes."""
    if report["arch"].startswith("gfx"):
        return -(-report["threads"] // 256) * report["registers"] <= 512
    return report["threads"] * -(-report["registers"] // 8) * 8 <= 65536


@pytest.fixture(scope="module")
def compiled() -> tuple[list[dict[str, Any]], set[str]]:
    """The reports of all compilations, and the names of all kernels."""
    wanted = [f"{arch}{'' if ALL else ':first'}" for arch in ARCHITECTURES] + ["planted"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.triton_aot", *wanted, "--share"]
    parts = [
        subprocess.Popen([*command, f"{i}/2"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    lines = [json.loads(line) for part in parts for line in part.communicate()[0].splitlines()]
    assert [part.returncode for part in parts] == [0, 0]
    return [line for line in lines if "arch" in line], set(lines[0]["kernels"])


@pytest.fixture(params=ARCHITECTURES)
def reports(request: pytest.FixtureRequest, compiled) -> list[dict[str, Any]]:
    """What compiled for one architecture."""
    return [
        r for r in compiled[0] if r["arch"] == request.param and r["name"] != "planted" and "error" not in r
    ]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles(compiled, arch: str) -> None:
    found, kernels = compiled
    here = [r for r in found if r["arch"] == arch and r["name"] != "planted"]
    assert [(r["name"], r["error"]) for r in here if "error" in r] == []
    assert {r["kernel"] for r in here} == kernels


def test_no_spills_and_no_local_memory(reports) -> None:
    assert [(r["name"], r["spilled"]) for r in reports if r["spilled"]] == []


def test_registers_leave_room_for_a_block(reports) -> None:
    assert [r for r in reports if r["registers"] > REGISTERS[r["arch"]] or not _fits(r)] == []


def test_shared_memory_is_what_a_block_can_have(reports) -> None:
    assert [(r["name"], r["shared"]) for r in reports if r["shared"] > SHARED[r["arch"]]] == []


def test_tensor_cores_where_they_are_meant(reports) -> None:
    assert [r["name"] for r in reports if (r["matrix_instructions"] > 0) != r["tensor_cores"]] == []


def test_offsets_are_formed_in_64_bits(reports) -> None:
    assert [(r["name"], r["narrow"]) for r in reports if r["narrow"]] == []


def test_the_checks_find_what_is_planted(compiled) -> None:
    (planted,) = [r for r in compiled[0] if r["name"] == "planted"]
    assert planted["spilled"] > 0
    assert planted["matrix_instructions"] > 0
    assert not planted["tensor_cores"]
    assert planted["narrow"]


def test_narrow_products_are_told_from_wide_ones() -> None:
    body = """
      %tile = tt.make_range {{end = 4 : i32, start = 0 : i32}} : tensor<4xi32> loc(#loc)
      %row = tt.get_program_id x : i32 loc(#loc)
      {wide}%product = arith.muli {row}, %stride : {kind} loc(#loc)
      %many = tt.splat %product : {kind} -> tensor<4x{kind}> loc(#loc)
      %address = tt.addptr %pointers, %many : tensor<4x!tt.ptr<f32>>, tensor<4x{kind}> loc(#loc)
    """
    assert narrow_offsets(body.format(wide="", row="%row", kind="i32"))
    wide = "%wide = arith.extsi %row : i32 to i64 loc(#loc)\n      "
    assert not narrow_offsets(body.format(wide=wide, row="%wide", kind="i64"))
