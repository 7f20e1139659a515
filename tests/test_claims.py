"""The studies of the paper's claims: exact networks, errors of known strength, the measures, resuming, the pages."""

import json
import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.cli import main
from pfgm_fast.studies.claims import best, ratios
from pfgm_fast.studies.errors import KINDS, WithError, exact_network
from pfgm_fast.studies.exact import (
    METHODS,
    ExactPlan,
    ExactPoint,
    ExactStudy,
    ending_at,
    evaluations_for,
    make,
)
from pfgm_fast.studies.quality import Quality, Target


@pytest.fixture(scope="module")
def charges():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(6, 1, 3, 4, generator=generator)
    data = centers[torch.arange(300) % 6] + 0.2 * torch.randn(300, 1, 3, 4, generator=generator)
    return pf.Charges(data.clamp(-1, 1))


@pytest.mark.parametrize("name", METHODS)
def test_the_exact_network_samples_as_the_field_itself(charges, name):
    method = make(name, charges)
    net = exact_network(method, charges)
    by_net, by_field = (
        pf.sample(one, (12, *charges.shape), "heun", 12, method=method, seed=3, denoise=True).x
        for one in (net, charges)
    )
    torch.testing.assert_close(by_net, by_field, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5])
def test_an_error_has_the_strength_and_the_direction_of_its_kind(kind, strength):
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(400, 5, 4, generator=generator), torch.randn(400, 5, 4, generator=generator)
    vz = -torch.rand(400, generator=generator)
    net = WithError(lambda x, z: (target, vz), 20, kind, strength, seed=1)
    vx, vz_out = net(x, torch.ones(400))
    error, flat = (vx - target).flatten(1), target.flatten(1)
    size = error.norm(dim=1) / flat.norm(dim=1)
    cosine = (error * flat).sum(1) / (error.norm(dim=1) * flat.norm(dim=1)).clamp(min=1e-12)
    if kind == "amplitude":
        assert float(size.max()) <= strength + 1e-6
        assert float(size.max()) >= 0.5 * strength
        torch.testing.assert_close(vz_out / vz, (vx * target).flatten(1).sum(1) / flat.square().sum(1))
    else:
        torch.testing.assert_close(size, torch.full((400,), strength), rtol=1e-4, atol=1e-6)
        assert torch.equal(vz_out, vz)
    if kind == "direction":
        assert float(cosine.abs().max()) < 1e-3
    assert torch.equal(net(x, torch.ones(400))[0], vx), "the same error at every call"
    near = WithError(lambda x, z: (target, vz), 20, kind, strength, seed=1)(x * 1.001, torch.ones(400))[0]
    assert float((near - vx).norm()) <= 0.01 * strength * float(flat.norm()) + 1e-6, "a smooth function of x"


def test_the_excess_is_unbiased_and_sees_what_is_wrong(charges):
    target = Target(charges)
    floor = target.floor(400, repeats=20)
    assert abs(sum(floor)) / 20 < 3 * torch.tensor(floor).std() / math.sqrt(20)
    generator = torch.Generator().manual_seed(1)
    drawn = charges.values(torch.randint(300, (600,), generator=generator))
    good, shifted = target.quality(drawn), target.quality(drawn + 0.3)
    missing = target.quality(charges.values(6 * torch.randint(50, (600,), generator=generator)))
    assert good.error < 0.05 < shifted.error and good.residual == 0 and good.p_value > 1e-3
    assert missing.error > 0.1 and missing.p_value < 1e-6, "one cluster of six"
    # residual: the root mean square over elements
    assert target.quality(drawn + 1e-3).residual == pytest.approx(1e-3, rel=1e-3)


def test_quality_of_what_is_not_finite_is_refused(charges):
    with pytest.raises(pf.ArgumentError, match="finite"):
        Target(charges).quality(torch.full((5, 1, 3, 4), math.nan))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_ends_earlier_ends_on_that_noise_level(charges, name):
    method = ending_at(make(name, charges), 0.25)
    flow = method.flow(charges)
    scale, deviation = flow.marginal_prob(flow.grid(5, False)[-1])
    assert deviation / scale == pytest.approx(0.25, rel=1e-6)


