"""The layers hold: no module imports one above it, and none imports itself through others."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pfgm_fast

PACKAGE = Path(pfgm_fast.__file__).resolve().parent
LAYERS = (
    ("errors", "_version", "special", "precision", "timing", "files", "extras", "transfer", "ops.schema"),
    ("backends", "checks", "seeds"),
    ("ops",),
    (
        "byte_codes",
        "partials",
        "ranks",
        "world",
        "charges",
        "charges_file",
        "charges_distributed",
        "data",
        "field",
        "steps",
    ),
    ("flows", "methods", "solvers", "nn", "metrics", "plots", "peers", "ideal"),
    ("sampling", "sampling_graph", "likelihood", "latents", "training", "presets", "compat", "selftest"),
    ("compare", "studies"),
    ("cli", "__main__", "_command"),
)
"""From the lowest up; a name stands for all below it that no longer name is given for."""


EXCEPTIONS = {
    "ops.first_use imports charges": "its case is prepared as a user's is; imported when a GPU backend is first asked",
}


def _modules() -> dict[str, Path]:
    """Name below pfgm_fast ("" for the package itself) → file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(name: str, tree: ast.Module, modules: dict[str, Path], *, at_import: bool) -> set[str]:
    """Modules of the package that a module imports; `at_import`: only what runs when it is imported itself."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pfgm_fast":
            base = (node.module or "").removeprefix("pfgm_fast").lstrip(".")
            for alias in node.names:
                below = f"{base}.{alias.name}".lstrip(".")
                found.add(below if below in modules else base)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pfgm_fast":
                    found.add(alias.name.removeprefix("pfgm_fast").lstrip("."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {other for other in found if other in modules} - {name}


def _layer(name: str) -> int:
    """The layer of a module: that of the longest name in LAYERS which it is or lies below."""
    fits = [
        (len(listed), height)
        for height, layer in enumerate(LAYERS)
        for listed in layer
        if name == listed or name.startswith(listed + ".")
    ]
    assert fits, f"tests/test_layers.py does not know where {name} stands: name it in LAYERS"
    return max(fits)[1]


def _graph(*, at_import: bool) -> dict[str, set[str]]:
    modules = _modules()
    return {
        name: _imports(name, ast.parse(path.read_text()), modules, at_import=at_import)
        for name, path in modules.items()
    }


def test_nothing_imports_upward() -> None:
    """The package's own __init__ names what is public, so it may import all; what others take from it is counted nowhere."""
    upward = {
        f"{name} imports {other}"
        for name, others in _graph(at_import=False).items()
        for other in others
        if name and other and _layer(other) > _layer(name)
    }
    assert upward - set(EXCEPTIONS) == set()
    assert set(EXCEPTIONS) <= upward, "an exception that is no longer needed"


def test_no_module_imports_itself_through_others() -> None:
    graph = _graph(at_import=True)
    del graph[""]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" → ".join(circle.args[1]))


def test_a_planted_import_is_seen() -> None:
    modules = _modules()
    planted = ast.parse("def f():\n    from pfgm_fast.training import trainer\n")
    assert _imports("ops.schema", planted, modules, at_import=False) == {"training.trainer"}
    assert _imports("ops.schema", planted, modules, at_import=True) == set()
    assert _layer("training.trainer") > _layer("ops.schema")
