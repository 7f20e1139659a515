"""The repository's own files say what is so: versions, names of files and of hooks, targets, the fields of a citation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import pfgm_fast as pf
from pfgm_fast.cli import parser
from pfgm_fast.methods import METHODS, Method

ROOT = Path(__file__).resolve().parent.parent
YAML = [
    ".pre-commit-config.yaml",
    "CITATION.cff",
    *(str(p.relative_to(ROOT)) for p in sorted((ROOT / ".github").rglob("*.yml"))),
]


def read(name: str) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra [docs]")
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", YAML)
def test_yaml_is_yaml(name: str) -> None:
    assert isinstance(read(name), dict)


def test_the_version_is_one() -> None:
    newest = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == read("CITATION.cff")["version"] == pf.__version__


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`((?:pfgm_fast|csrc|tests|benchmarks|tools)/[\w./]*)`", text))
    assert len(paths) > 15
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    modules = re.findall(r"`python -m (tools\.\w+)`", text)
    assert modules and all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules)
    members = re.search(r"hyper-parameters with (.*?) \(the protocol", text, re.DOTALL)
    assert members
    for name in re.findall(r"`(\w+)`", members[1]):
        assert hasattr(Method, name) or name in Method.__annotations__, name
        assert all(hasattr(method, name) for method in METHODS.values())


def test_workflows_run_targets_and_commands_that_are_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [(ROOT / name).read_text() for name in YAML if "workflows" in name]
    assert len(texts) == 3
    used = {target for text in texts for target in re.findall(r"run: make (\w+)", text)}
    assert used == {"test", "docs"} and used <= targets
    (command,) = (c for text in texts for c in re.findall(r'TEST_COMMAND: .*pfgm-fast (.*)"', text))
    parser().parse_args(command.split())


def test_hooks_are_those_of_make_lint() -> None:
    lint = (ROOT / "Makefile").read_text().split("lint: $(STAMP)")[1].split("\n\n")[0]
    (local,) = read(".pre-commit-config.yaml")["repos"]
    for hook in local["hooks"]:
        assert hook["entry"].split(" --")[0] in lint, hook["id"]