def _point(evaluations, excess, method="pfgm", solver="euler", seed=0):
    return ExactPoint(
        method, solver, evaluations, seed, evaluations, Quality(excess, 0, 0, None, None), 0.0, 0.0
    )


def test_evaluations_for_an_error_lie_between_the_points():
    curve = [_point(10, 1e-2), _point(20, 1e-3), _point(40, 1e-4)]
    assert evaluations_for(curve, 0.1) == pytest.approx(10)
    assert evaluations_for(curve, math.sqrt(1e-3)) == pytest.approx(20)
    assert evaluations_for(curve, math.sqrt(10**-2.5)) == pytest.approx(10 * math.sqrt(2))
    assert math.isinf(evaluations_for(curve, 0.001))
    assert evaluations_for([*curve, _point(80, 1e-2)], 0.05) == math.inf, "it must stay below"


def test_ratios_compare_the_best_of_each_kind():
    points = [_point(10, 1e-4), _point(5, 1e-1)]
    points += [_point(n, e, "ve", "ancestral") for n, e in ((10, 1e-1), (100, 1e-4))]
    points += [_point(n, e, "vp", "reverse_diffusion") for n, e in ((10, 1e-1), (200, 1e-4))]
    assert best(points, 0.01, True, ["pfgm", "ve", "vp"]) == (pytest.approx(100), "VE, ancestral")
    assert ratios(points, 0.01) == [(0, pytest.approx(10))]


def test_a_study_that_was_stopped_goes_on_and_keeps_its_points(charges, tmp_path):
    plan = ExactPlan(("pfgm", "edm"), 60, (0,), (2, 4), (3,), enough=0.0)
    points = ExactStudy(charges, plan, tmp_path, progress=False).run()
    assert {(p.method, p.solver) for p in points} == {
        *((m, s) for m in ("pfgm", "edm") for s in ("euler", "heun", "dpm_solver++")),
        ("edm", "ancestral"),
    }
    lines = (tmp_path / "points.jsonl").read_text().splitlines()
    (tmp_path / "points.jsonl").write_text(
        "\n".join(lines[:-2]) + "\n" + lines[-1][:20]
    )  # cut off while it was written
    again = ExactStudy(charges, plan, tmp_path, progress=False).run()
    assert [(p.key, p.quality) for p in again] == [(p.key, p.quality) for p in points]
    assert all(a.seconds == b.seconds for a, b in zip(again[:-2], points[:-2], strict=True)), (
        "kept, not measured again"
    )


def test_more_steps_come_nearer_to_the_exact_solution(charges, tmp_path):
    plan = ExactPlan(("pfgm", "pfgmpp-128", "vp"), 100, (0,), (5, 20, 80), (), enough=0.0)
    points = ExactStudy(charges, plan, tmp_path, progress=False).run()
    for method in plan.methods:
        for solver, order in (("euler", 2.0), ("heun", 4.0)):
            values = [p.deviation for p in points if (p.method, p.solver) == (method, solver)]
            assert values[2] < values[1] / order < values[0], (method, solver)


@pytest.mark.parametrize("study", ["exact", "errors"])
def test_the_commands_write_their_pages(tmp_path, study, monkeypatch):
    assert (
        main(["study", study, "--methods", "pfgm", "--samples", "20", "--seeds", "1", "--out", str(tmp_path)])
        == 0
    )
    page = (tmp_path / f"{study}.md").read_text()
    assert "| PFGM |" in page and "nan" not in page
    for name in {"exact": ("accuracy.png", "steps.png"), "errors": ("errors.png",)}[study]:
        assert f"({name})" in page and (tmp_path / name).stat().st_size > 5000
    rows = (tmp_path / {"exact": "points.jsonl", "errors": "errors.jsonl"}[study]).read_text().splitlines()
    assert all(json.loads(row)["method"] == "pfgm" for row in rows)
