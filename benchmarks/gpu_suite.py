"""`make gpu`: everything that needs a GPU, in parts that cannot spoil one another, within nine minutes.

    python -m benchmarks.gpu_suite [PART...] [--list]

Each part is a process of its own with a time limit; what it had found by then stays (`PART.jsonl`, `PART.xml`, `PART.log`), and
`summary.md` holds every part's outcome. Planned seconds are estimates for a data-centre GPU with 16 cores beside it, where no part has
been timed yet. A limit is what a part is sure of: it may also use what earlier ones left over, and all together end within TOTAL. A
rehearsal, whose device is a CPU that others may share, has SLOWER times as long for everything. Parts that succeeded are not run again
unless they are named (or FRESH=1). The tests run in shards, and a shard whose device is lost (an illegal address poisons its
process), or whose test hangs, goes on in a fresh process with the next test. The exit status is the number of failed parts.

Environment: OUT (results; default out/gpu), DATA (images for the CIFAR-10 rows), BENCH (arguments for benchmarks.gpu), REHEARSE=1 (no
GPU: a stand-in, whose numbers mean nothing). Only the standard library is imported here: what is broken must not stop the runner.
"""

from __future__ import annotations

import argparse
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
TOTAL = 540.0
"""Seconds for everything: below the ten minutes that a borrowed machine may give one command."""
SLOWER = 4.0
"""In a rehearsal every limit, and the patience with a test, is so many times as long."""
SKIPPED = 77
IMPORTS = 45.0
"""Seconds that a part may take to import PyTorch and meet the device, where that does not count: a sanitizer slows it down."""


@dataclass(frozen=True)
class Part:
    """planned: seconds that it should take; limit: after which it is stopped, if earlier parts left nothing over. Both of a GPU."""

    name: str
    planned: float
    limit: float
    run: Callable[[Suite, Part, float], Outcome]
    what: str


@dataclass
class Outcome:
    state: str  # ok, FAILED, skipped
    what: str = ""
    seconds: float = 0.0


@dataclass
class Suite:
    out: Path
    rehearse: bool
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

    def process(self, command: list[str], log: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "PFGM_FAST_OUT": str(self.out)} | more  # fmt: skip
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )  # fmt: skip

    def command(
        self, part: Part, command: list[str], limit: float, ready: bool = False, **more: str
    ) -> int | None:
        """Exit status, or None where the limit was reached. ready: the limit begins when the process says that it is ready."""
        flag = self.out / f"{part.name}.ready"
        flag.unlink(missing_ok=True)
        process = self.process(command, self.out / f"{part.name}.log", more | {"PFGM_FAST_READY": str(flag)})
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
    last = gpu_summary.last_line(suite.out / f"{part.name}.log")
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
    log = suite.out / "machine.log"
    for tool in (
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv"],
        ["nvcc", "--version"],
        ["compute-sanitizer", "--version"],
    ):
        if shutil.which(tool[0]) is None:
            with log.open("a") as file:
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
        text = (suite.out / f"{part.name}.log").read_text(errors="replace")
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
        records = Records(suite.out / f"{part.name}.jsonl", fresh=True)
        waited = patience * suite.slower
        chosen = f"({select}) and not ({NOT_REHEARSED})" if suite.rehearse else select
        command = [
            *suite.module("pytest", suite.tests, "-m", "gpu", "-k", chosen, "-q", "-o", "addopts="),
            *("-p", "no:cacheprovider", "-p", "benchmarks.gpu_records"),
        ]
        until = time.monotonic() + limit
        log = suite.out / f"{part.name}.log"

        def start(shard: int) -> subprocess.Popen[bytes]:
            more = {"PFGM_FAST_RECORDS": str(records.path), "PFGM_FAST_SHARE": f"{shard}/{shards}"}
            return suite.process(command, log, more)

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
        records.write_junit(suite.out / f"{part.name}.xml", part.name)
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


