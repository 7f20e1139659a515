"""The parts of `make gpu`: what each runs, how long it may take, and which run side by side. Standard library only.

Each part is a process of its own, or several, with a time limit; what it had found by then stays (`PART.jsonl`, `PART.xml`, `PART.log`).
The tests run in shards, and a shard whose device is lost (an illegal address poisons its process), or whose test hangs, goes on in
a fresh process with the next test.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gpu_summary
from benchmarks.gpu_records import POISONED, Records

ROOT = Path(__file__).resolve().parent.parent
SLOWER = 4.0
"""In a rehearsal every limit, and the patience with a test, is so many times as long."""
SKIPPED = 77
IMPORTS = 45.0
"""Seconds that a part may take to import PyTorch and meet the device, where that does not count: a sanitizer slows it down."""


@dataclass(frozen=True)
class Part:
    """planned: seconds that it should take; limit: after which it is stopped, if earlier parts left nothing over. Both of a GPU.
    threads: of the host's, that each of its processes may use where it runs beside others; 0: as many as there are."""

    name: str
    planned: float
    limit: float
    run: Callable[[Suite, Part, float], Outcome]
    what: str
    threads: int = 0


@dataclass
class Outcome:
    state: str  # ok, FAILED, skipped
    what: str = ""
    seconds: float = 0.0


@dataclass
class Suite:
    """out: results; work: logs and records of the parts; beside: they run side by side."""

    out: Path
    work: Path
    rehearse: bool = False
    beside: bool = False
    python: list[str] = field(default_factory=lambda: [sys.executable])
    data: str = ""
    tests: str = "tests/gpu"

    @property
    def slower(self) -> float:
        """What limits are multiplied with."""
        return SLOWER if self.rehearse else 1.0

    def module(self, name: str, *arguments: str) -> list[str]:
        """A module of ours; in a rehearsal through the stand-in for the device."""
        stand_in = ["benchmarks.gpu_stand_in"] if self.rehearse else []
        return [*self.python, "-m", *stand_in, name, *arguments]

    def log(self, part: Part) -> Path:
        return self.work / f"{part.name}.log"

    def process(self, part: Part, command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)} | more
        if self.beside and part.threads:
            environment["OMP_NUM_THREADS"] = str(part.threads)
        with self.log(part).open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )  # fmt: skip

    def command(
        self, part: Part, command: list[str], limit: float, ready: bool = False, **more: str
    ) -> int | None:
        """Exit status, or None where the limit was reached. ready: the limit begins when the process says that it is ready."""
        flag = self.work / f"{part.name}.ready"
        flag.unlink(missing_ok=True)
        process = self.process(part, command, more | {"PFGM_FAST_READY": str(flag)})
        began, counted = time.monotonic(), not ready
        until = began + (limit if counted else IMPORTS * self.slower)
        while process.poll() is None:
            if not counted and flag.exists():
                counted, until = True, time.monotonic() + limit
            if time.monotonic() > until:
                stop(process)
                return None
            time.sleep(0.05)
        return process.returncode


