"""compare: a whole comparison in miniature; what it says is what it measured; the first report's anomalies are seen when they come back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from pfgm_fast import compare
from pfgm_fast.charges import Charges
from pfgm_fast.cli import main
from pfgm_fast.compare.measures import SUSPICIOUS, Figures, Measures, amplitude, start_correlation
from pfgm_fast.compare.parts import Frame, Parts
from pfgm_fast.compare.verdicts import agreements, common_level, evaluations_ratio, trained, verdicts
from pfgm_fast.data import ImageSet, load
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import pfgm_target
from pfgm_fast.methods import PFGM, VPSDE
from pfgm_fast.metrics import frechet_distance, frechet_interval
from pfgm_fast.sampling import sample
from pfgm_fast.studies.errors import exact_network

TINY = compare.Plan(
    methods=("pfgm", "vp"),
    seeds=(0,),
    steps=6,
    batch=16,
    width=16,
    multipliers=(1, 2),
    samples=40,
    sample_batch=40,
    euler=(2, 4),
    heun=(2, 3),
    sde=(4,),
    weak_euler=(4,),
    weak_heun=(2,),
)


@cache
def framed() -> ImageSet:
    """The digits in a frame of one constant pixel."""
    digits = load("digits")
    return replace(digits, images=torch.nn.functional.pad(digits.images, (1, 1, 1, 1)))


@pytest.mark.slow
def test_a_comparison_in_miniature_resumes_and_says_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load("digits")
    comparison = compare.Comparison(TINY, digits, "digits", tmp_path, progress=False)
    results = comparison.run(lambda done: compare.write_report(TINY, done, "digits", tmp_path))
    assert [r.key for r in results] == [p.key for m in TINY.models() for p in TINY.points(m)]
    by_key = {r.key: r for r in results}
    assert by_key["pfgm-0/heun/3"].evaluations == 7  # two a step, and the denoising step
    page = compare.write_report(TINY, results, "digits", tmp_path, tmp_path / "none").read_text()
    assert "the comparison goes on" not in page
    assert f"{by_key['vp-0/euler/4'].figures.frechet:.2f}" in page
    assert all(word in page for word in ("provisional", "study exact", "study errors", "threads"))
    assert not any(trained(results).values()), "six updates do not train a network"
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert set(seconds["seconds"]) == {"pfgm", "vp"}
    for name in ("evaluations.png", "euler.png", "weak.png", "grids/pfgm-0-heun-3.png"):
        assert (tmp_path / name).stat().st_size > 1000
    # What stands is not done again; what was lost, or cut off while it was written, is, and is the same.
    lines = (tmp_path / "points.jsonl").read_text().splitlines()
    (tmp_path / "points.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30])
    weights = sorted((tmp_path / "runs").rglob("*.safetensors"))
    before = [w.stat().st_mtime_ns for w in weights]
    again = compare.Comparison(TINY, digits, "digits", tmp_path, progress=False)
    assert len(again.results()) == len(results) - 1
    assert again.run() == results
    assert [w.stat().st_mtime_ns for w in weights] == before
    # Another plan in the same folder is refused; more seeds are not.
    with pytest.raises(ArgumentError, match="samples = 40, not 41"):
        compare.Comparison(replace(TINY, samples=41), digits, "digits", tmp_path)
    compare.Comparison(replace(TINY, seeds=(0, 1)), digits, "digits", tmp_path)
    assert (
        main(["compare", "--data", "digits", "--out", str(tmp_path / "new"), "--samples", "50", "--estimate"])
        == 0
    )
    assert "42 networks" in capsys.readouterr().out
    assert not (tmp_path / "new" / "points.jsonl").exists()


def test_the_models_differ_only_in_their_method() -> None:
    plan, charges = compare.PLANS["mnist"], load("digits").charges()
    models = [m for m in plan.models() if m.seed == 1 and not m.weak]
    configs = [plan.config(m, (1, 8, 8), charges, "digits") for m in models]
    assert len({(c.network, c.train) for c in configs}) == 1
    assert len({(c.method["name"], c.method.get("aug_dim")) for c in configs}) == len(plan.methods) == 7
    weak = plan.config(replace(models[0], weak=True), (1, 8, 8), charges, "digits")
    assert weak.train.steps * 2 == plan.steps
    assert weak.network.width * 2 == plan.width
    assert {p.model.method for m in models for p in plan.points(m) if p.solver == "reverse_diffusion"} == {
        "ve",
        "vp",
    }


def test_the_parts_are_disjoint_and_hold_everything() -> None:
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1)
    parts = Parts.of(ImageSet("numbers", images, torch.zeros(200, dtype=torch.int64)))
    values = [set(p.images.flatten().tolist()) for p in (parts.train, parts.reference, parts.features)]
    assert [len(v) for v in values] == [110, 50, 40]
    assert len(set.union(*values)) == 200
    assert len(Parts.of(framed(), most=100).reference) == 100


def test_the_interval_of_fid_covers_what_other_draws_give() -> None:
    """95% of intervals contain the mean of independent draws of the same sizes: at least 34 of 40 (a probability below 0.03 else)."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.randn(150, 4, generator=generator, dtype=torch.float64)
        return a, 1.3 * torch.randn(120, 4, generator=generator, dtype=torch.float64) + 0.3

    draws = torch.tensor([frechet_distance(*draw()) for _ in range(300)])
    truth, chance = float(draws.mean()), float(draws.std())
    found = [frechet_interval(*draw(), draws=100, seed=i) for i in range(40)]
    assert sum(i.low <= truth <= i.high for i in found) >= 34
    widths = torch.tensor([i.high - i.low for i in found])
    assert float(widths.median()) == pytest.approx(2 * 1.96 * chance, rel=0.3), "no wider than chance"
    a, b = draw()
    assert frechet_interval(a, b).value == pytest.approx(frechet_distance(a, b), abs=1e-12)
    with pytest.raises(ArgumentError, match="draws"):
        frechet_interval(a, b, draws=1)


