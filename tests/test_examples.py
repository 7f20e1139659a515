"""Every example runs, as a user runs it, with little data; its notebook is what the script makes. newcomer.sh: test_own_data.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = {  # name → size, and what it prints
    "toy_2d": ("200", "from the heart at most"),
    "own_unet": ("4", "16 samples in 40 evaluations"),
    "ideal_in_k_diffusion": ("200", "100% in the upper half"),
    "edm_stable_targets": ("20", "target posterior mean"),
    "memorisation": ("200", "copies: [20, 21, 22, 23, 24], of the images [0, 1, 2, 3, 4]"),
    "likelihood": ("50", "nats at most"),
    "accelerate_loop": ("200", "256 samples in 40 evaluations"),
    "torchrun": ("500", "500 charges on 1 ranks"),
}
NEEDS = {"accelerate_loop": "accelerate"}


def run(command: list[str], size: str, folder: Path) -> str:
    root = str(EXAMPLES.parent)
    environment = {**os.environ, "PFGM_FAST_EXAMPLE_SIZE": size, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_table_has_every_example() -> None:
    assert sorted(SCRIPTS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    size, said = SCRIPTS[name]
    assert said in run([sys.executable, str(EXAMPLES / f"{name}.py")], size, tmp_path)


def test_charges_on_two_ranks(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert "501 charges on 2 ranks" in run([*launch, str(EXAMPLES / "torchrun.py")], "501", tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_is_its_script(name: str) -> None:
    pytest.importorskip("nbformat", reason="nbformat is of the extra [dev]")
    from tools import notebooks

    made = notebooks.notebook((EXAMPLES / f"{name}.py").read_text())
    assert (notebooks.NOTEBOOKS / f"{name}.ipynb").read_text() == made, "run python -m tools.notebooks"
