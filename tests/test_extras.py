"""Packages of the extras, hidden: what needs one says so in one sentence that names the extra, before any work is done."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pfgm_fast import extras
from pfgm_fast.errors import MissingPackageError, PfgmError

ROOT = Path(__file__).resolve().parent.parent

HIDDEN = """
import contextlib, io, json, sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "mpl_toolkits", "sklearn", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
import torch, pfgm_fast as pf
from pfgm_fast.cli import main
from pfgm_fast.ops.dispatch import use_backend

def raised(call):
    try:
        call()
    except Exception as error:
        return [c.__name__ for c in type(error).__mro__], str(error)
    return [], "nothing was raised"

def on_triton():
    with use_backend("triton"):
        pf.poisson_field(torch.zeros(2, 3), 1.0, torch.eye(3))

y, out = torch.eye(2), sys.argv[1]
found = {
    view: raised(lambda: pf.plots.field_lines(y[:, :1] if view == "half-plane" else y, view=view))
    for view in ("3d", "plane", "half-plane")
}
found["loss"] = raised(lambda: pf.plots.loss_curve([1], [1.0], out + "/loss.png"))
found["digits"] = raised(lambda: pf.data.load("digits"))
found["triton"] = raised(on_triton)
for arguments in (["demo"], ["compare", "--data", "digits"], ["study", "exact"], ["study", "optimal-loss"], ["train"]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main([*arguments, "--out", f"{out}/{arguments[0]}"])
    found[" ".join(arguments)] = [status, said.getvalue()]
found["grid"] = raised(lambda: pf.plots.save_image(pf.plots.image_grid(torch.zeros(4, 1, 8, 8)), out + "/grid.png"))
found["field"] = raised(lambda: pf.poisson_field(torch.zeros(2, 3), 1.0, torch.eye(3)))
print(json.dumps(found))
"""


def test_what_needs_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    figures = "figures need matplotlib: pip install 'pfgm-fast[plots]'"
    for view in ("3d", "plane", "half-plane", "loss"):
        classes, said = found[view]
        assert said == figures
        assert {"MissingPackageError", "PfgmError", "ImportError"} <= set(classes)
    classes, said = found["digits"]
    assert said == "the data set 'digits' needs scikit-learn: pip install 'pfgm-fast[demo]'"
    assert "MissingPackageError" in classes
    classes, said = found["triton"]
    assert "BackendError" in classes
    assert "pip install 'pfgm-fast[triton]'" in said
    for name, package in (
        ("demo", r"the demo needs (scikit-learn|matplotlib): pip install 'pfgm-fast\[demo\]'"),
        ("compare --data digits", r"the report's figures need matplotlib: pip install 'pfgm-fast\[plots\]'"),
        ("study exact", r"the study's figures need matplotlib: pip install 'pfgm-fast\[plots\]'"),
        ("study optimal-loss", r"the study's figures need matplotlib: pip install 'pfgm-fast\[plots\]'"),
        ("train", r"the data set 'digits' needs scikit-learn: pip install 'pfgm-fast\[demo\]'"),
    ):
        status, said = found[name]
        assert status == 2
        assert re.fullmatch(rf"pfgm-fast {name.split()[0]}: {package}\n", said), said
    assert not list(tmp_path.glob("*/*")), "work was begun"
    assert found["grid"] == found["field"] == [[], "nothing was raised"]  # what needs none of them


def test_a_package_that_is_broken_is_told_from_one_that_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import math\nfrom math import libgl\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        MissingPackageError, match=r"x needs broken_package, which cannot be imported here \(.*libgl"
    ):
        extras.wanted("broken_package", "x needs")
    with pytest.raises(MissingPackageError, match=r"^x needs not_there: pip install not_there$") as caught:
        extras.wanted("not_there", "x needs")
    assert isinstance(caught.value, PfgmError)
    assert isinstance(caught.value, ImportError)
    assert extras.wanted("json", "x needs") is importlib.import_module("json")


def test_every_extra_that_is_named_exists_and_has_the_package() -> None:
    project = ROOT / "pyproject.toml"
    if not project.exists():
        pytest.skip("the tests run outside the source tree")
    text = project.read_text()
    for module, (package, extra) in extras.EXTRAS.items():
        line = re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)
        assert line, extra
        assert re.search(rf'"{package}\b', line.group(1)), f"{module}: {extra} does not bring {package}"
    demo = re.search(r"^demo = \[(.*)\]$", text, re.MULTILINE)
    assert demo
    assert "matplotlib" in demo.group(1)
