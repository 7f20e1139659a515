"""tools/gpu.sh rehearsed without a GPU: the plan, the parts, what survives a lost device, a hang, a time limit; the roofline's layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_parts, gpu_suite, gpu_summary
from benchmarks.commit import commit
from benchmarks.gpu_records import POISONED
from benchmarks.gpu_setting import Setting

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "gpu.sh"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the tests run outside the source tree")

SANITIZER = """#!/bin/sh
# Stands for compute-sanitizer: notes its own options, runs the command.
[ "$1" = --version ] && exit 0
while [ "$1" != "${1#--}" ]; do echo "$1 $2" >>"$(dirname "$0")/options"; shift 2; done
"$@" || exit 1
echo "========= ERROR SUMMARY: 0 errors"
"""


def _suite(out: Path, *parts: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run parts of the suite. No GPU is shown to it, whatever the machine has, and no toolkit is on the PATH."""
    hidden = {
        "PYTHON": sys.executable,
        "OUT": str(out),
        "WORK": str(out.with_name(f"{out.name}-work")),
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/usr/bin:/bin",
        "DATA": "",
    }
    return subprocess.run(
        [str(SCRIPT), *parts], env=os.environ | hidden | more, capture_output=True, text=True, timeout=300
    )


def test_the_plan_is_below_nine_minutes() -> None:
    stages = [[part.name for part in stage] for stage in gpu_suite.STAGES]
    assert stages[0] == ["machine"] and stages[1] == ["build"] and stages[-1] == ["bench"]
    assert {"memcheck", "racecheck", "cuda", "triton", "hopper", "selftest", "selftest-triton"} == set(
        stages[2]
    )
    assert all(0 < part.planned < part.limit for part in gpu_suite.PARTS)
    assert sum(max(part.limit for part in stage) for stage in gpu_suite.STAGES) <= gpu_suite.TOTAL <= 540
    assert sum(part.planned for part in gpu_suite.PARTS) <= gpu_suite.TOTAL  # where nothing runs side by side
    assert gpu_suite.main(["--list"]) == 0
    assert gpu_suite.main(["nonsense"]) == 2


