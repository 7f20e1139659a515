"""What commands say: in any encoding, in one line when they fail, nothing to a closed pipe or on an early Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pfgm_fast.cli import COMMANDS, main
from pfgm_fast.cli.console import TRACEBACK

ASCII = {
    **os.environ,
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}
NAMES = [command.__name__.rsplit(".", 1)[1] for command in COMMANDS]


@pytest.mark.slow
def test_help_and_a_run_in_ascii(tmp_path: Path) -> None:
    """Every command's help, a training with its progress, and what comes after it, in one process under the C locale."""
    script = f"""
import sys
from pfgm_fast.cli import main
def status(*arguments):
    try:
        return main(list(arguments))
    except SystemExit as error:
        return error.code
for name in {NAMES!r}:
    assert status(name, "--help") == 0
sets = ["--set", "network.width=8", "--set", "train.batch=8", "--set", "network.blocks=1"]
run = sys.argv[1]
assert status("train", "--out", run, "--steps", "12", *sets) == 0
assert status("sample", run, "--count", "2", "--steps", "2", "--out", run + "/x.png") == 0
assert status("evaluate", run, "--count", "3") == 2
assert status("bench", "--batch", "2", "--charges", "20", "--dim", "4", "--rounds", "1") == 0
assert status("info") == 0
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=ASCII, capture_output=True)
    said = done.stdout.decode("ascii") + done.stderr.decode("ascii")
    assert done.returncode == 0, said
    for words in (
        "data      digits: 1,797 images 1x8x8",
        "method.sigma=0.02 ... (repeatable)",
        "need at least 4 samples",
    ):
        assert words in said
    assert "Traceback" not in said


class _UnprintableError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "Permission denied: /x/y"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (np.linalg.LinAlgError("did not\nconverge"), "LinAlgError at test_console.py:"),
        (AssertionError(), "AssertionError at test_console.py:"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "try a smaller batch"),
        (
            ModuleNotFoundError("No module named 'sklearn'", name="sklearn.datasets"),
            "pip install 'pfgm-fast[demo]'",
        ),
        (ModuleNotFoundError("No module named 'x'", name="x.y"), "the package x is missing: pip install x"),
        (KeyError("labels"), "KeyError at"),
        (_UnprintableError("…"), "_UnprintableError at"),
    ],
)
def test_whatever_fails_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("pfgm_fast.info", fail)
    assert main(["info"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pfgm-fast info: ")
    assert message in said
    assert len(said.splitlines()) == 1
    monkeypatch.setenv(TRACEBACK, "1")
    assert main(["info"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", "{file}/run", "--steps", "2"],
        ["train", "--out", "{file}", "--steps", "2"],
        ["sample", "{file}"],
        ["sample", "{dir}"],
        ["evaluate", "{dir}"],
        ["train", "--out", "{dir}/r", "--config", "{dir}"],
        ["train", "--out", "{dir}/r", "--data", "{dir}"],
        ["demo", "--out", "{file}", "--steps", "1"],
        ["compare", "--data", "digits", "--out", "{file}/x"],
        ["bench", "--data", "{dir}"],
    ],
)
def test_bad_places_are_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir").mkdir()
    assert main([a.format(file=tmp_path / "file", dir=tmp_path / "dir") for a in arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert said.startswith(f"pfgm-fast {arguments[0]}: ")


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["sample", "r", "--count", "0"],
        ["sample", "r", "--count", "x"],
        ["trian"],
        ["info", "--nope"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("command", "status"), [("info", 141), ("--help", 0)])
def test_a_closed_pipe_is_quiet(command: str, status: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pfgm_fast", command], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == status


@pytest.mark.usefixtures("signals_as_usual")
@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_an_early_interrupt_is_quiet(delay: float) -> None:
    """SIGINT while PyTorch is still imported, once the package has begun."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "pfgm_fast", "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "pfgm_fast._command" in line:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    assert process.returncode == 130
