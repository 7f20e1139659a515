"""The robustness study: its knobs do what the paper's do, on networks and on the exact field; its page says what the points say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.cli import main
from pfgm_fast.data import ImageSet, load
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.studies.exact import make
from pfgm_fast.studies.points import PointFile
from pfgm_fast.studies.quality import Quality
from pfgm_fast.studies.quantized import on_grid, quantized
from pfgm_fast.studies.robustness import RobustnessPlan, RobustnessPoint, RobustnessStudy, Subject
from pfgm_fast.studies.robustness_page import Results, write_robustness
from pfgm_fast.training import load_network

SMALL = RobustnessPlan(
    noise=(0.3,), noise_kinds=("kernel",), bits=(3,), steps=(4, 2), samples=40, seeds=(0, 1), batch=25
)


def _net() -> DDPMpp:
    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.0)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 16])
def test_weights_lie_on_a_grid_of_so_many_values(bits: int) -> None:
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    values[0, 0] = 0.0
    for part in (values, values.abs() + 1, -values.abs() - 1):
        found, low, high = on_grid(part, bits), min(0.0, float(part.min())), max(0.0, float(part.max()))
        scale = (high - low) / (2**bits - 1)
        assert len(found.unique()) <= 2**bits
        steps = found.double() / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2)
        assert (
            float((found - part).abs().max()) <= 1.001 * scale
        )  # half a step, and half for the zero's place
        assert float((found - part).abs().median()) <= 0.51 * scale
    assert float(on_grid(values, bits)[0, 0]) == 0.0
    assert torch.equal(on_grid(torch.zeros(3, 3), bits), torch.zeros(3, 3))


def test_what_is_quantised_are_the_convolutions_below_the_full_resolution() -> None:
    net = _net()
    before = {name: p.clone() for name, p in net.named_parameters()}
    for everywhere in (False, True):
        found = quantized(net, 2, everywhere)
        changed = {n for n, p in found.net.named_parameters() if not torch.equal(p, before[n])}
        wanted = {n for n, p in before.items() if p.dim() == 4 and (everywhere or ".8x8_" not in n)}
        assert changed == wanted and wanted
        assert found.share == sum(before[n].numel() for n in wanted) / sum(p.numel() for p in before.values())
        assert all(len(p.unique()) <= 4 for n, p in found.net.named_parameters() if n in wanted)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    own = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5))
    assert quantized(own, 3).share == 30 / 45
    for bits in (0, 17, 2.0, True):
        with pytest.raises(pf.ArgumentError, match="bits must be an integer from 1 to 16"):
            quantized(net, bits)
    with pytest.raises(pf.ArgumentError, match="below its full resolution"):
        quantized(DDPMpp(UNetConfig(1, 8, 8, (1,), 1, (), dropout=0.0)), 3)


def _pictures() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randint(40, 216, (6, 1, 4, 4), generator=generator)
    noise = torch.randint(-20, 20, (240, 1, 4, 4), generator=generator)
    return ImageSet("six", (centers[torch.arange(240) % 6] + noise).to(torch.uint8), None)


def test_a_point_is_the_sampler_with_its_knob_turned_and_a_study_goes_on(tmp_path: Path) -> None:
    images = _pictures()
    charges = images.charges()
    subjects = [Subject(name, name, make(name, charges), charges) for name in ("pfgmpp-128", "edm")]
    study = RobustnessStudy(images, subjects, SMALL, tmp_path, progress=False)
    points = study.run()
    assert [(p.subject, p.knob, p.value, p.seed) for p in points[:6]] == [
        ("pfgmpp-128", knob, value, seed)
        for knob, value in (("steps", 4), ("steps", 2), ("kernel", 0.3))
        for seed in (0, 1)
    ]
    generator = torch.Generator().manual_seed(1)
    given = {"method": subjects[0].method, "generator": generator, "denoise": True, "noise_alpha": 0.3}
    x = torch.cat([pf.sample(charges, (n, *charges.shape), "heun", 4, **given).x for n in (25, 15)])
    assert points[5].quality == study.target.quality(x)
    assert points[5].evaluations == 7 and points[2].evaluations == 3
    assert all(p.frechet is None for p in points)  # no labels
    again = RobustnessStudy(images, subjects, SMALL, tmp_path, progress=False)
    again._measure = None  # type: ignore[assignment,method-assign]
    assert again.run() == points
    other = RobustnessStudy(images, subjects, replace(SMALL, samples=41), tmp_path, progress=False)
    other._measure = lambda *a: points[0]  # type: ignore[method-assign]
    assert other.run() == [points[0]] * len(points)  # other settings are other points
    with pytest.raises(pf.ArgumentError, match="a key of its own"):
        RobustnessStudy(images, subjects[:1] * 2, SMALL, tmp_path)


def _point(
    subject: str, knob: str, value: float, seed: int, frechet: float | None, lost: int = 0
) -> RobustnessPoint:
    quality = None if lost else Quality(1e-4 * (frechet or 0.0), 0.0, 0.0, None, None)
    return RobustnessPoint(subject, knob, value, seed, "", 7, frechet, quality, lost, 1.0)


def test_the_page_tells_apart_what_differs_and_nothing_else(tmp_path: Path) -> None:
    charges = _pictures().charges()
    subjects = [
        Subject(n, n, make(n, charges), charges) for n in ("pfgmpp-1", "pfgmpp-128", "pfgmpp-2048", "edm")
    ]
    cost = {"pfgmpp-1": None, "pfgmpp-128": 2.0, "pfgmpp-2048": 9.9, "edm": 10.0}
    points = [_point(s.key, "steps", 4, seed, 5.0 + seed) for s in subjects for seed in (0, 1)]
    for key, more in cost.items():
        points += [
            _point(
                key, "kernel", 0.3, seed, None if more is None else 5 + seed + more, 3 if more is None else 0
            )
            for seed in (0, 1)
        ]
    plan = replace(SMALL, steps=(4,))
    results = Results(points, plan, subjects)
    assert results.knobs == ["kernel"] and results.values("kernel") == [0.0, 0.3]
    figure = results.figure(subjects[1], "kernel", 0.3, "FID*")
    assert (figure.value, figure.error) == (7.5, pytest.approx(0.5))
    assert results.loss(subjects[1], "kernel", 0.3, "FID*").error == pytest.approx(math.sqrt(0.5))
    (tmp_path / "floor.json").write_text(json.dumps({"excess": [1e-5, -1e-5], "frechet": [1.0]}))
    write_robustness(tmp_path, points, plan, subjects, "six", {})
    page = (tmp_path / "robustness.md").read_text()
    assert "pfgmpp-1 against D = ∞, of 1 settings: costs 1 more" in page
    assert "pfgmpp-128 against D = ∞, of 1 settings: costs 1 less" in page
    assert "pfgmpp-2048 against D = ∞, of 1 settings: costs 1 not told apart" in page
    assert "| pfgmpp-1 | 5.5 ± 0.5 | lost 6 |" in page and "| pfgmpp-128 | 5.5 ± 0.5 | 7.5 ± 0.5 |" in page
    assert "FID* 1 and error of the distribution 0.00316 by chance" in page
    assert (tmp_path / "robustness.png").stat().st_size > 10_000
    alone = [p for p in points if p.seed == 0]
    write_robustness(tmp_path, alone, replace(plan, seeds=(0,)), subjects, "six", {})
    page = (tmp_path / "robustness.md").read_text()
    assert "nothing is told apart" in page and "against D = ∞" not in page
    assert "| pfgmpp-128 | 5 | 7 |" in page
    write_robustness(tmp_path, points, plan, subjects, "six", {})
    rows = json.loads((tmp_path / "robustness.json").read_text())["figures"]
    assert len(rows) == 8 and rows[0]["FID*"] == 5.5


def test_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (
        "network.width=8",
        "network.blocks=1",
        "train.batch=8",
        "network.classes=10",
        "train.conditional=true",
    )
    runs = [str(tmp_path / name) for name in ("one", "two")]
    for run, method in zip(runs, ("pfgm", "edm"), strict=True):
        given = [word for s in (*settings, f"method.name={method}") for word in ("--set", s)]
        assert main(["train", "--out", run, "--steps", "2", *given]) == 0
    out = tmp_path / "study"
    common = ["study", "robustness", "--runs", *runs, "--out", str(out), "--samples", "24", "--seeds", "1"]
    assert main([*common, "--steps", "3", "2", "--noise", "--bits", "3"]) == 0
    page = (out / "robustness.md").read_text()
    assert "| PFGM |" in page and "| EDM (D = ∞) |" in page and "## Bits of a weight" in page
    assert "noise" not in page.lower()
    (path,) = out.glob("points-*.jsonl")
    points = PointFile(path, RobustnessPoint.from_dict).points.values()
    (point,) = (p for p in points if p.subject.startswith("two-") and p.knob == "bits")
    net, method, _ = load_network(runs[1])
    generator, labels = torch.Generator().manual_seed(0), load("digits").labels
    labels = labels[torch.randint(len(labels), (24,), generator=generator)]
    few = quantized(net, 3).net
    x = pf.sample(
        few, (24, 1, 8, 8), "heun", 3, method=method, generator=generator, labels=labels, denoise=True
    ).x
    quality = RobustnessStudy(load("digits"), [Subject("x", "x", method, net)], SMALL, out).target.quality(x)
    assert point.quality == quality and point.frechet is not None
    capsys.readouterr()
    assert main([*common, "--methods", "pfgm"]) == 2
    assert "--methods are of the exact field" in capsys.readouterr().err