@pytest.mark.slow
def test_parts_rehearse_and_those_that_succeeded_are_not_run_twice(tmp_path: Path) -> None:
    out, tool = tmp_path / "results", tmp_path / "bin" / "compute-sanitizer"
    work = tmp_path / "results-work"
    tool.parent.mkdir()
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    rehearsal = {"REHEARSE": "1", "PATH": f"{tool.parent}:/usr/bin:/bin"}
    done = _suite(out, "machine", "memcheck", "bench", **rehearsal)
    summary = (out / "summary.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + (work / "memcheck.log").read_text()
    assert "A rehearsal without a GPU" in summary
    assert "| build | not run yet |" in summary
    assert "| memcheck | ok |" in summary
    assert "nvidia-smi: not on the PATH" in summary  # said, and no reason to fail
    options = (tool.parent / "options").read_text()
    assert "--tool memcheck" in options
    assert "--kernel-name kernel_substring=pfgm" in options
    assert (work / "memcheck.ready").exists()
    assert {file.name for file in out.iterdir()} == {
        "summary.md",
        "parts.json",
        "gpu.jsonl",
        "gpu.md",
        "details.zip",
    }
    with zipfile.ZipFile(out / "details.zip") as details:
        assert {"machine.log", "memcheck.log", "bench.log"} <= set(details.namelist())
    rows = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    assert {row["case"] for row in rows} == set(gpu_cases.cases(Setting(torch.device("cpu"), True)))
    assert all(row["rehearsal"] and row["commit"] and row["torch"] for row in rows)
    assert not [row for row in rows if row.get("failed") or row["what"] == "failed"]
    assert "these numbers mean nothing" in summary
    before = (out / "gpu.jsonl").stat().st_mtime_ns
    parts = gpu_summary.load(out)
    for name in set(known := [part.name for part in gpu_suite.PARTS]) - set(parts):
        parts[name] = {"state": "ok", "seconds": 0.0, "what": ""}
    parts["machine"]["state"] = "ok"
    (out / "parts.json").write_text(json.dumps(parts))
    again = _suite(out, **rehearsal, WORK=str(tmp_path / "another"))
    assert again.returncode == 0
    assert (tmp_path / "another" / "memcheck.log").exists()  # what the summary is made of came back
    assert again.stdout.count("done before") == len(known)
    assert (out / "gpu.jsonl").stat().st_mtime_ns == before


WAITS = """
import os, pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:3])
mine.write_text(os.environ.get("OMP_NUM_THREADS", "all"))
until = time.monotonic() + float(sys.argv[3])
while not other.exists() and time.monotonic() < until: time.sleep(0.02)
sys.exit(not other.exists())
"""


@pytest.mark.parametrize("beside", [True, False])
def test_parts_of_a_stage_run_at_once_on_their_own_processors(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ends well only if it sees the second begin. A third, which hangs, is stopped at its limit meanwhile."""

    def waits(mine: str, other: str) -> Any:
        files = [str(tmp_path / mine), str(tmp_path / other)]
        command = [sys.executable, "-c", WAITS, *files, "20" if beside else "0.3"]
        return lambda suite, part, limit: gpu_parts.plain(suite, part, suite.command(part, command, limit))

    def hangs(suite: gpu_suite.Suite, part: gpu_suite.Part, limit: float) -> gpu_suite.Outcome:
        return gpu_parts.plain(suite, part, suite.command(part, ["sleep", "60"], 1.0))

    stages = (
        (
            gpu_suite.Part("a", 1, 30, waits("a", "b"), "", 3),
            gpu_suite.Part("b", 1, 30, waits("b", "a"), ""),
            gpu_suite.Part("hangs", 1, 2, hangs, ""),
        ),
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(gpu_suite, "STAGES", stages)
    monkeypatch.setattr(gpu_suite, "PARTS", stages[0])
    suite = gpu_suite.Suite(tmp_path / "out", tmp_path, beside=beside)
    suite.out.mkdir()
    assert gpu_suite.run_all(suite, ()) == (1 if beside else 2)
    found = gpu_summary.load(suite.out)
    assert [found[name]["state"] for name in "ab"] == ["ok" if beside else "FAILED", "ok"]
    assert "stopped at its time limit" in found["hangs"]["what"]
    assert [(tmp_path / name).read_text() for name in "ab"] == (["3", "1"] if beside else ["1", "1"])


def test_the_commit_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT", " 1234abc ")
    assert commit() == "1234abc"
    monkeypatch.delenv("COMMIT")
    monkeypatch.setattr("benchmarks.commit.__file__", str(tmp_path / "benchmarks" / "commit.py"))
    assert commit() == "unknown"  # a copy without history

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    assert commit() == git("rev-parse", "--short", "HEAD")
    (tmp_path / "file").write_text("2")
    assert commit() == git("rev-parse", "--short", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    """A tool that is absent is a skipped part; no GPU is a failed one. The others go on."""
    done = _suite(tmp_path / "out", "machine", "memcheck", "racecheck")
    assert done.returncode == 1
    summary = (tmp_path / "out" / "summary.md").read_text()
    for tool in ("memcheck", "racecheck"):
        assert f"| {tool} | skipped |" in summary
    assert "compute-sanitizer is not on the PATH" in summary
    assert "| machine | FAILED |" in summary
    assert "PyTorch sees no CUDA device" in (tmp_path / "out-work" / "machine.log").read_text()


def test_a_selftest_that_checks_nothing_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    suite = gpu_suite.Suite(tmp_path, tmp_path)
    part = next(part for part in gpu_suite.PARTS if part.name == "selftest-triton")
    outcome = part.run(suite, part, 60.0)
    assert outcome.state == "skipped"
    assert "nothing could be checked" in outcome.what


def test_a_sanitizer_that_refuses_the_machine_is_a_reason(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "compute-sanitizer"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '========= Error: Device not supported'\nexit 1\n")
    fake.chmod(0o755)
    done = _suite(tmp_path / "out", "memcheck", PATH=f"{fake.parent}:/usr/bin:/bin")
    assert done.returncode == 0
    assert "skipped" in done.stdout
    assert "Device not supported" in (tmp_path / "out" / "summary.md").read_text()


FILE = """
import os, time, pytest, torch
pytestmark = pytest.mark.gpu
def lost(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_a(): pass
def test_b_poisons():
    torch.cuda.is_available, torch.cuda.synchronize = lambda: True, lost
    lost()
def test_c(): torch.cuda.synchronize() if torch.cuda.is_available() else None
def test_d_hangs(): time.sleep(600)
def test_e(): pass
def test_f_dies(): os.abort()
def test_g(): pytest.skip("a reason")
def test_h(): assert 1 + 1 == 3
"""


def _part(
    tmp_path: Path, text: str, limit: float, shards: int = 1, patience: float = 8
) -> tuple[gpu_suite.Outcome, dict[str, str]]:
    """The outcome of a part whose tests are `text`; each test's outcome as the JUnit file has it."""
    (tmp_path / "their").mkdir()
    (tmp_path / "their" / "test_them.py").write_text(text)
    suite = gpu_suite.Suite(tmp_path, tmp_path, tests=str(tmp_path / "their"))
    part = gpu_suite.Part("cuda", 1, limit, gpu_parts.tests("test", shards, patience), "")
    outcome = part.run(suite, part, limit)
    outcome.seconds = 1.0
    (tmp_path / "out").mkdir()
    gpu_summary.write(tmp_path / "out", tmp_path, [part], {"cuda": vars(outcome)}, False)
    found = {}
    for case in ElementTree.parse(tmp_path / "cuda.xml").iter("testcase"):
        found[case.attrib["name"]] = case[0].tag if len(case) else "passed"
    return outcome, found


@pytest.mark.slow
def test_a_lost_device_a_hang_and_a_crash_cost_one_test_each(tmp_path: Path) -> None:
    outcome, found = _part(tmp_path, FILE, 120)
    assert found == dict.fromkeys(("test_a", "test_c", "test_e"), "passed") | {
        "test_g": "skipped"
    } | dict.fromkeys(("test_b_poisons", "test_d_hangs", "test_f_dies", "test_h"), "failure")
    assert outcome.state == "FAILED"
    assert "3 passed" in outcome.what
    assert "3 fresh processes" in outcome.what
    summary = (tmp_path / "out" / "summary.md").read_text()
    for said in ("illegal memory access", "hung for 8 s", "its process ended with -6", "assert (1 + 1) == 3"):
        assert said in summary, said


def test_a_time_limit_leaves_what_finished(tmp_path: Path) -> None:
    tests = "import time, pytest\npytestmark = pytest.mark.gpu\n" + "".join(
        f"def test_{i}(): time.sleep({0 if i < 4 else 600})\n" for i in range(8)
    )
    outcome, found = _part(tmp_path, tests, 15, shards=2, patience=600)
    assert outcome.state == "FAILED"
    assert found == {f"test_{i}": "passed" for i in range(4)}
    assert "4 not run in the time" in outcome.what


def test_a_case_that_loses_the_device_does_not_take_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def illegal() -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    table = {
        "first": lambda: iter([{"what": "x"}]),
        "second": illegal,
        "third": lambda: iter([{"what": "y"}]),
    }
    lost = iter([False, True, False])
    facts = {"device": "d", "torch": "t", "commit": "c", "rehearsal": False}
    for name, value in (
        ("cases", lambda _: table),
        ("machine", lambda _: facts),
        ("device_lost", lambda: next(lost)),
    ):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    arguments = ["--out", str(tmp_path), "--resume"]
    assert gpu.main(arguments) == POISONED
    assert gpu.main(arguments) == 0
    rows = gpu_summary.json_lines(tmp_path / "gpu.jsonl")
    assert [(row["case"], row["what"]) for row in rows] == [
        ("first", "x"),
        ("second", "failed"),
        ("third", "y"),
    ]
    assert "illegal memory access" in (tmp_path / "gpu.md").read_text()


# ---- the ceilings --------------------------------------------------------------------------------------------------------


def test_the_int8_ceiling_is_taken_in_the_layout_of_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS takes int8 where the first operand is contiguous by rows and the second by columns; others it refuses on some."""
    seen, right = [], torch._int_mm

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append((a.is_contiguous(), b.t().is_contiguous(), a.data_ptr() != b.data_ptr()))
        return right(a, b)

    monkeypatch.setattr(torch, "_int_mm", product)
    rows = list(gpu_cases.Roof(Setting(torch.device("cpu"), True)).measure())
    assert len(rows) == 4
    assert all(row["rate"] > 0 for row in rows)
    assert set(seen) == {(True, True, True)}


def test_a_missing_ceiling_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(torch, "_int_mm", refused)
    setting = Setting(torch.device("cpu"), True)
    rows, failed = gpu._run("roofline", gpu_cases.Roof(setting).measure)
    assert failed == 0
    assert [row["what"].split()[0] for row in rows] == ["copy", "bfloat16", "float32", "int8"]
    assert "CUBLAS_STATUS_NOT_SUPPORTED" in rows[3]["note"]
    monkeypatch.setattr(gpu_cases, "measure", refused)
    roof = gpu_cases.Roof(setting)
    rows, failed = gpu._run("roofline", roof.measure)
    assert (len(rows), failed) == (4, 0)
    text = gpu.markdown(
        {"device": "d", "torch": "t", "commit": "c", "rehearsal": False},
        [{"case": "c", "what": "w", "share_of_copy": roof.copy}],
    )
    assert "nan" not in text
