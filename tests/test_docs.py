"""The documentation is current: generated pages, blocks of Python and of the shell, links, the nav, names of the API page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pfgm_fast as pf
from pfgm_fast.cli import parser
from tools import reference_pages

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
NOT_RUN = {
    "checkpoints.md": "needs a released file of several hundred megabytes",
    "scale.md": "its blocks are parts of a program that needs a large file or several processes",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", reference_pages.PAGES)
def test_generated_pages_are_current(page: str) -> None:
    assert (DOCS / page).read_text() == reference_pages.PAGES[page](), "run python -m tools.reference_pages"


def test_every_setting_has_a_meaning() -> None:
    empty = re.findall(r"^\| `(\S+)` .* \|  \|$", (DOCS / "settings.md").read_text(), re.MULTILINE)
    assert not empty


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in NOT_RUN:
        pytest.skip(NOT_RUN[page])
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})


def commands() -> list[tuple[str, str]]:
    lines = [(page, line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [(page, line) for page, line in lines if line.startswith("pfgm-fast ")]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_the_parsers(page: str, line: str) -> None:
    parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_api_page_has_every_public_name() -> None:
    named = set(re.findall(r"^::: pfgm_fast\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert named == set(pf.__all__) - {"plots", "__version__"}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every link between pages, every anchor and every name of the API page resolve: `make docs`, into another folder."""
    for module in ("material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module, reason=f"{module} is of the extra [docs]")
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=DOCS.parent,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    formulas = (tmp_path / "site" / "mathematics" / "index.html").read_text()
    assert "<math" in formulas and "arithmatex" not in formulas


def test_every_page_is_in_the_navigation() -> None:
    nav = (DOCS.parent / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert sorted(re.findall(r"[\w-]+\.md", nav)) == sorted([*PAGES, "performance.md"])
