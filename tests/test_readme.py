"""The README says what was measured: its figures are those of the committed results, its example runs, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import readme

ROOT = Path(__file__).resolve().parent.parent


def test_the_figures_are_the_committed_ones() -> None:
    text = readme.README.read_text()
    assert readme.written(text) == text


def test_a_figure_written_by_hand_is_found() -> None:
    text = readme.README.read_text()
    changed = re.sub(r"(<!-- cpu:begin -->\n)", r"\1A thousand times faster than all else.\n", text)
    assert changed != text
    assert readme.written(changed) == text


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", readme.README.read_text(), re.DOTALL)
    exec(compile(example.replace("4096", "64"), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([16, 3, 32, 32]) 59 ")


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if not link.startswith("http") and not (folder / link).exists()]
    assert not missing
