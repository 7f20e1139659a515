"""The README says what was measured: its figures are those of the committed results, its example runs, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

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


def test_the_examples_run_and_make_the_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *more = re.findall(r"```python\n(.*?)```", readme.README.read_text(), re.DOTALL)
    assert len([line for line in first.splitlines() if line]) <= 10
    names: dict[str, object] = {}
    for example in (first, *more):
        exec(compile(example.replace("4096", "64"), "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("torch.Size([512, 2]) 39")
    picture = ROOT / "docs" / "pictures" / "field-lines.png"
    with Image.open(tmp_path / "field-lines.png") as made, Image.open(picture) as committed:
        assert made.size == committed.size


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if not link.startswith("http") and not (folder / link).exists()]
    assert not missing
