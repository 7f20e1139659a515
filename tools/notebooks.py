"""Makes examples/notebooks/NAME.ipynb of each example's percent script: `python -m tools.notebooks`. They are not executed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = EXAMPLES / "notebooks"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def notebook(script: str) -> str:
    """The notebook, as JSON, of a script whose cells begin with "# %%" or "# %% [markdown]"."""
    book = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    for number, (kind, text) in enumerate(
        re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", script, re.DOTALL | re.MULTILINE)
    ):
        text = text.strip("\n")
        if kind:
            cell = nbformat.v4.new_markdown_cell(
                "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
            )
        else:
            cell = nbformat.v4.new_code_cell(text)
        cell["id"] = f"cell-{number}"
        book.cells.append(cell)
    nbformat.validate(book)
    return nbformat.writes(book, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOKS.mkdir(exist_ok=True)
    for path in SCRIPTS:
        (NOTEBOOKS / f"{path.stem}.ipynb").write_text(
            notebook(path.read_text(encoding="utf-8")), encoding="utf-8"
        )
