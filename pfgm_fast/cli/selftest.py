"""pfgm-fast selftest: every backend that can run here against the reference in float64; the first thing to run on a new machine."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "selftest",
        help="every backend that can run here against float64, on small and real shapes (two minutes at most)",
        description="Prints a table of errors and times. Exit status 1 where a backend misses a bar; one that cannot run here is a "
        "line with its reason.",
    )
    command.add_argument("--backend", action="append", help="only this backend; may be given again")
    command.add_argument(
        "--seconds", type=float, default=120.0, help="begin no check after so long (default 120)"
    )
    command.add_argument("--json", metavar="FILE", help="also write the rows to FILE, as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict
    from pathlib import Path

    from pfgm_fast.selftest import Row, selftest

    def say(row: Row) -> None:
        error = "" if row.error is None else f"{row.error:.1e}"
        print(f"  {row.backend} {row.device} {row.case}: {error} {row.note}".rstrip(), flush=True)

    report = selftest(tuple(options.backend) if options.backend else None, options.seconds, say)
    print(f"\n{report}")
    if options.json:
        facts = {"ok": report.ok, "seconds": report.seconds, "rows": [asdict(row) for row in report.rows]}
        Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")
    return 0 if report.ok else 1
