"""tools/gpu.sh and the GPU benchmark, rehearsed on a machine without a GPU: parts, reasons, resuming, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "gpu.sh"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the tests run outside the source tree")


def _suite(out: Path, *parts: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run parts of the suite. No GPU is shown to it, whatever the machine has, and no toolkit is on the PATH."""
    hidden = {"PYTHON": sys.executable, "OUT": str(out), "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [str(SCRIPT), *parts], env=os.environ | hidden | more, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_the_benchmark_rehearses_and_is_not_run_twice(tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = _suite(out, "bench", BENCH="--device cpu --tiny", DATA="")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    cases = {row["case"] for row in rows}
    for wanted in (
        "roofline",
        "1024 x 50000 x 3072",
        "16 x 16384 x 196608",
        "Euler step",
        "Euler sampler",
        "training",
    ):
        assert any(wanted in case for case in cases), wanted
    assert all(row["rehearsal"] and row["commit"] and row["torch"] for row in rows)
    assert not [row for row in rows if row.get("failed") or row["what"] == "failed"]
    assert "these numbers mean nothing" in (out / "gpu.md").read_text()
    before = (out / "gpu.jsonl").stat().st_mtime_ns
    again = _suite(out, "bench")
    assert again.returncode == 0
    assert "bench: done before" in again.stdout
    assert (out / "gpu.jsonl").stat().st_mtime_ns == before


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    """A tool that is absent is a skipped part; no GPU is a failed one; an unknown part is an error. The others go on."""
    done = _suite(tmp_path, "memcheck", "nonsense", "tests", "racecheck")
    assert done.returncode == 2
    assert "no part 'nonsense'" in done.stderr
    summary = (tmp_path / "summary.txt").read_text()
    for tool in ("memcheck", "racecheck"):
        assert f"{tool} skipped: compute-sanitizer is not on the PATH" in summary
    assert "tests FAILED (1)" in summary
    assert "PyTorch sees no CUDA device" in (tmp_path / "tests.log").read_text()


def test_a_sanitizer_that_refuses_the_machine_is_a_reason(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "compute-sanitizer"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '========= Error: Device not supported'\nexit 1\n")
    fake.chmod(0o755)
    done = _suite(tmp_path / "out", "memcheck", PATH=f"{fake.parent}:/usr/bin:/bin")
    assert done.returncode == 0
    assert "memcheck skipped: compute-sanitizer does not run on this machine" in done.stdout
    assert "Device not supported" in done.stdout