@pytest.fixture(scope="module")
def measures(tmp_path_factory: pytest.TempPathFactory) -> Measures:
    return Measures(Parts.of(framed(), most=300), tmp_path_factory.mktemp("cache"))


def test_samples_that_are_lost_are_counted_and_stand_for_nothing(measures: Measures) -> None:
    real = measures.train.values(slice(0, 200)).clone()
    good = measures.figures(real)
    assert good.lost == 0
    assert good.frechet is not None
    assert good.low < good.frechet < good.high
    assert good.outside == 0
    assert good.copies == 1
    assert good.frame == 0
    real[:3, 0, 4, 4] = math.nan
    lost = measures.figures(real)
    assert (lost.lost, lost.outside) == (3, 3 / 200)
    assert {lost.frechet, lost.energy, lost.frame, lost.neighbor} == {None}
    assert lost.half == math.inf
    # What clipping hides: values beyond the data's range, and noise where the data are constant.
    real[:3] = measures.train.values(slice(0, 3))
    real[0, 0, 4, 4], real[1, 0, 0, 0] = 5.0, -1.05
    seen = measures.figures(real)
    assert seen.outside == 1 / 200
    constant = int(measures.frame.mask.sum())
    assert constant >= 36
    assert seen.frame == pytest.approx(0.05 / math.sqrt(200 * constant), rel=1e-4)
    floor, count = measures.floor(10_000)
    assert count == len(measures.train)
    assert floor.frechet < good.high


