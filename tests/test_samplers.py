"""Every solver with every method: where it ends, how many evaluations it takes, of which order it is, what its noise does."""

from __future__ import annotations

import ast
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import data
from pfgm_fast.flows import RULES, Clipped, is_stochastic
from pfgm_fast.solvers import SOLVERS, STOCHASTIC
from pfgm_fast.solvers.unipc import coefficients

ODES = [name for name in SOLVERS if name not in STOCHASTIC]
GAUSSIAN = {"edm": pf.EDM(), "ve": pf.VESDE(), "vp": pf.VPSDE(), "subvp": pf.SubVPSDE()}
METHODS = {
    "pfgm": pf.PFGM(),
    "pfgmpp-1": pf.PFGMpp(1.0),
    "pfgmpp-128": pf.PFGMpp(128.0),
    "pfgmpp-inf": pf.PFGMpp(math.inf),
    **GAUSSIAN,
}
STATED = {"pfgm": 0.02, "ve": 0.03, "vp": 0.03, "subvp": 0.03}
"""Residual, rms an element, of an ODE that ends without the denoising step: z_min times the prior's tail, σ_min, s(sampling_eps)."""

DIGITS = data.load("digits").charges()


def residual(x: torch.Tensor) -> float:
    """Largest rms distance an element to the nearest digit."""
    flat = x.flatten(1).double()
    nearest = torch.cdist(flat, DIGITS.values().flatten(1).double()).min(1).values
    return float(nearest.max()) / flat.shape[1] ** 0.5


def combinations() -> list[tuple[str, str]]:
    return [(m, s) for m in METHODS for s in SOLVERS if s in ODES or m in GAUSSIAN or m == "pfgmpp-inf"]


@pytest.mark.parametrize(("name", "solver"), combinations())
def test_the_exact_field_lands_on_digits(name: str, solver: str) -> None:
    """Within 1e-3 with the denoising step, which PFGM++, EDM and the SDEs' samplers take by themselves; else within what is stated."""
    method, steps = METHODS[name], 60 if solver in STOCHASTIC else 30
    shape = (8, *DIGITS.shape)
    default = pf.sample(DIGITS, shape, solver, steps, method=method, seed=3)
    sure = pf.sample(DIGITS, shape, solver, steps, method=method, seed=3, denoise=True)
    assert residual(sure.x) <= 1e-3
    denoises = method.denoises or solver in STOCHASTIC
    assert residual(default.x) <= (1e-3 if denoises else STATED[name])
    assert torch.equal(default.x, sure.x) == denoises
    assert sure.nfe == default.nfe + (not denoises) * (2 if solver == "heun" else 1)


@pytest.mark.parametrize("name", METHODS)
def test_evaluations(name: str) -> None:
    """The denoising step is one evaluation; of PFGM++ and EDM it is the last of the steps, of the SDEs' samplers one more."""
    method, charges = METHODS[name], pf.Charges(torch.randn(9, 5))

    def nfe(solver: str, **options) -> int:
        return pf.sample(charges, (2, 5), solver, 18, method=method, seed=0, **options).nfe

    own = method.denoises
    assert nfe("euler") == nfe("dpm_solver++") == nfe("unipc") == 18
    assert nfe("heun") == 35
    assert nfe("euler", denoise=True) == 18 + (not own)
    assert nfe("heun", denoise=True) == 35 + (0 if own else 2)
    assert nfe("rk45", denoise=True) == nfe("rk45", denoise=False) + 1
    if name in GAUSSIAN:
        assert nfe("ancestral") == nfe("euler_maruyama") == nfe("reverse_diffusion") == 18 + (not own)
        assert nfe("predictor_corrector") == 36 + (-1 if own else 1)
    else:
        for solver in STOCHASTIC if name != "pfgmpp-inf" else ():
            with pytest.raises(pf.ArgumentError, match="needs a stochastic method"):
                nfe(solver)