def selftest(suite: Suite, part: Part, limit: float) -> Outcome:
    arguments = ["selftest", "--seconds", f"{limit - 10:.0f}", "--json", str(suite.out / "selftest.json")]
    code = suite.command(part, [*suite.python, "-m", "pfgm_fast", *arguments], limit)
    return plain(suite, part, code, gpu_summary.last_line(suite.out / "selftest.log"))


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


PARTS = (
    Part("machine", 8, 20, machine, "what this machine is"),
    Part("build", 70, 130, build, "setup.py with CUDA, for the GPU that is here"),
    Part(
        "memcheck", 30, 55, sanitizer("memcheck"), "compute-sanitizer, this package's kernels on small shapes"
    ),
    Part("cuda", 45, 75, tests("not triton and not hopper", 1, 30), "tests/gpu with the CUDA backend"),
    Part("triton", 55, 75, tests("triton and not hopper", 10, 45), "tests/gpu with the Triton backend"),
    Part("hopper", 12, 25, tests("hopper", 1, 20), "Hopper's own path, against the default to the bit"),
    Part("selftest", 35, 50, selftest, "pfgm-fast selftest"),
    Part("bench", 60, 80, bench, "benchmarks.gpu"),
    Part("racecheck", 20, 30, sanitizer("racecheck"), "compute-sanitizer's hazards in shared memory"),
)


# ---- the run -------------------------------------------------------------------------------------------------------------


def find_data() -> str:
    if "DATA" in os.environ:
        return os.environ["DATA"]
    name = "data/cifar10-jpeg-train.zip"
    folders = (ROOT / "shared", ROOT.parent / "shared")
    return next((str(folder / name) for folder in folders if (folder / name).exists()), "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/gpu.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="only these, again")
    parser.add_argument("--list", action="store_true", help="the parts, their planned seconds and limits")
    options = parser.parse_args(arguments)
    known = {part.name: part for part in PARTS}
    if options.list:
        print(gpu_summary.plan_table(PARTS))
        return 0
    unknown = [name for name in options.parts if name not in known]
    if unknown:
        print(f"tools/gpu.sh: no part {unknown[0]!r} (parts: {' '.join(known)})", file=sys.stderr)
        return 2
    suite = Suite(
        Path(os.environ.get("OUT", "out/gpu")).resolve(), os.environ.get("REHEARSE") == "1", data=find_data()
    )
    suite.out.mkdir(parents=True, exist_ok=True)
    print(gpu_summary.plan_table(PARTS))
    if suite.rehearse:
        print(f"a rehearsal: every limit is {SLOWER:.0f} times as long")
    outcomes = gpu_summary.load(suite.out)
    began, spare, failed = time.monotonic(), 0.0, 0
    for part in PARTS:
        if options.parts and part.name not in options.parts:
            continue
        before = outcomes.get(part.name, {})
        if not options.parts and before.get("state") == "ok" and not os.environ.get("FRESH"):
            print(f"== {part.name}: done before", flush=True)
            spare += part.limit * suite.slower
            continue
        own = part.limit * suite.slower
        limit = max(5.0, min(own + spare, TOTAL * suite.slower - (time.monotonic() - began)))
        print(f"== {part.name}: planned {part.planned:.0f} s, at most {limit:.0f} s", flush=True)
        (suite.out / f"{part.name}.log").write_bytes(b"")
        start = time.monotonic()
        try:
            outcome = part.run(suite, part, limit)
        except Exception as error:  # the runner's own faults are a part's too, and the others go on
            outcome = Outcome("FAILED", f"{type(error).__name__}: {error}")
        outcome.seconds = time.monotonic() - start
        spare = max(0.0, spare + own - outcome.seconds)
        failed += outcome.state == "FAILED"
        outcomes[part.name] = vars(outcome) | {"planned": part.planned, "limit": limit}
        print(f"{part.name} {outcome.state} {outcome.seconds:.0f} s  {outcome.what}", flush=True)
        gpu_summary.write(suite.out, PARTS, outcomes, suite.rehearse)
    print((suite.out / "summary.md").read_text())
    return failed


if __name__ == "__main__":
    sys.exit(main())