class Saturated:
    """VP's exact network, which has not learned that unusual starts are long: the norm of its −ε is at most that of a mean ε."""

    def __init__(self, charges: Charges) -> None:
        self.exact, self.most = exact_network(VPSDE(), charges), math.sqrt(charges.dim)

    def __call__(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vx, vz = self.exact(x, condition)
        norm = vx.flatten(1).norm(dim=1).clamp(min=1e-12)
        return vx * (self.most / norm).clamp(max=1)[:, None, None, None], vz


def test_noise_left_from_unusual_starts_is_seen_as_such() -> None:
    """The first report's VP: a third of its ODE's samples kept noise, those of large starts, and FID* took it for the method's."""
    charges, method = framed().charges(), VPSDE()
    frame = Frame.of(framed())
    starts = method.prior((200, 1, 10, 10), generator=torch.Generator().manual_seed(1))
    assert starts.flatten(1).norm(dim=1).mean() == pytest.approx(math.sqrt(100 - 0.5), rel=0.02)

    def left(net: object, x0: torch.Tensor) -> torch.Tensor:
        out = sample(net, tuple(x0.shape), "heun", 20, x0=x0, method=method, denoise=True)
        found = frame.noise(out.x)
        assert found is not None
        return found

    bad, good = left(Saturated(charges), starts), left(exact_network(method, charges), starts)
    assert start_correlation(starts, bad) > SUSPICIOUS > abs(start_correlation(starts, good) or 0.0)
    assert float(bad.quantile(0.9)) > 50 * float(good.quantile(0.9))
    # The same network from starts on the shell of the mean norm leaves little: it is the start, not the sampler.
    shell = starts * (math.sqrt(99) / starts.flatten(1).norm(dim=1))[:, None, None, None]
    assert float(left(Saturated(charges), shell).quantile(0.9)) < 0.1 * float(bad.quantile(0.9))


def test_the_denoising_step_is_taken_by_every_method() -> None:
    """Without it VP's samples end on noise of s(1e-3), about 0.01; the comparison's samples lie on the data."""
    from pfgm_fast.compare.drawing import Drawing
    from pfgm_fast.studies.exact import make
    from pfgm_fast.studies.nearest import nearest_charges

    charges = framed().charges()

    class Side:
        train = charges

    plan = replace(TINY, samples=20)
    for name, solver in (("pfgm", "heun"), ("vp", "heun"), ("ve", "reverse_diffusion"), ("edm", "heun")):
        method = make(name, charges)
        model = compare.Model(name, False, 0)
        net = exact_network(method, charges)
        draw = Drawing(plan, model, method, net, Side(), torch.device("cpu"), None, lambda _: None)  # type: ignore[arg-type]
        x, evaluations = draw.samples(draw.starts, solver, 30)
        distance = nearest_charges(x, charges)[0] / math.sqrt(charges.dim)
        assert float(distance.median()) < 2e-3, name
        assert evaluations >= 31 or solver != "heun"


def test_the_amplitude_of_a_weak_pfgm_network_is_measured() -> None:
    """The first report's weak PFGM failed in ‖E‖ = γ n/(1 − n): an error of 1% in n near 1, or n ≥ 1, which no field has."""
    charges = load("digits").charges()
    method = PFGM.from_data(charges)

    def net(factor: float):  # type: ignore[no-untyped-def]
        def call(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            vx, vz = pfgm_target(x, z, charges, method.gamma)
            return factor * vx, vz

        return call

    def exact(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """n from ‖E_x‖ alone, as the substitution takes it."""
        vx, vz = pfgm_target(x, z, charges, method.gamma)
        length = vx.flatten(1).norm(dim=1) / vz.abs() * z
        n = length / (length + method.gamma)
        scale = n * math.sqrt(charges.dim) / vx.flatten(1).norm(dim=1)
        return vx * scale[:, None, None, None], vz

    right = amplitude(method, exact, charges)
    assert right.above == 0
    assert (right.low, right.median, right.high) == pytest.approx((1, 1, 1), rel=1e-3)
    small, large = amplitude(method, net(0.98), charges), amplitude(method, net(1.05), charges)
    assert small.above == 0
    assert large.above > 0
    assert small.median < right.median < large.high
    # n ≥ 1 does not make a sample that is not finite.
    out = sample(net(1.05), (8, 1, 8, 8), "euler", 20, method=method, denoise=True)
    assert bool(out.x.isfinite().all())


def test_ve_spans_the_data_in_minus_one_to_one() -> None:
    """The first report's VE had σ of values in [0, 1]: half of what values in [−1, 1] need."""
    charges = load("digits").charges()
    plan = compare.PLANS["digits"]
    method = plan.config(compare.Model("ve", False, 0), (1, 8, 8), charges, "digits").method
    points = charges.values(slice(None)).flatten(1)
    assert method["sigma_min"] == pytest.approx(0.02, rel=0.01)
    assert method["sigma_max"] == pytest.approx(float(torch.cdist(points, points).max()), rel=0.02)


def result(
    method: str, solver: str, evaluations: int, frechet: float | None, seed: int = 0, weak: bool = False
) -> compare.Result:
    """A made-up point, its interval ±5%."""
    figures = Figures(1, 0.1)
    if frechet is not None:
        figures = Figures(0, 0.0, frechet, 0.95 * frechet, 1.05 * frechet)
    key = f"{method}{'-weak' if weak else ''}-{seed}/{solver}/{evaluations}"
    return compare.Result(key, method, weak, seed, solver, evaluations, evaluations, figures, None)


def made_up(pfgm: float = 1.0, sde: float = 1.0) -> list[compare.Result]:
    """PFGM is at its best from 10 evaluations on, VP's SDE from 200 on; factors on FID*."""
    found = []
    for seed in (0, 1):
        for n, value in ((5, 8.0), (10, 1.0), (18, 1.0), (36, 1.0)):
            found.append(result("pfgm", "heun", n, pfgm * value, seed))
            found.append(result("pfgm", "euler", n, pfgm * (1 + 5 / n), seed))
            found.append(result("vp", "heun", n, value, seed))
            found.append(result("vp", "euler", n, 1 + 50 / n, seed))
        for n, value in ((20, 60.0), (100, 8.0), (200, 1.0)):
            found.append(result("vp", "reverse_diffusion", n, sde * value, seed))
        found.append(result("pfgm", "heun", 18, 3 * pfgm, seed, weak=True))
        found.append(result("vp", "heun", 18, 2.0, seed, weak=True))
    return found


def test_the_verdicts_follow_the_numbers() -> None:
    first, second, third = verdicts(made_up())
    assert [v.word for v in (first, second, third)] == ["holds", "holds", "does not hold"]
    ratio = evaluations_ratio(made_up())
    assert 15 < ratio < 21
    assert f"{ratio:.1f} times as many" in first.sentence
    assert "PFGM 3.00" in third.sentence
    assert "VP 2.00" in third.sentence
    assert common_level(made_up(pfgm=4)) == pytest.approx(5)
    assert verdicts(made_up(pfgm=50))[0].word != "holds"
    assert [a.agrees for a in agreements(made_up())] == [True] * 3
    assert trained(made_up()) == {"pfgm": True, "vp": True}


def test_the_criterion_sees_samplers_that_differ() -> None:
    assert trained(made_up(sde=1.2)) == {"pfgm": True, "vp": False}
    noisy = [
        replace(r, figures=replace(r.figures, outside=0.3)) if (r.method, r.solver) == ("pfgm", "heun") else r
        for r in made_up()
    ]
    assert trained(noisy) == {"pfgm": False, "vp": True}, "samplers that agree on noise"


def test_a_point_that_lost_samples_never_wins() -> None:
    broken = [
        replace(r, figures=Figures(1, 0.1)) if (r.method, r.solver) == ("pfgm", "heun") else r
        for r in made_up()
    ]
    first, *_ = verdicts(broken)
    assert "PFGM, euler" in first.sentence
    assert trained(broken)["pfgm"] is False
    alone = [r for r in made_up() if r.method != "pfgm"]
    assert {v.word for v in verdicts(alone)} == {"not settled"}
