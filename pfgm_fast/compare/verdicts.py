"""The training criterion and the three claims, as numbers and sentences, from the results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pfgm_fast.compare.evidence import CLAIMED, DIFFUSION
from pfgm_fast.compare.results import Result
from pfgm_fast.studies.claims import TITLES
from pfgm_fast.studies.exact import crossing

SLACK = 1.25
"""The level at which evaluations are counted, over the worse of two best FID*: both get there."""
WORST = 0.05
"""Share of samples with a value outside ±1.1, at an ODE's most evaluations, above which a network is not trained: its samplers may agree
on noise, and FID*, which sees clipped images, has wide intervals there."""


@dataclass(frozen=True)
class Verdict:
    """word: "holds", "holds in part", "does not hold" or "not settled"."""

    title: str
    word: str
    sentence: str


@dataclass(frozen=True)
class Agreement:
    """Whether two samplers of one network give the same distribution. difference: of FID*, tolerance: what chance explains, both means over
    the seeds."""

    method: str
    what: str
    first: float
    second: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return abs(self.first - self.second) <= self.tolerance


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def frechet(results: Iterable[Result]) -> float:
    """Mean FID* over the seeds; inf where one lost samples, or there is none."""
    found = [r.figures.frechet for r in results]
    return sum(math.inf if f is None else f for f in found) / len(found) if found else math.inf


def of(results: Sequence[Result], method: str, solver: str | None = None, weak: bool = False) -> list[Result]:
    return [r for r in results if r.method == method and r.weak == weak and solver in (None, r.solver)]


def curve(results: Sequence[Result]) -> list[tuple[int, float]]:
    """(evaluations, mean FID*) of one method and solver, in rising order."""
    steps = sorted({r.steps for r in results})
    points = [(max(r.evaluations for r in here), frechet(here)) for n in steps if (here := _at(results, n))]
    return sorted(points)


def _at(results: Sequence[Result], steps: int) -> list[Result]:
    return [r for r in results if r.steps == steps]


def agreements(results: Sequence[Result]) -> list[Agreement]:
    """The criterion, method by method: Heun's method at its most evaluations and at about half of them agree; and, where a method has SDE
    samplers, so do its ODE and the best of them at its most evaluations. Agree: FID* within √(h₁² + h₂²), h half an interval's width."""
    found = []
    for method in unique(r.method for r in results):
        steps = sorted({r.steps for r in of(results, method, "heun")})
        if len(steps) < 2:
            continue
        ode, half = (_at(of(results, method, "heun"), n) for n in (steps[-1], steps[-2]))
        evaluations = [max(r.evaluations for r in here) for here in (ode, half)]
        found.append(_agreement(method, f"ODE, {evaluations[0]} and {evaluations[1]} evaluations", ode, half))
        longest = []
        for solver in unique(r.solver for r in of(results, method) if r.stochastic):
            own = of(results, method, solver)
            longest.append(_at(own, max(r.steps for r in own)))
        if longest:
            best = min(longest, key=frechet)
            what = f"ODE, and SDE by {best[0].solver.replace('_', ' ')}, {max(r.evaluations for r in best)} evaluations"
            found.append(_agreement(method, what, ode, best))
    return found


def _agreement(method: str, what: str, first: list[Result], second: list[Result]) -> Agreement:
    halves = [sum(r.figures.half for r in here) / len(here) for here in (first, second)]
    return Agreement(method, what, frechet(first), frechet(second), math.hypot(*halves))


def outside(results: Sequence[Result], method: str) -> float:
    """Share of samples outside ±1.1 at the most evaluations of Heun's method, mean over the seeds; 1 where there are none."""
    own = of(results, method, "heun")
    longest = _at(own, max((r.steps for r in own), default=0))
    return sum(r.figures.outside for r in longest) / len(longest) if longest else 1.0


def trained(results: Sequence[Result]) -> dict[str, bool]:
    """Method → whether all of its samplers agree, on samples that lie within the data's range."""
    found = {m: outside(results, m) <= WORST for m in unique(r.method for r in results)}
    for agreement in agreements(results):
        found[agreement.method] = found[agreement.method] and agreement.agrees
    return found


def fewest(results: Sequence[Result], level: float, wanted: Callable[[Result], bool]) -> tuple[float, str]:
    """The fewest evaluations at which a sampler gets to a level and stays there, and which it is."""
    found = [(math.inf, "none")]
    chosen = [r for r in results if not r.weak and r.solver != "rk45" and wanted(r)]
    for method, solver in dict.fromkeys((r.method, r.solver) for r in chosen):
        points = curve([r for r in chosen if (r.method, r.solver) == (method, solver)])
        found.append((crossing(points, level), f"{TITLES[method]}, {solver.replace('_', ' ')}"))
    return min(found)


def best(results: Sequence[Result], wanted: Callable[[Result], bool]) -> tuple[float, str]:
    """The least mean FID* among points, and of which."""
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for r in results:
        if not r.weak and wanted(r):
            groups.setdefault((r.method, r.solver, r.steps), []).append(r)
    found = [(frechet(here), f"{TITLES[m]}, {s.replace('_', ' ')}") for (m, s, _), here in groups.items()]
    return min(found, default=(math.inf, "none"))


def _pfgm(r: Result) -> bool:
    return r.method == "pfgm"


def _noisy(r: Result) -> bool:
    return r.stochastic


