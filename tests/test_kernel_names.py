"""docs/kernels.md is true: each operator's kernel is found in every backend by its name, each stage in the files that it lists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pfgm_fast.ops.schema import NETWORK_OPERATORS, REFERENCE_ONLY, SCHEMAS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "kernels.md"
FOLDERS = {
    "reference": "pfgm_fast",
    "cpu": "csrc/cpu",
    "cuda": "csrc/cuda",
    "triton": "pfgm_fast/backends/triton",
}
pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="the tests run outside the source tree")


def _rows(first_column: str) -> list[list[str]]:
    """Cells of the table whose first heading is `first_column`."""
    lines = DOCUMENT.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


OPERATORS = [op for op in SCHEMAS if "." not in op] if DOCUMENT.exists() else []


def _found(path: Path, op: str) -> bool:
    """Whether the file defines or registers the operator under its own name."""
    text = path.read_text()
    if path.suffix == ".py":
        return re.search(rf"^def {op}\(", text, re.MULTILINE) is not None
    return f"PFGM_FIELD_OPERATOR({op})" in text or f'm.impl("{op}"' in text


@pytest.mark.parametrize("op", OPERATORS)
def test_an_operators_kernel_is_found_by_its_name(op: str) -> None:
    row = next(row for row in _rows("operator") if row[0] == f"`{op}`")
    for backend, cell in zip(FOLDERS, row[1:], strict=True):
        written = cell.strip("`")
        if written == "–":
            assert op in REFERENCE_ONLY or (op in NETWORK_OPERATORS and backend == "cuda")
            assert backend != "reference"
            continue
        path = ROOT / (written if written.startswith("csrc") else f"pfgm_fast/{written}")
        assert path.exists(), f"{backend}: docs/kernels.md names {written}"
        assert _found(path, op), f"{written} does not define {op}"
        if path.suffix != ".py":
            assert path.stem == op


def test_every_operator_is_in_the_table() -> None:
    assert [row[0].strip("`") for row in _rows("operator")] == OPERATORS


@pytest.mark.parametrize(
    "row", _rows("stage") if DOCUMENT.exists() else [], ids=lambda row: row[0].strip("`")
)
def test_a_stages_files_exist(row: list[str]) -> None:
    for backend, cell in zip(("cpu", "cuda", "triton"), row[2:], strict=True):
        names = re.findall(r"`([^`]+)`", cell)
        assert names or cell == "–"
        for name in names:
            assert (ROOT / FOLDERS[backend] / name).exists(), f"{backend}: {name}"


def _triton_kernels(path: Path) -> set[str]:
    """The functions that a launch runs: those that ask which program they are. (Triton itself is not asked: it may be absent.)"""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and "tl.program_id(" in ast.unparse(node)
    }


def test_a_triton_kernel_is_named_as_its_stage_and_stands_in_its_file() -> None:
    """Of `step_kernels.py` the glossary has the file alone: its docstring has the kernels."""
    stages = {row[0].strip("`"): re.findall(r"`([^`]+)`", row[4]) for row in _rows("stage")}
    named = {name for files in stages.values() for name in files}
    found = {path.name: _triton_kernels(path) for path in (ROOT / FOLDERS["triton"]).glob("*.py")}
    steps = found.pop("step_kernels.py")
    assert {name for name, kernels in found.items() if kernels} <= named
    for name, kernels in found.items():
        stem = name.removesuffix(".py")
        assert [k for k in kernels if not re.fullmatch(rf"{stem}(_bytes|_floats)?_kernel", k)] == [], name
    text = (ROOT / FOLDERS["triton"] / "step_kernels.py").read_text()
    assert [k for k in steps if f"`{k}`" not in text] == []
    document = (ROOT / "docs" / "triton.md").read_text()
    table = re.findall(r"^\| `(\w+_kernel)` \|", document, re.MULTILINE)
    assert sorted(table) == sorted(kernel for kernels in found.values() for kernel in kernels)
    for file in re.findall(r"`(\w+\.py)`", document.split("## What is where")[1].split("##")[0]):
        assert (ROOT / FOLDERS["triton"] / file).exists(), file


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
def test_a_numbers_name_is_found_in_its_backend(backend: str) -> None:
    """Where the table of numbers names a constant or a stage of a backend, that backend's sources have it."""
    sources = [path for path in (ROOT / FOLDERS[backend]).rglob("*.*") if path.suffix != ".pyc"]
    text = "\n".join(path.read_text() for path in sources)
    names = [
        name
        for row in _rows("number")
        for part in re.split(r"[,;]? ?(?=\b(?:cpu|cuda|triton)\b)", row[1])
        if part.startswith(backend)
        for name in re.findall(r"`(\w+)`", part)
    ]
    assert len(names) > 3
    stems = {path.stem for path in sources}
    assert [name for name in names if name not in stems and not re.search(rf"\b{name}\b", text)] == []


GONE = {
    "csrc/common": r"Wanted|FloatLaw|Law|ChargeRows|SpreadRow|hopeless|run_plane|settle_few",
    "csrc/cpu": r"Wanted|FloatLaw|Law|ChargeRows|SpreadRow|hopeless|run_plane|settle_few",
    "pfgm_fast/backends/triton": r"plane\w*|spread\w*|heavy\w*|light|LISTED|heard|doubts?|MODES?|Call|log_kernel|(byte|float)_product\w*|digit_kernel",
}
"""Folder → the words of the glossary's column "was" that do not come back there."""


@pytest.mark.parametrize("folder", GONE)
def test_names_that_were_given_up_are_gone(folder: str) -> None:
    """One word for one thing."""
    gone = re.compile(rf"\b({GONE[folder]})\b")
    for path in (ROOT / folder).rglob("*.*"):
        if path.suffix != ".pyc":
            assert not gone.search(path.read_text()), path
