"""`make gpu`: everything that needs a GPU, in parts that cannot spoil one another, within nine minutes.

    python -m benchmarks.gpu_suite [PART...] [--list]

What checks and does not time (`gpu_parts.STAGES`) runs side by side, each process with its share of the processors, after the build and
before the benchmarks, which run alone. On fewer than SIDE_BY_SIDE processors, and in a rehearsal, whose device is a CPU that others may
share, everything runs one after another; a rehearsal has SLOWER times as long for it. A limit is what a part is sure of: it may also use
what earlier ones left over but for what later ones plan, and all together end within TOTAL. Planned seconds are estimates, from what
an NVIDIA H200 with 16 processors took for most parts alone.
Parts that succeeded are not run again unless they are named (or FRESH=1). The exit status is the number of failed parts.

In OUT are at most five files, whole after each part: `summary.md` with every part's outcome, `parts.json`, `gpu.jsonl` and `gpu.md`
(the benchmarks), and `details.zip`, which holds all logs and records.

Environment: OUT (results; default out/gpu), WORK (logs while the parts run; default a temporary folder), DATA (images for the CIFAR-10
rows), COMMIT (what the benchmarks' rows say, where git does not know), BENCH (arguments for benchmarks.gpu), REHEARSE=1 (no GPU: a
stand-in, whose numbers mean nothing). Only the standard library is imported here: what is broken must not stop the runner.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import gpu_summary
from benchmarks.gpu_parts import PARTS, ROOT, SLOWER, STAGES, Outcome, Part, Suite

# ---- the run -------------------------------------------------------------------------------------------------------------


def find_data() -> str:
    if "DATA" in os.environ:
        return os.environ["DATA"]
    name = "data/cifar10-jpeg-train.zip"
    folders = (ROOT / "shared", ROOT.parent / "shared")
    return next((str(folder / name) for folder in folders if (folder / name).exists()), "")


TOTAL = 540.0
"""Seconds for everything: below the ten minutes that a borrowed machine may give one command."""
SIDE_BY_SIDE = 8
"""Processors from which on the parts of a stage run at once."""


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_beside(
    suite: Suite, parts: Sequence[Part], limits: dict[str, float]
) -> Iterator[tuple[Part, Outcome]]:
    """Run parts at once, each watched by a thread of its own; their outcomes as they end."""

    def run(part: Part) -> Outcome:
        suite.log(part).write_bytes(b"")
        start = time.monotonic()
        try:
            outcome = part.run(suite, part, limits[part.name])
        except Exception as error:  # the runner's own faults are a part's too, and the others go on
            outcome = Outcome("FAILED", f"{type(error).__name__}: {error}")
        outcome.seconds = time.monotonic() - start
        return outcome

    with ThreadPoolExecutor(max(1, len(parts))) as threads:
        running = {threads.submit(run, part): part for part in parts}
        for done in as_completed(running):
            yield running[done], done.result()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/gpu.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="only these, again")
    parser.add_argument("--list", action="store_true", help="the parts, their planned seconds and limits")
    options = parser.parse_args(arguments)
    known = [part.name for part in PARTS]
    rehearse = os.environ.get("REHEARSE") == "1"
    beside = processors() >= SIDE_BY_SIDE and not rehearse
    plan = gpu_summary.plan_table(STAGES, beside)
    if options.list:
        print(plan)
        return 0
    unknown = [name for name in options.parts if name not in known]
    if unknown:
        print(f"tools/gpu.sh: no part {unknown[0]!r} (parts: {' '.join(known)})", file=sys.stderr)
        return 2
    out = Path(os.environ.get("OUT", "out/gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(plan)
    if rehearse:
        print(f"a rehearsal: every limit is {SLOWER:.0f} times as long")
    with tempfile.TemporaryDirectory(prefix="pfgm-fast-gpu-") as folder:
        work = Path(os.environ.get("WORK") or folder).resolve()
        work.mkdir(parents=True, exist_ok=True)
        gpu_summary.unpack(out, work)
        failed = run_all(Suite(out, work, rehearse, beside, data=find_data()), options.parts)
    print((out / "summary.md").read_text())
    return failed


def run_all(suite: Suite, named: Sequence[str]) -> int:
    """Every stage, or the named parts of each: how many failed."""
    outcomes: dict[str, dict[str, Any]] = gpu_summary.load(suite.out)
    began, spare, failed = time.monotonic(), 0.0, 0
    again = bool(named) or bool(os.environ.get("FRESH"))
    batches = STAGES if suite.beside else tuple((part,) for part in PARTS)
    later = sum(max(part.planned for part in batch) for batch in batches)
    for batch in batches:
        later -= max(part.planned for part in batch)
        chosen = []
        for part in batch:
            if named and part.name not in named:
                continue
            if not again and outcomes.get(part.name, {}).get("state") == "ok":
                print(f"== {part.name}: done before", flush=True)
                continue
            chosen.append(part)
        start, own = time.monotonic(), max(part.limit for part in batch) * suite.slower
        left = (TOTAL - (0 if named else later)) * suite.slower - (start - began)
        limits = {p.name: max(5.0, min(p.limit * suite.slower + spare, left)) for p in chosen}
        for part in chosen:
            print(
                f"== {part.name}: planned {part.planned:.0f} s, at most {limits[part.name]:.0f} s", flush=True
            )
        for part, outcome in run_beside(suite, chosen, limits):
            failed += outcome.state == "FAILED"
            more = {"limit": limits[part.name], "beside": len(chosen) - 1}
            outcomes[part.name] = asdict(outcome) | more
            print(f"{part.name} {outcome.state} {outcome.seconds:.0f} s  {outcome.what}", flush=True)
            gpu_summary.write(suite.out, suite.work, PARTS, outcomes, suite.rehearse)
        spare = max(0.0, spare + own - (time.monotonic() - start))
    return failed


if __name__ == "__main__":
    sys.exit(main())
