"""The studies of the paper's claims: exact networks, errors of known strength, the measures, resuming, the pages."""

import json
import math

import pytest
import torch

import pfgm_fast as pf
import pfgm_fast.data
from pfgm_fast.cli import main
from pfgm_fast.studies.claims import best, levels, ratios, resolution_of, verdict
from pfgm_fast.studies.errors import KINDS, UNHELD, ErrorPlan, WithError, exact_network, run_errors
from pfgm_fast.studies.exact import (
    METHODS,
    ExactPlan,
    ExactPoint,
    ExactStudy,
    ending_at,
    evaluations_for,
    make,
    plan_for,
)
from pfgm_fast.studies.network_error import network_error
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
    if kind == "independent":
        assert torch.equal(net(x, torch.ones(400))[0], vx) == (strength == 0), "drawn anew at every call"
        return
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


def test_larger_data_get_smaller_plans():
    def plan(count, *shape):
        return plan_for(pf.Charges(torch.zeros(count, *shape, dtype=torch.uint8)))

    digits, mnist, cifar = plan(1797, 1, 8, 8), plan(10_000, 1, 28, 28), plan(20_000, 3, 32, 32)
    assert digits.methods == METHODS
    assert digits.samples > mnist.samples > cifar.samples
    assert {"pfgm", "ve", "vp"} <= set(cifar.methods) and min(
        len(p.seeds) for p in (digits, mnist, cifar)
    ) >= 2


def test_a_level_that_is_chance_is_not_stated():
    """The root of the energy distance of 3,000 perfect digits is 0.009: an error of 1% cannot be told from it, whatever the crossing."""
    resolution = resolution_of([8.1e-5, -8.1e-5])
    assert resolution == pytest.approx(0.009)
    assert levels(resolution) == (0.10, 0.03)
    assert levels(0.2) == (0.10,)


def test_an_sde_that_does_not_get_there_bounds_the_ratio():
    points = [_point(10, 1e-4), _point(5, 1e-1)] + [_point(n, 1e-1, "ve", "ancestral") for n in (10, 200)]
    assert "no SDE sampler gets there in 200: over 20 times as many" in verdict(points, 0.01)


@pytest.mark.parametrize("name", ["pfgm", "pfgmpp-128", "ve", "vp"])
def test_a_networks_error_is_found_in_the_terms_in_which_errors_are_injected(charges, name):
    method = make(name, charges)
    exact = exact_network(method, charges)
    right = network_error(name, 8, method, exact, charges, 300)
    assert max(right.relative, right.direction, right.amplitude) < 1e-5
    smooth = network_error(name, 8, method, WithError(exact, charges.dim, "smooth", 0.1), charges, 300)
    assert (smooth.low, smooth.relative, smooth.high) == pytest.approx((0.1, 0.1, 0.1), rel=1e-3)
    turned = network_error(name, 8, method, WithError(exact, charges.dim, "direction", 0.1), charges, 300)
    assert turned.direction == pytest.approx(0.1, rel=1e-3) and turned.amplitude < 1e-4
    longer = network_error(name, 8, method, WithError(exact, charges.dim, "amplitude", 0.1), charges, 300)
    assert longer.direction < 1e-4 < 0.02 < longer.amplitude <= 0.1


def test_holding_pfgms_field_rescues_it_from_errors_of_amplitude(tmp_path):
    """The first report's weak PFGM: ‖E‖ = γn/(1 − n) makes 20% of n, where n is near 1, any length at all."""
    digits = pf.data.load("digits").charges()
    plan = ErrorPlan(("pfgm", UNHELD), ("smooth", "amplitude"), (0.0, 0.2), 60, (0,), steps=10)
    points = run_errors(digits, plan, tmp_path, progress=False)
    found = {(p.method, p.kind, p.strength): p for p in points}
    assert len(found) == 8 and len((tmp_path / "errors.jsonl").read_text().splitlines()) == 6
    held, free = (found[method, "amplitude", 0.2] for method in ("pfgm", UNHELD))
    assert held.lost == 0 and held.quality.residual < 0.01
    assert free.lost > 0 or free.quality.residual > 1
    good = found[UNHELD, "amplitude", 0.0]
    assert good.quality.residual < 0.01, "the exact field needs no holding"
