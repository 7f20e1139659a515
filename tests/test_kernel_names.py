"""docs/kernels.md is true: each operator's kernel is found in every backend by its name, each stage in the files that it lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pfgm_fast.ops.schema import REFERENCE_ONLY, SCHEMAS

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
            assert op in REFERENCE_ONLY and backend != "reference"
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


def test_names_that_were_given_up_are_gone() -> None:
    """One word for one thing: the old ones of the glossary do not come back into the C++ that is shared or of the CPU."""
    gone = re.compile(r"\b(Wanted|FloatLaw|Law|ChargeRows|SpreadRow|hopeless|run_plane|settle_few)\b")
    for folder in ("common", "cpu"):
        for path in (ROOT / "csrc" / folder).rglob("*.*"):
            assert not gone.search(path.read_text()), path
