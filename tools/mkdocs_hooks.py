"""A hook of MkDocs. Formulas become MathML while the site is built, so pages need no script and no network to show them; the tables of
benchmarks/results become a page."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)

RESULTS = "benchmarks/results"


def on_files(files: Any, config: Any) -> Any:
    """performance.md: the committed results, of the CPU and of every GPU."""
    folder = Path(config.config_file_path).parent / RESULTS
    pages = [folder / "cpu.md", *sorted(folder.glob("cpu-*.md")), *sorted(folder.glob("*/gpu.md"))]
    content = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)
    files.append(File.generated(config, "performance.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(rf"\]\(\.\./{RESULTS}/(cpu[\w-]*|[\w-]+/gpu)\.md\)", "](performance.md)", markdown)


def on_page_content(content: str, **_: Any) -> str:
    def mathml(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return convert(html.unescape(match[3]).strip(), display=display)

    return _FORMULA.sub(mathml, content)
