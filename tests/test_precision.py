"""Networks in bfloat16: chosen by the device, asked for by name, and the table that says what it changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pfgm_fast as pf
from benchmarks.precision import interval, page
from pfgm_fast.cli import main
from pfgm_fast.compare.measures import Figures
from pfgm_fast.compare.results import Result
from pfgm_fast.precision import network_precision, quickest
from pfgm_fast.studies.points import PointFile
from pfgm_fast.training import Trainer
from tests.test_training import SMALL

CPU = torch.device("cpu")


def _units(monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)


@pytest.mark.parametrize(
    ("amx", "avx", "found"), [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")]
)
def test_a_processor_with_units_for_bfloat16_takes_it(monkeypatch, amx: bool, avx: bool, found: str) -> None:
    _units(monkeypatch, amx, avx)
    assert quickest(CPU) == found
    with network_precision("auto", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, found)


def test_a_pytorch_that_does_not_say_computes_in_float32(monkeypatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert quickest(CPU) == "float32"
    assert quickest(torch.device("meta")) == "float32"


def test_float32_is_float32_whatever_the_caller_has_set() -> None:
    with torch.autocast("cpu", torch.bfloat16), network_precision("float32", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_training_and_sampling_take_the_precision_that_was_asked_for(tmp_path: Path, monkeypatch) -> None:
    seen: list[torch.dtype] = []
    body = pf.nn.DDPMpp.forward

    def watched(self, *arguments, **named):
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return body(self, *arguments, **named)

    monkeypatch.setattr(pf.nn.DDPMpp, "forward", watched)
    _units(monkeypatch, True, True)
    train = replace(SMALL.train, steps=2, precision="auto")
    run = tmp_path / "run"
    Trainer(replace(SMALL, train=train), run).run(progress=False)
    assert set(seen) == {torch.bfloat16}
    drawn = {}
    for precision in ("float32", "bfloat16"):
        seen.clear()
        out = tmp_path / f"{precision}.npz"
        command = [
            "sample",
            str(run),
            "--count",
            "4",
            "--steps",
            "3",
            "--out",
            str(out),
            "--precision",
            precision,
        ]
        assert main(command) == 0
        assert set(seen) == {getattr(torch, precision)}
        drawn[precision] = out.read_bytes()
    assert drawn["float32"] != drawn["bfloat16"]


def test_the_table_tells_a_difference_from_the_seeds_noise(tmp_path: Path) -> None:
    """One figure moves by the same amount in every seed, the other by noise alone."""
    for name, shift in (("float32", 0.0), ("bfloat16", 1.0)):
        file = PointFile(tmp_path / name / "points.jsonl", Result.from_dict)
        for seed, noise in enumerate((0.02, -0.03, 0.01)):
            figures = Figures(0, 0.0, frechet=5.0 + seed + shift + noise * shift, energy=0.1 + noise * shift)
            key = f"pfgm-{seed}/euler/20"
            file.get(
                key, lambda f=figures, k=key, s=seed: Result(k, "pfgm", False, s, "euler", 20, 20, f, None)
            )
    text = page([tmp_path / "float32", tmp_path / "bfloat16"])
    (row,) = [line for line in text.splitlines() if line.startswith("| pfgm ")]
    assert "| pfgm | euler, 20 steps | 3 | 6 | 7 | +1 ± 0.066 ** | 0.1 | 0.1 |" in row
    assert row.count("**") == 1
    assert "1 of 2" in text
    with pytest.raises(SystemExit, match="no points in"):
        page([tmp_path / "none", tmp_path / "bfloat16"])


def test_one_seed_tells_nothing() -> None:
    assert interval([0.5]) == (0.5, float("inf"))
