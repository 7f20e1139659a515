"""Results of tests that survive their process: a line a test, written as it ends. A plugin of pytest, and the reader of its file.

`pytest -p benchmarks.gpu_records` with PFGM_FAST_RECORDS=FILE and PFGM_FAST_SHARE=I/K runs every K-th test from the I-th on that has no
result in FILE yet. A test that fails with the device lost ends the process with status POISONED: whatever ran after it would fail too.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

POISONED = 70


class Records:
    """The file: lines {shard, node, outcome, ...}; outcome "started" as a test begins, "collected" for each that a shard has."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        if fresh:
            path.write_text("")

    def add(self, shard: int, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"shard": shard, "at": time.time()} | line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:  # cut off with its process
                continue
        return found

    def results(self) -> dict[str, dict[str, Any]]:
        """Node → its result: the last one, but a failure (of a teardown, say) stays."""
        found: dict[str, dict[str, Any]] = {}
        for line in self.lines():
            ended = line["outcome"] in ("passed", "failed", "skipped")
            if ended and found.get(line["node"], {}).get("outcome") != "failed":
                found[line["node"]] = line
        return found

    def counts(self) -> dict[str, int]:
        return dict(Counter(line["outcome"] for line in self.results().values()))

    def unfinished(self) -> list[str]:
        done = self.results()
        return sorted({line["node"] for line in self.lines() if line["outcome"] == "collected"} - set(done))

    def _running(self, shard: int) -> dict[str, Any] | None:
        done = self.results()
        started = [
            line
            for line in self.lines()
            if line["shard"] == shard and line["outcome"] == "started" and line["node"] not in done
        ]
        return started[-1] if started else None

    def running(self, shard: int) -> str | None:
        """The test that the shard began and did not end."""
        line = self._running(shard)
        return None if line is None else line["node"]

    def hanging(self, shard: int, patience: float) -> str | None:
        line = self._running(shard)
        return line["node"] if line is not None and time.time() - line["at"] > patience else None

    def write_junit(self, path: Path, name: str) -> None:
        results, counts = self.results(), self.counts()
        suite = ElementTree.Element(
            "testsuite",
            name=name,
            tests=str(len(results)),
            failures=str(counts.get("failed", 0)),
            skipped=str(counts.get("skipped", 0)),
        )
        for node, line in results.items():
            file, _, test = node.partition("::")
            case = ElementTree.SubElement(
                suite, "testcase", classname=file, name=test, time=f"{line.get('seconds', 0):.3f}"
            )
            if line["outcome"] != "passed":
                tag = "failure" if line["outcome"] == "failed" else "skipped"
                ElementTree.SubElement(case, tag, message=line.get("text", "")[:300]).text = line.get(
                    "text", ""
                )
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


# ---- the plugin ----------------------------------------------------------------------------------------------------------


def _mine() -> tuple[Records, int, int]:
    shard, shards = map(int, os.environ["PFGM_FAST_SHARE"].split("/"))
    return Records(Path(os.environ["PFGM_FAST_RECORDS"])), shard, shards


def pytest_collection_finish(session: Any) -> None:
    """After -k and -m: every K-th test; those with a result are not run again."""
    records, shard, shards = _mine()
    session.items[:] = session.items[shard::shards]
    for item in session.items:
        records.add(shard, {"node": item.nodeid, "outcome": "collected"})
    done = records.results()
    session.items[:] = [item for item in session.items if item.nodeid not in done]


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    records, shard, _ = _mine()
    records.add(shard, {"node": nodeid, "outcome": "started"})


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    records, shard, _ = _mine()
    if report.outcome == "skipped":
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    else:
        text = "" if report.outcome == "passed" else report.longreprtext[-4000:]
    lost = report.outcome == "failed" and device_lost()
    line = {"node": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "text": text}
    records.add(shard, line | ({"device": "lost"} if lost else {}))
    if lost:
        os._exit(POISONED)


def device_lost() -> bool:
    """Whether nothing can run on the device any more in this process."""
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").add_(1).cpu()
    except Exception:
        return True
    return False
