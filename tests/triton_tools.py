"""Runs tests marked `interpreter` where Triton's kernels are interpreted: in processes with TRITON_INTERPRET=1.

Triton reads that switch when a kernel is decorated, so the process that runs the other tests must not have it. Here such a test
is not called: the first of a file has all of the file's that were asked for run by two further pytest processes, and each then
reports what became of it there. With TRITON_INTERPRET=1 in the environment they run like any other test.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PROCESSES = 2


def _patch_once() -> None:
    """Triton's interpreter replaces its language at a launch, and looks for what to replace again at every call of a device
    function, which takes half of its time. Here it looks at launches only."""
    from triton import language
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope")):
        return  # another version: slower, not wrong
    patch = interpreter._patch_lang

    def patch_if_not_yet(function):
        seen = [m for m in function.__globals__.values() if m is language or m is language.core]
        replaced = all(not language.core.is_builtin(m.load) for m in seen)
        return interpreter._LangPatchScope() if replaced else patch(function)

    interpreter._patch_lang = patch_if_not_yet


if INTERPRETED and importlib.util.find_spec("triton") is not None:
    _patch_once()

_results: dict[Path, dict[str, ElementTree.Element]] = {}


def _run(nodes: list[str]) -> dict[str, ElementTree.Element]:
    """Test name (with its parameters' id) → its entry in the JUnit report."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    found: dict[str, ElementTree.Element] = {}
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for share in range(PROCESSES):
            report, mine = Path(folder) / f"{share}.xml", nodes[share::PROCESSES]
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                f"--junitxml={report}",
                *mine,
            ]
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            if mine:
                running.append((report, subprocess.Popen(command, cwd=ROOT, env=environment, **pipe)))
        for report, process in running:
            output = process.communicate()[0]
            if not report.exists():
                raise RuntimeError(f"pytest ended with {process.returncode} and no report:\n{output}")
            for case in ElementTree.parse(report).iter("testcase"):
                found[case.attrib["name"]] = case
    return found


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A hook of pytest (tests/conftest.py takes it over)."""
    if INTERPRETED or pyfuncitem.get_closest_marker("interpreter") is None:
        return None
    if pyfuncitem.path not in _results:
        together = [
            item.nodeid
            for item in pyfuncitem.session.items
            if item.path == pyfuncitem.path and item.get_closest_marker("interpreter")
        ]
        _results[pyfuncitem.path] = _run(together)
    case = _results[pyfuncitem.path].get(pyfuncitem.name)
    if case is None:
        pytest.fail(f"{pyfuncitem.name} did not run in the interpreter's process", pytrace=False)
    for outcome in case:
        if outcome.tag == "skipped":
            pytest.skip(outcome.attrib.get("message", ""))
        if outcome.tag in ("failure", "error"):
            pytest.fail(outcome.text or outcome.attrib.get("message", ""), pytrace=False)
    return True