def test_the_grid_of_edm() -> None:
    """Eq. 5 of arXiv 2206.00364 written out: 18 values from 80 to 0.002, and 0."""
    times = pf.EDM().flow(DIGITS).grid(18, True)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert times == pytest.approx([*expected, 0.0], rel=1e-12)
    assert pf.EDM().grid(1, True) == [80.0, 0.0]
    ends = pf.EDM().grid(18)
    assert (len(ends), ends[0], ends[-1]) == (19, 80.0, 0.002)


@pytest.mark.parametrize("name", METHODS)
def test_a_flow_knows_its_path(name: str) -> None:
    """`time_of` inverts s/a; the ODE follows from a, s and the denoised image: dx/dt = a'/a x + (s' − s a'/a)(x − a D)/s."""
    flow, h = METHODS[name].flow(pf.Charges(torch.randn(7, 3, dtype=torch.float64))), 1e-6
    for t in (0.9, 0.3, 0.02):
        (a, s), (a0, s0), (a1, s1) = (map(float, flow.marginal_prob(t + d)) for d in (0, -h, h))
        assert flow.time_of(s / a) == pytest.approx(t, rel=1e-9)
        x = torch.randn(4, 3, dtype=torch.float64) * s + 0.1
        value = flow.evaluate(x, t)
        slope_a, slope_s = (a1 - a0) / (2 * h * a), (s1 - s0) / (2 * h)
        expected = slope_a * x + (slope_s - s * slope_a) * (x - a * flow.denoised(x, value, t)) / s
        torch.testing.assert_close(flow.derivative(x, value, t), expected, rtol=1e-4, atol=1e-6)
        if is_stochastic(flow):
            score = (a * flow.denoised(x, value, t) - x) / s**2
            torch.testing.assert_close(flow.score(x, value, t), score, rtol=1e-6, atol=1e-9)


