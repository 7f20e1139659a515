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
from pfgm_fast.compare.evidence import Evidence, Study, between, together
from pfgm_fast.compare.measures import SUSPICIOUS, Figures, Measures, amplitude, start_correlation
from pfgm_fast.compare.parts import Frame, Parts
from pfgm_fast.compare.verdicts import agreements, common_level, evaluations_ratio, trained, verdicts
from pfgm_fast.data import ImageSet, load
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import pfgm_target
from pfgm_fast.methods import PFGM, Method
from pfgm_fast.metrics import frechet_distance, frechet_interval
from pfgm_fast.sampling import sample
from pfgm_fast.studies.errors import KINDS, ErrorPoint, exact_network
from pfgm_fast.studies.exact import ExactPoint, make
from pfgm_fast.studies.quality import Quality

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
    page = compare.write_report(TINY, results, "digits", tmp_path, [tmp_path / "none"]).read_text()
    assert "the comparison goes on" not in page
    assert f"{by_key['vp-0/euler/4'].figures.frechet:.2f}" in page
    assert all(word in page for word in ("provisional", "study exact", "study errors", "threads"))
    assert not any(trained(results).values()), "six updates do not train a network"
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert set(seconds["seconds"]) == {"pfgm", "vp"}
    errors = [json.loads(line) for line in (tmp_path / "network-errors.jsonl").read_text().splitlines()]
    assert {(e["key"], e["width"]) for e in errors} == {
        *(("pfgm-0", 16), ("pfgm-weak-0", 8), ("vp-0", 16), ("vp-weak-0", 8))
    }
    assert all(0.05 < e["relative"] < 5 for e in errors), "six updates do not train a network"
    assert f"| VP | 8 | {errors[3]['relative']:.1%} |" in page
    for name in ("evaluations.png", "euler.png", "weak.png", "samplers.png", "grids/pfgm-0-heun-3.png"):
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