def common_level(results: Sequence[Result]) -> float:
    """FID* that PFGM and an SDE sampler both reach: `SLACK` times the worse of their best."""
    return SLACK * max(best(results, _pfgm)[0], best(results, _noisy)[0])


def evaluations_ratio(results: Sequence[Result]) -> float:
    """The evaluations of the best SDE sampler over PFGM's, at the common level; NaN where it is not known."""
    level = common_level(results)
    if not math.isfinite(level):
        return math.nan
    return fewest(results, level, _noisy)[0] / fewest(results, level, _pfgm)[0]


def seeds(results: Sequence[Result]) -> list[list[Result]]:
    return [[r for r in results if r.seed == seed] for seed in sorted({r.seed for r in results})]


def _between(values: Sequence[float], form: str = ".1f") -> str:
    good = [v for v in values if math.isfinite(v)]
    if len(values) == 1:
        return "one seed"
    return f"seed by seed {min(good):{form}} to {max(good):{form}}" if good else "no seed alone"


def fewer_evaluations(results: Sequence[Result]) -> Verdict:
    title = "Fewer evaluations than SDE samplers"
    ratio, level = evaluations_ratio(results), common_level(results)
    if not math.isfinite(ratio):
        return Verdict(title, "not settled", "PFGM or every SDE sampler lost samples, or none was drawn.")
    each = [evaluations_ratio(own) for own in seeds(results)]
    word = "holds" if min([ratio, *each]) >= CLAIMED else "holds in part" if ratio > 1 else "does not hold"
    (own, how), (sde, sde_how) = fewest(results, level, _pfgm), fewest(results, level, _noisy)
    ode, ode_how = fewest(results, level, lambda r: not r.stochastic)
    (own_best, _), (sde_best, sde_best_how) = best(results, _pfgm), best(results, _noisy)
    return Verdict(
        title,
        word,
        f"At FID* {level:.2f}, {SLACK:g} times the worse of the two best, {how} takes {own:.0f} evaluations, the best SDE sampler "
        f"({sde_how}) {sde:.0f}: {ratio:.1f} times as many ({_between(each)}; claimed: {CLAIMED:.0f} to 20). The best ODE of all "
        f"({ode_how}) takes {ode:.0f}. The best FID* of PFGM is {own_best:.2f}, of an SDE sampler {sde_best:.2f} ({sde_best_how}).",
    )


def step_loss(results: Sequence[Result], method: str, steps: int) -> float:
    """FID* of so many steps of Euler's method over that of the most steps; NaN where one is not known."""
    own = of(results, method, "euler")
    if not own:
        return math.nan
    few, many = frechet(_at(own, steps)), frechet(_at(own, max(r.steps for r in own)))
    return few / many if 0 < many < math.inf else math.nan


def few_steps(results: Sequence[Result]) -> int:
    """The steps of Euler's method at which robustness is judged: 10, or the plan's nearest."""
    return min({r.steps for r in of(results, "pfgm", "euler")}, key=lambda n: abs(n - 10), default=10)


def weak_loss(results: Sequence[Result], method: str) -> float:
    """Best FID* of the weak network over the strong one's, by the samplers that both have; NaN where one is not known."""
    weak = of(results, method, weak=True)
    points = {(r.solver, r.steps) for r in weak}
    if not points:
        return math.nan
    losses = []
    for own in (weak, of(results, method)):
        losses.append(min(frechet([r for r in own if (r.solver, r.steps) == p]) for p in points))
    return losses[0] / losses[1] if 0 < losses[1] < math.inf else math.nan


def euler_step(results: Sequence[Result]) -> Verdict:
    few = few_steps(results)
    return _compared(
        "Robust to Euler's step",
        results,
        lambda some, method: step_loss(some, method, few),
        f"FID* of {few} steps of Euler's method over that of the most steps",
    )


def weak_networks(results: Sequence[Result]) -> Verdict:
    return _compared(
        "Tolerates weak networks",
        results,
        weak_loss,
        "FID* of the weak network (half the width, half the updates) over the strong one's, each by its best common sampler",
    )


def _compared(
    title: str, results: Sequence[Result], loss: Callable[[Sequence[Result], str], float], what: str
) -> Verdict:
    """A claim that PFGM loses less than diffusion: in every seed than all, or than some on the mean."""
    methods = unique(r.method for r in results)
    losses = {m: loss(results, m) for m in methods}
    rivals = [m for m in methods if m in DIFFUSION and not math.isnan(losses[m])]
    own = losses.get("pfgm", math.nan)
    if math.isnan(own) or not rivals:
        return Verdict(title, "not settled", f"{what}: not known for PFGM, or for no diffusion method.")
    each = [(loss(some, "pfgm"), min(loss(some, m) for m in rivals)) for some in seeds(results)]
    better = [m for m in rivals if own < losses[m]]
    word = "holds" if len(better) == len(rivals) and all(a < b for a, b in each) else "does not hold"
    if word != "holds" and better:
        word = "holds in part"
    told = ", ".join(f"{TITLES[m]} {losses[m]:.2f}" for m in methods if m != "pfgm")
    return Verdict(title, word, f"{what}: PFGM {own:.2f} ({_between([a for a, _ in each], '.2f')}); {told}.")


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """The three claims, in the paper's order."""
    return [fewer_evaluations(results), euler_step(results), weak_networks(results)]
