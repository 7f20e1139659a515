"""compare: a whole comparison in miniature; it can be stopped, and what it says is what it measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from pfgm_fast import compare
from pfgm_fast.data import load

PLAN = compare.Plan(steps=4, batch=16, width=8, multipliers=(1, 2), samples=16, long=4)


@pytest.mark.slow
def test_a_comparison_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load("digits")
    points = compare.run(PLAN, digits, "digits", tmp_path)
    assert [p["key"] for p in points] == [p.key for p in PLAN.points()]
    by_key = {p["key"]: p for p in points}
    assert by_key["pfgm/heun/10"]["evaluations"] == 19
    assert by_key["ve/predictor_corrector/2"]["evaluations"] == 4
    report = compare.write_report(PLAN, points, "digits", tmp_path).read_text()
    assert f"{by_key['vp/euler/50']['frechet']:.2f}" in report
    clock = json.loads((tmp_path / "times.json").read_text())["pfgm/heun"]
    assert by_key["pfgm/heun/10"]["seconds_per_sample"] == pytest.approx(19 * clock)
    for name in ("quality-evaluations.png", "quality-time.png", "grids/pfgm-euler-10.png"):
        assert (tmp_path / name).stat().st_size > 1000
    # What stands is not done again; what was lost is.
    lines = (tmp_path / "points.jsonl").read_text().splitlines()
    (tmp_path / "points.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    drawn = []
    module = importlib.import_module(
        "pfgm_fast.compare.run"
    )  # by its name: the package's `run` is the function
    monkeypatch.setattr(module, "_draw", lambda point, *_: drawn.append(point) or json.loads(lines[-1]))
    assert compare.run(PLAN, digits, "digits", tmp_path) == points
    assert [p.key for p in drawn] == [json.loads(lines[-1])["key"]]


def test_the_models_differ_only_in_their_method() -> None:
    configs = [PLAN.config(m, load("digits"), "digits") for m in ("pfgm", "ve", "vp")]
    assert len({(c.network, c.train) for c in configs}) == 1
    assert [c.method["name"] for c in configs] == ["pfgm", "ve", "vp"]
    weak = PLAN.config("pfgm-weak", load("digits"), "digits")
    assert weak.train.steps == 2
    assert weak.network.width == 8