def test_an_estimate_binds_nothing_and_counts_what_a_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    command = ["compare", "--data", "digits", "--out", str(folder)]
    assert main([*command, "--samples", "50", "--estimate"]) == 0
    assert "30 networks" in capsys.readouterr().out
    assert not folder.exists()
    compare.Comparison(TINY, load("digits"), "digits", folder)  # another plan may begin there
    assert not folder.exists()
    costs = compare.Costs({False: 2.0, True: 1.0}, {False: 0.5, True: 0.25}, 7.0)
    training, sampling = costs.of(TINY)
    assert training == 2 * (2.0 * 6 + 1.0 * 3) * 16
    # PFGM and VP: Euler 2 + 4, Heun 2·(2 + 3); weak: Euler 4, Heun 2·2; VP's two SDE samplers: 4 each
    strong, weak = 2 * (2 + 4 + 10) + 2 * 4, 2 * (4 + 4)
    assert sampling == 40 * (0.5 * strong + 0.25 * weak) + 7.0 * (2 * 4 + 2 + 2 * 2)


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
    """An SDE's exact network, which has not learned that unusual starts are long: the norm of its −ε is at most that of a mean ε."""

    def __init__(self, method: Method, charges: Charges) -> None:
        self.exact, self.most = exact_network(method, charges), math.sqrt(charges.dim)

    def __call__(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vx, vz = self.exact(x, condition)
        norm = vx.flatten(1).norm(dim=1).clamp(min=1e-12)
        return vx * (self.most / norm).clamp(max=1)[:, None, None, None], vz


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_noise_left_from_unusual_starts_is_seen_as_such(name: str) -> None:
    """The first report's VP and VE: a third of their ODE's samples kept noise, those of large starts, and FID* took it for the method's."""
    charges = framed().charges()
    method = make(name, charges)
    frame = Frame.of(framed())
    starts = method.prior((200, 1, 10, 10), generator=torch.Generator().manual_seed(1))
    norms = starts.flatten(1).norm(dim=1)
    assert float(norms.std() / norms.mean()) == pytest.approx(1 / math.sqrt(200), rel=0.2)

    def left(net: object, x0: torch.Tensor) -> torch.Tensor:
        out = sample(net, tuple(x0.shape), "heun", 20, x0=x0, method=method, denoise=True)
        found = frame.noise(out.x)
        assert found is not None
        return found

    bad, good = left(Saturated(method, charges), starts), left(exact_network(method, charges), starts)
    assert start_correlation(starts, bad) > SUSPICIOUS > abs(start_correlation(starts, good) or 0.0)
    assert float(bad.quantile(0.9)) > 50 * float(good.quantile(0.9))
    # The same network from starts on the shell of the mean norm leaves little: it is the start, not the sampler.
    shell = starts * (0.995 * norms.mean() / norms)[:, None, None, None]
    assert float(left(Saturated(method, charges), shell).quantile(0.9)) < 0.2 * float(bad.quantile(0.9))


def test_the_denoising_step_is_taken_by_every_method() -> None:
    """Without it VP's samples end on noise of s(1e-3), about 0.01; the comparison's samples lie on the data."""
    from pfgm_fast.compare.drawing import Drawing
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


def study_of(pfgm: float = 1.0) -> Study:
    """Exact field: PFGM is at an error of 1% from 8 evaluations on, VE's SDE from 100; a factor on PFGM's deviation and evaluations."""
    points = []
    for method, solver, curve in (
        ("pfgm", "euler", ((4, 0.3), (8, 1e-2))),
        ("ve", "euler", ((4, 0.3), (8, 0.2), (16, 1e-2))),
        ("ve", "reverse_diffusion", ((40, 0.3), (100, 1e-2))),
    ):
        for steps, error in curve:
            away = None if solver != "euler" else 0.1 * pfgm if method == "pfgm" else 0.4
            quality = Quality(error**2, error, 0.0, None, None)
            evaluations = int(steps * pfgm) if method == "pfgm" else steps
            points.append(ExactPoint(method, solver, steps, 0, evaluations, quality, away, 0.0))
    return Study(Path("exact.md"), "made-up", tuple(points), 0.002)


def errors_of(pfgm: float) -> Study:
    points = []
    for method, factor in (("pfgm", pfgm), ("vp", 1.0), ("edm", 2.0)):
        for kind in KINDS:
            for strength in (0.0, 0.1, 0.2):
                error = factor * strength
                quality = Quality(error**2, error, 0.0, None, None)
                points.append(ErrorPoint(method, kind, strength, 0, quality, 0))
    return Study(Path("errors.md"), "made-up", tuple(points))


def test_what_is_known_without_a_network_follows_the_numbers() -> None:
    words = {}
    for factor in (1.0, 5.0, 20.0):
        evidence = Evidence((study_of(factor),), (errors_of(0.3 * factor),))
        found = [evidence.fewer_evaluations(), evidence.euler_step(), evidence.weak_networks()]
        words[factor] = [f.word for f in found if f is not None]
    assert words[1.0] == ["holds"] * 3
    assert words[5.0] == ["holds in part", "does not hold", "holds in part"]
    assert words[20.0] == ["does not hold"] * 3
    finding = Evidence((study_of(),), ()).fewer_evaluations()
    assert finding is not None
    row = "| made-up | 1% | 8 (PFGM, euler) | 100 (VE, reverse_diffusion) | 12.5 (12.5 to 12.5) | 8 (PFGM, euler) |"
    assert row in finding.lines
    assert Evidence().euler_step() is None
    assert between(errors_of(1.0), "pfgm", 0.1 * math.sqrt(2)) == "0.150"
    assert between(errors_of(1.0), "pfgm", 0.3) == "> 0.200"
    lost = replace(errors_of(0.1).points[2], quality=None, lost=3)  # type: ignore[type-var]
    broken = Study(Path(), "x", tuple(lost if p.key == lost.key else p for p in errors_of(0.1).points))  # type: ignore[attr-defined]
    finding = Evidence((), (broken,)).weak_networks()
    assert finding is not None
    assert finding.word == "holds in part"
    assert "| smooth | 20% | lost | 0.200 | 0.400 |" in finding.lines
    assert (
        finding.lines[-1]
        == "PFGM has the smaller error than VP in 7 of 8, EDM (D = ∞) in 7 of 8 comparisons."
    )


def test_one_word_for_several() -> None:
    assert together(["holds", "holds"]) == "holds"
    assert together(["holds", "not settled"]) == "holds"
    assert together(["does not hold", "holds"]) == "holds in part"
    assert together(["not settled"]) == "not settled"


def test_the_page_stands_without_networks_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--samples", "20", "--seeds", "1", "--methods", "pfgm", "vp", "--out", str(tmp_path / "study")]
    assert main(["study", "errors", *few]) == 0
    command = ["compare", "--data", "digits", "--out", str(tmp_path / "page"), "--page"]
    assert main([*command, "--studies", str(tmp_path / "study")]) == 0
    page = (tmp_path / "page" / "report.md").read_text()
    assert "No network was trained" in page
    assert "| Fewer evaluations than SDE samplers | not studied | not run | **not settled** |" in page
    assert "(../study/errors.md)" in page
    assert (tmp_path / "page" / "weak.png").stat().st_size > 20_000
    assert main(command) != 0, "neither networks nor studies"
    assert "needs results" in capsys.readouterr().err