MEANS = torch.tensor([[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], dtype=torch.float64)
WIDTH = 0.25


def mixture(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D(x; σ) of three Gaussians, in closed form."""
    total, means = (sigma.square() + WIDTH**2)[:, None], MEANS.to(x.dtype)
    weights = torch.softmax(-torch.cdist(x, means).square() / (2 * total), 1)
    return (sigma.square()[:, None] * (weights @ means) + WIDTH**2 * x) / total


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpm_solver++", 2)])
def test_order_of_convergence(solver: str, order: int) -> None:
    """On EDM's grid, error against a fine solution: it falls by 2^order where the steps are halved."""
    x0 = 80 * torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = pf.Denoiser(mixture)

    def solve(solver: str, steps: int) -> torch.Tensor:
        return pf.sample(net, (30, 2), solver, steps, method=pf.EDM(), x0=x0).x

    fine = solve("heun", 3000)
    errors = [float((solve(solver, steps) - fine).square().mean().sqrt()) for steps in (40, 80, 160, 320)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates[-1] == pytest.approx(order, abs=0.15)
    assert min(rates) > order - 0.4


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_converges_with_one_order_more_than_its_predictor(order: int) -> None:
    """The corrector adds one (arXiv 2302.04867, theorem 3.1), at one evaluation a step."""
    x0 = 80 * torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def solve(steps: int, order: int) -> pf.Samples:
        net = pf.Denoiser(mixture)
        return pf.sample(net, (30, 2), "unipc", steps, method=pf.EDM(), x0=x0, order=order)

    fine = solve(600, 4).x
    errors = [float((solve(steps, order).x - fine).square().mean().sqrt()) for steps in (40, 80, 160)]
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order + 1, abs=0.2)
    assert solve(40, order).nfe == 40


@pytest.mark.parametrize("h", [-0.4, 1e-6, 0.3, 1.0, 2.5, 30.0])
def test_a_step_of_unipc_is_the_integral_of_the_polynomial_through_its_values(h: float) -> None:
    nodes = [-1.3, -0.6, 1.0]
    first, others = coefficients(h, nodes)
    at, weight = np.polynomial.legendre.leggauss(60)
    share, weight = (at + 1) / 2, weight / 2  # τ/h in [0, 1]
    for power in range(4):
        values = [0.0**power, *(node**power for node in nodes)]
        got = first * values[0] + sum(c * (v - values[0]) for c, v in zip(others, values[1:], strict=True))
        exact = h * float((weight * np.exp(h * (share - 1)) * share**power).sum())
        assert got == pytest.approx(exact, rel=1e-8)


def test_bad_order_of_unipc() -> None:
    for order in (0, 5, 2.5):
        with pytest.raises(pf.ArgumentError, match="order"):
            pf.sample(DIGITS, (2, *DIGITS.shape), "unipc", 3, order=order)


def test_vp_and_pfgm_flows_take_dpm_solver_at_order_two() -> None:
    """In λ it is one formula for every a and s: VP's, and PFGM's with s = z."""
    for method, net in ((pf.VPSDE(), pf.Denoiser(mixture)), (pf.PFGM(z_max=40.0), pf.Charges(MEANS))):
        x0 = 5 * torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        settings = {"method": method, "x0": x0, "denoise": False}
        if isinstance(method, pf.PFGM):
            settings["z_min"] = 0.5  # below, the steps onto the charges are no test of order
        fine = pf.sample(net, (10, 2), "rk45", rtol=1e-11, atol=1e-11, **settings).x
        coarse, finer = (pf.sample(net, (10, 2), "dpm_solver++", n, **settings).x for n in (200, 400))
        ratio = float((coarse - fine).norm() / (finer - fine).norm())
        assert ratio == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("solver", [*STOCHASTIC, "heun", "euler"])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_noise_keeps_the_marginals(name: str, solver: str) -> None:
    """Data N(0, 0.5²) and their exact denoiser: what is drawn has that deviation. Too much or too little noise would show."""
    net = pf.Denoiser(lambda x, sigma: x * (0.25 / (0.25 + sigma.square()))[:, None])
    churn = {"S_churn": 8.0} if solver not in STOCHASTIC else {}
    generator = torch.Generator().manual_seed(0)
    method = pf.VESDE(sigma_max=20.0) if name == "ve" else GAUSSIAN[name]
    out = pf.sample(net, (20, 800), solver, 400, method=method, generator=generator, denoise=True, **churn)
    assert float(out.x.std()) == pytest.approx(0.5, rel=0.04)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_ancestral_steps_are_exact_at_any_length(name: str) -> None:
    """Of a lone charge at 0 every x(t) is N(0, s²), after three long steps as well: the posterior's mean and variance are right."""
    lone, method = pf.Charges(torch.zeros(1, 500, dtype=torch.float64)), GAUSSIAN[name]
    generator = torch.Generator().manual_seed(0)
    path = pf.sample(lone, (60, 500), "ancestral", 4, method=method, generator=generator, record=True).path
    assert len(path) >= 5
    for t, x in path[1:-1]:
        assert float(x.std()) == pytest.approx(method.flow(lone).marginal_prob(t)[1], rel=0.03)
    assert float(path[-1][1].abs().max()) < 1e-9


def test_churn_raises_the_noise_and_nothing_else() -> None:
    """One charge at 0, S_max below every σ or S_churn = 0: the deterministic sampler to the bit; else other samples."""
    charges, shape = pf.Charges(torch.randn(20, 4)), (6, 4)
    plain = pf.sample(charges, shape, "heun", 12, method=pf.EDM(), seed=1).x
    for idle in ({"S_churn": 0.0}, {"S_churn": 40.0, "S_min": 90.0}, {"S_churn": 40.0, "S_max": 1e-4}):
        assert torch.equal(pf.sample(charges, shape, "heun", 12, method=pf.EDM(), seed=1, **idle).x, plain)
    stirred = pf.sample(charges, shape, "heun", 12, method=pf.EDM(), seed=1, S_churn=40.0, S_noise=1.003)
    assert not torch.allclose(stirred.x, plain)
    assert stirred.nfe == 23
    for bad in ({"S_churn": -1.0}, {"S_min": 2.0, "S_max": 1.0}, {"S_noise": math.nan}):
        with pytest.raises(pf.ArgumentError, match="S_"):
            pf.sample(charges, shape, "heun", 12, method=pf.EDM(), seed=1, **bad)
    with pytest.raises(pf.ArgumentError, match="not for latents"):
        pf.encode(charges, torch.randn(6, 4), pf.EDM(), solver="heun", S_churn=10.0)


@pytest.mark.parametrize(("solver", "option"), [("euler", "rtol"), ("rk45", "S_churn"), ("heun", "stepz")])
def test_options_of_another_solver_are_refused(solver: str, option: str) -> None:
    with pytest.raises(pf.ArgumentError, match=f"the solver '{solver}' has no option '{option}'"):
        pf.sample(pf.Charges(torch.randn(4, 3)), (2, 3), solver, 3, **{option: 1.0})


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "rk45"])
def test_an_image_is_its_seeds(solver: str) -> None:
    """Image k of a seed: alone, in another batch, in other company; noise of the solver too. rk45's steps are common to a batch."""
    y, settings = pf.Denoiser(mixture), {"solver": solver, "steps": 9, "method": pf.EDM()}
    if solver in ("euler", "heun"):
        settings["S_churn"] = 5.0

    def draw(count: int, **seeds) -> torch.Tensor:
        return pf.sample(y, (count, 2), **seeds, **settings).x

    whole = draw(5, seed=7)
    parts = [draw(1, seeds=pf.image_seeds(7, 1, first=k)) for k in range(5)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(draw(5, seeds=pf.image_seeds(7, 5)[::-1]).flip(0), whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draw(5, seed=8), whole)
    assert torch.unique(whole, dim=0).shape[0] == 5


@pytest.mark.parametrize("name", METHODS)
def test_every_prior_is_drawn_by_seed(name: str) -> None:
    starts = [
        pf.sample(pf.Charges(torch.randn(3, 6)), (b, 6), steps=2, method=METHODS[name], seed=0, record=True)
        for b in (2, 4)
    ]
    assert torch.equal(starts[0].path[0][1], starts[1].path[0][1][:2])


def test_seeds_are_checked() -> None:
    charges = pf.Charges(torch.randn(4, 3))
    for given, message in (
        ({"seed": 1, "seeds": [1, 2]}, "one of generator, seed and seeds"),
        ({"seed": 1, "generator": torch.Generator()}, "one of generator, seed and seeds"),
        ({"seeds": [1]}, "one for each image"),
        ({"seeds": [1, -2]}, "seeds must be an integer ≥ 0"),
        ({"seed": -1}, "seed must be an integer ≥ 0"),
        ({"seed": 1.5}, "seed must be an integer ≥ 0"),
    ):
        with pytest.raises(pf.ArgumentError, match=message):
            pf.sample(charges, (2, 3), steps=2, **given)
    assert pf.image_seeds(0, 3) == [0, 1, 2]
    assert not set(pf.image_seeds(0, 1000)) & set(pf.image_seeds(1, 1000))


@pytest.mark.parametrize("name", METHODS)
def test_guidance_is_linear_in_its_weight(name: str) -> None:
    """Weight 1 is the conditional sampler, 0 the free one; two evaluations a step; above 1 samples stay in their class."""
    y = torch.cat([torch.randn(20, 4) - 3, torch.randn(20, 4) + 3]).double()
    charges = pf.Charges(y, labels=torch.arange(40) // 20)
    labels = torch.tensor([0, 1, 1, 0])
    solvers = ["heun", "dpm_solver++", *(["ancestral", "euler_maruyama"] if name in GAUSSIAN else [])]
    for solver in solvers:
        settings = {"solver": solver, "steps": 20, "method": METHODS[name], "seed": 0, "denoise": True}
        given = pf.sample(charges, (4, 4), labels=labels, **settings)
        free = pf.sample(charges, (4, 4), **settings)
        for weight, expected in ((1.0, given), (0.0, free)):
            out = pf.sample(charges, (4, 4), labels=labels, guidance=weight, **settings)
            torch.testing.assert_close(out.x, expected.x, rtol=1e-6, atol=1e-6)
            assert out.nfe == 2 * expected.nfe
        more = pf.sample(charges, (4, 4), labels=labels, guidance=1.5, **settings).x
        assert torch.equal((more.mean(1) > 0).long(), labels)
    with pytest.raises(pf.ArgumentError, match="guidance needs labels"):
        pf.sample(charges, (4, 4), guidance=2.0)
    with pytest.raises(pf.ArgumentError, match="null_label goes with guidance"):
        pf.sample(charges, (4, 4), labels=labels, null_label=1)


@pytest.mark.parametrize("name", METHODS)
def test_noise_alpha_is_the_methods_perturbation(name: str) -> None:
    """α times a draw at t' after every step but the last: of a flow that stands still, the sum of them is left."""
    method, shape = METHODS[name], (4000, 3)
    still = pf.Denoiser(lambda x, sigma: x)  # E[y | x] = x: nothing moves where a = 1
    settings = {"steps": 2, "method": method, "x0": torch.zeros(shape), "denoise": False}
    out = pf.sample(still, shape, noise_alpha=0.5, generator=torch.Generator().manual_seed(0), **settings)
    middle = method.flow(still).grid(2)[1]
    drawn = method.kernel(shape, middle, generator=torch.Generator().manual_seed(1))
    if name not in ("vp", "subvp"):
        ratio = out.x.norm(dim=1).median() / (0.5 * drawn.norm(dim=1).median())
        assert float(ratio) == pytest.approx(1, rel=0.1)
    assert torch.equal(pf.sample(still, shape, **settings).x, torch.zeros(shape))
    seeded = [
        pf.sample(still, (b, 3), seed=1, noise_alpha=0.5, **{**settings, "x0": torch.zeros(b, 3)}).x
        for b in (2, 3)
    ]
    assert torch.equal(seeded[0], seeded[1][:2])
    with pytest.raises(pf.ArgumentError, match="noise_alpha"):
        pf.sample(still, shape, "rk45", noise_alpha=0.5, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_gaussian_noise_has_the_paths_deviation_whatever_the_method(name: str) -> None:
    """And is no draw of a heavy-tailed kernel: the fourth moment of what is added is a Gaussian's."""
    method, shape = METHODS[name], (20_000, 2)
    still = pf.Denoiser(lambda x, sigma: x)
    settings = {
        "steps": 2,
        "method": method,
        "x0": torch.zeros(shape),
        "denoise": False,
        "noise_kind": "gaussian",
    }
    x = pf.sample(still, shape, noise_alpha=0.5, generator=torch.Generator().manual_seed(0), **settings).x
    flow = method.flow(still)
    middle = flow.grid(2)[1]
    scaled = x / (0.5 * flow.marginal_prob(middle)[1])
    if name not in ("vp", "subvp"):  # there the last step still scales it
        assert float(scaled.std()) == pytest.approx(1, rel=0.03)
    assert float(scaled.pow(4).mean() / scaled.square().mean().square()) == pytest.approx(3, rel=0.1)
    with pytest.raises(pf.ArgumentError, match="noise_kind must be one of kernel, gaussian"):
        pf.sample(still, shape, **{**settings, "noise_kind": "heavy"})


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pfgm"])
def test_the_kernel_is_that_of_training(name: str) -> None:
    """`perturb` moves a datum by a draw of `kernel` at its own σ or t: quartiles of ‖x − a y‖ over its scale s. (PFGM trains on other
    queries, algorithm 2, than its prior's.)"""
    method, generator = METHODS[name], torch.Generator().manual_seed(0)
    x, t = method.perturb(torch.zeros(20_000, 3, dtype=torch.float64), generator)
    flow = method.flow(DIGITS)
    scaled = x.norm(dim=1) / torch.tensor([flow.marginal_prob(float(v))[1] for v in t], dtype=torch.float64)
    drawn = method.kernel((20_000, 3), 0.3, dtype=torch.float64, generator=generator).norm(dim=1)
    drawn = drawn / flow.marginal_prob(0.3)[1]
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    torch.testing.assert_close(scaled.quantile(quarters), drawn.quantile(quarters), rtol=0.05, atol=0)


def test_a_solver_knows_no_method() -> None:
    """No file of solvers imports methods, sampling, networks or charges."""
    for path in (Path(pf.__file__).parent / "solvers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.startswith("pfgm_fast"):
                    assert name in ("pfgm_fast", "pfgm_fast.errors", "pfgm_fast.flows") or name.startswith(
                        "pfgm_fast.solvers"
                    ), f"{path.name} imports {name}"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rule", ["box", "dynamic"])
def test_clip_denoised_leaves_the_true_field_as_it_is(name: str, rule: str) -> None:
    shape, method = (4, *DIGITS.shape), METHODS[name]
    plain = pf.sample(DIGITS, shape, "heun", 12, method=method, seed=5)
    clipped = pf.sample(DIGITS, shape, "heun", 12, method=method, seed=5, clip_denoised=rule)
    torch.testing.assert_close(clipped.x, plain.x, rtol=1e-4, atol=1e-4)
    assert clipped.nfe == plain.nfe


@pytest.mark.parametrize("name", METHODS)
def test_the_derivative_of_a_clipped_flow_is_that_of_its_denoised_image(name: str) -> None:
    """dx/dt = a' y + s' ε along the path x = a y + s ε, differences of a and s for a' and s'."""
    flow = METHODS[name].flow(DIGITS)
    half = Clipped(flow, lambda clean: 0.5 * clean)
    t = flow.grid(5)[2]
    x = METHODS[name].prior((3, *DIGITS.shape)).double()
    value = flow.evaluate(x, t)
    (a, s), (a0, s0), (a1, s1) = (flow.marginal_prob(at) for at in (t, t * (1 - 1e-6), t * (1 + 1e-6)))
    clean, width = half.denoised(x, value, t), 2e-6 * t
    torch.testing.assert_close(clean, 0.5 * flow.denoised(x, value, t))
    expected = (a1 - a0) / width * clean + (s1 - s0) / width * (x - a * clean) / s
    torch.testing.assert_close(half.derivative(x, value, t), expected, rtol=1e-4, atol=1e-6)
    if is_stochastic(flow):
        torch.testing.assert_close(half.score(x, value, t), (a * clean - x) / s**2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm_solver++", "ancestral"])
def test_clip_denoised_keeps_a_bad_denoiser_in_the_box(solver: str) -> None:
    far = pf.Denoiser(lambda x, sigma: 3 * torch.ones_like(x) + x / 10)
    drawn = {r: pf.sample(far, (2, 1, 4, 4), solver, 8, seed=0, clip_denoised=r).x for r in (None, *RULES)}
    assert float(drawn[None].max()) > 2
    assert all(float(drawn[rule].abs().max()) <= 1 for rule in RULES)


def test_dynamic_threshold_divides_by_the_quantile_where_it_is_above_one() -> None:
    image = torch.linspace(-2, 2, 400).view(1, 1, 20, 20)
    clean = RULES["dynamic"](torch.cat([image, image / 4]))
    most = image.abs().flatten().sort().values[398 - 1]  # 0.995 · 400 = 398
    torch.testing.assert_close(clean[:1], (image / most).clamp(-1, 1))
    assert torch.equal(clean[1:], image / 4)


def test_bad_clip_denoised() -> None:
    with pytest.raises(pf.ArgumentError, match="clip_denoised must be one of box, dynamic"):
        pf.sample(DIGITS, (2, *DIGITS.shape), clip_denoised="cube")