def stop(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started: it may hang in the driver, so nothing is asked of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def plain(suite: Suite, part: Part, code: int | None, what: str = "") -> Outcome:
    last = gpu_summary.last_line(suite.log(part))
    if code == SKIPPED:
        return Outcome("skipped", last)
    if code is None:
        return Outcome("FAILED", f"stopped at its time limit. {what}".rstrip())
    return Outcome("ok" if code == 0 else "FAILED", what or (last if code else ""))


# ---- the parts -----------------------------------------------------------------------------------------------------------

LOOK = """
import sys, torch
print(sys.version)
try:
    import triton
    print("triton", triton.__version__)
except ImportError as error:
    print("no triton:", error)
print("torch", torch.__version__, "CUDA", torch.version.cuda)
assert torch.cuda.is_available(), "PyTorch sees no CUDA device"
print(torch.cuda.get_device_properties(0))
"""


def machine(suite: Suite, part: Part, limit: float) -> Outcome:
    """What this machine is. Only PyTorch's device is needed: nvidia-smi is reported where it is."""
    for tool in (
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv"],
        ["nvcc", "--version"],
        ["compute-sanitizer", "--version"],
    ):
        if shutil.which(tool[0]) is None:
            with suite.log(part).open("a") as file:
                file.write(f"{tool[0]}: not on the PATH\n")
        else:
            suite.command(part, tool, 5)
    if suite.rehearse:
        return Outcome("skipped", "a rehearsal: there is no device")
    return plain(suite, part, suite.command(part, [*suite.python, "-c", LOOK], limit))


def build(suite: Suite, part: Part, limit: float) -> Outcome:
    if suite.rehearse:
        return Outcome("skipped", "a rehearsal: what is built is used")
    command = [*suite.python, "setup.py", "build_ext", "--inplace"]
    code = suite.command(part, command, limit, PFGM_FAST_CUDA="1", PFGM_FAST_CPU="1")
    if code == 0:
        code = suite.command(part, [*suite.python, "-m", "pfgm_fast", "info"], 20)
    return plain(suite, part, code)


def sanitizer(tool: str) -> Callable[[Suite, Part, float], Outcome]:
    """compute-sanitizer on small shapes; of all kernels that run only this package's are instrumented."""

    def run(suite: Suite, part: Part, limit: float) -> Outcome:
        absent = shutil.which("compute-sanitizer") is None
        if absent and not suite.rehearse:
            return Outcome("skipped", "compute-sanitizer is not on the PATH: it comes with the CUDA toolkit")
        watched = [
            *("compute-sanitizer", "--tool", tool, "--kernel-name", "kernel_substring=pfgm"),
            *("--error-exitcode", "1", "--launch-timeout", "60", "--print-limit", "20"),
        ]
        command = [*([] if absent else watched), *suite.module("tests.gpu.sanitize")]
        # Caching would hide accesses behind the end of an array; the check at first use would be watched too.
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PFGM_FAST_SELFCHECK": "0"}
        code = suite.command(part, command, limit, ready=True, **more)
        text = suite.log(part).read_text(errors="replace")
        unable = next((line for line in text.splitlines() if "not supported" in line.lower()), None)
        if code not in (0, None) and unable and "ERROR SUMMARY" not in text:
            return Outcome("skipped", f"compute-sanitizer does not run on this machine: {unable.strip('= ')}")
        done = [line for line in text.splitlines() if line.startswith(("field ", "steps:", "hopper"))]
        verdict = (
            "nothing watched them: compute-sanitizer is not here"
            if absent
            else gpu_summary.sanitizer_verdict(text)
        )
        return plain(suite, part, code, f"{len(done)} cases ran; {verdict}")

    return run


NOT_REHEARSED = (
    "opcheck or bad_rows or compiles_whole or info_says_how or graph_and_loop_agree or captures_and_replays"
)
"""Tests that ask the device itself: the stand-in answers as the CPU does."""


def tests(select: str, shards: int, patience: float) -> Callable[[Suite, Part, float], Outcome]:
    """Tests of tests/gpu by pytest's -k; patience: seconds after which one test is held to hang."""

    def run(suite: Suite, part: Part, limit: float) -> Outcome:
        records = Records(suite.work / f"{part.name}.jsonl", fresh=True)
        waited = patience * suite.slower
        chosen = f"({select}) and not ({NOT_REHEARSED})" if suite.rehearse else select
        command = [
            *suite.module("pytest", suite.tests, "-m", "gpu", "-k", chosen, "-q", "-o", "addopts="),
            *("-p", "no:cacheprovider", "-p", "benchmarks.gpu_records"),
        ]
        until = time.monotonic() + limit

        def start(shard: int) -> subprocess.Popen[bytes]:
            more = {"PFGM_FAST_RECORDS": str(records.path), "PFGM_FAST_SHARE": f"{shard}/{shards}"}
            return suite.process(part, command, more)

        running = {shard: start(shard) for shard in range(shards)}
        broken, restarts = [], 0
        while running and time.monotonic() < until:
            time.sleep(0.1)
            for shard, process in list(running.items()):
                hung = records.hanging(shard, waited)
                if hung is not None:
                    stop(process)
                    records.add(
                        shard, {"node": hung, "outcome": "failed", "text": f"hung for {waited:.0f} s"}
                    )
                elif process.poll() is None:
                    continue
                elif process.returncode in (0, 1, 5):  # all ran; 5: this share has none
                    del running[shard]
                    continue
                elif process.returncode != POISONED:
                    died = records.running(shard)
                    if died is None:
                        broken.append(f"pytest ended with {process.returncode}")
                        del running[shard]
                        continue
                    records.add(
                        shard,
                        {
                            "node": died,
                            "outcome": "failed",
                            "text": f"its process ended with {process.returncode}",
                        },
                    )
                restarts += 1
                running[shard] = start(shard)
        for process in running.values():
            stop(process)
        counts = records.counts()
        records.write_junit(suite.work / f"{part.name}.xml", part.name)
        what = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        what += f"; {restarts} fresh processes after a lost device or a hang" if restarts else ""
        unfinished = records.unfinished()
        if running or unfinished:
            broken.append(f"{len(unfinished)} not run in the time")
        state = "FAILED" if broken or counts.get("failed") else "ok"
        if state == "ok" and not counts.get("passed"):
            state = "skipped" if counts.get("skipped") else "FAILED"
            what = what or "no test was found"
        return Outcome(state, "; ".join([what, *broken]))

    return run


def selftest(*backends: str) -> Callable[[Suite, Part, float], Outcome]:
    """pfgm-fast selftest of some backends. It begins no check in the last part of its time: a check may compile kernels for a while."""

    def run(suite: Suite, part: Part, limit: float) -> Outcome:
        chosen = [argument for name in backends for argument in ("--backend", name)]
        found = suite.work / f"{part.name}.json"
        arguments = ["selftest", "--seconds", f"{max(0.6 * limit, limit - 25):.0f}", "--json", str(found), *chosen]  # fmt: skip
        code = suite.command(part, [*suite.python, "-m", "pfgm_fast", *arguments], limit)
        said = gpu_summary.last_line(suite.log(part))
        if code == 0 and said.startswith("0 checks"):
            return Outcome("skipped", said)
        return plain(suite, part, code, said)

    return run


def bench(suite: Suite, part: Part, limit: float) -> Outcome:
    """benchmarks.gpu; where a case loses the device, the next ones get a fresh process."""
    until = time.monotonic() + limit
    (suite.out / "gpu.jsonl").unlink(missing_ok=True)
    extra = shlex.split(os.environ.get("BENCH", "")) or (
        ["--device", "cpu", "--tiny"] if suite.rehearse else []
    )
    data = ["--data", suite.data] if suite.data else []
    code: int | None = POISONED
    lost = -1
    while code == POISONED and time.monotonic() < until:
        lost += 1
        seconds = ["--seconds", f"{max(1.0, until - time.monotonic() - 8):.0f}"]
        command = [
            *suite.python,
            "-m",
            "benchmarks.gpu",
            "--out",
            str(suite.out),
            "--resume",
            *data,
            *seconds,
        ]
        code = suite.command(part, [*command, *extra], until - time.monotonic())
    rows = gpu_summary.json_lines(suite.out / "gpu.jsonl")
    what = f"{len({row['case'] for row in rows})} cases, {len(rows)} rows" + (
        f"; the device was lost {lost} times" if lost else ""
    )
    return plain(suite, part, code, what) if not lost else Outcome("FAILED", what)


CUDA, TRITON = "not triton and not hopper", "triton and not hopper"
STAGES: tuple[tuple[Part, ...], ...] = (
    (Part("machine", 6, 20, machine, "what this machine is"),),
    (Part("build", 45, 110, build, "setup.py with CUDA, for the GPU that is here"),),
    (
        Part("memcheck", 25, 70, sanitizer("memcheck"), "compute-sanitizer, this package's kernels on small shapes", 1),
        Part("racecheck", 45, 90, sanitizer("racecheck"), "compute-sanitizer's hazards in shared memory", 1),
        Part("cuda", 50, 110, tests(CUDA, 3, 60), "tests/gpu with the CUDA backend", 1),
        Part("triton", 75, 120, tests(TRITON, 8, 75), "tests/gpu with the Triton backend", 1),
        Part("hopper", 15, 60, tests("hopper", 1, 40), "Hopper's own path, against the default to the bit", 1),
        Part("selftest", 40, 100, selftest("reference", "cpu", "cuda"), "pfgm-fast selftest, all but Triton", 3),
        Part("selftest-triton", 80, 105, selftest("triton"), "pfgm-fast selftest of Triton, which compiles", 1),
    ),
    (Part("bench", 70, 110, bench, "benchmarks.gpu"),),
)  # fmt: skip
"""One after another; the parts of a stage, which time nothing, side by side."""

PARTS = tuple(part for stage in STAGES for part in stage)
