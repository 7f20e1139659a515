"""What is known of the three claims without a trained network: the pages of `pfgm-fast study exact` and `study errors`, read for the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfgm_fast.solvers import STOCHASTIC
from pfgm_fast.studies.claims import TITLES, best, levels, ratios, resolution_of
from pfgm_fast.studies.errors import KINDS, ErrorPoint
from pfgm_fast.studies.exact import ExactPoint
from pfgm_fast.studies.points import PointFile

CLAIMED = 10.0
"""Times fewer evaluations than SDE samplers: the paper claims 10 to 20."""
DIFFUSION = ("ve", "vp", "edm", "subvp")


@dataclass(frozen=True)
class Study:
    """A study's page and its points. data: their name, in a word. resolution: the error that perfect samples have by chance (0: not said)."""

    page: Path
    data: str
    points: tuple[ExactPoint | ErrorPoint, ...]
    resolution: float = 0.0


@dataclass(frozen=True)
class Finding:
    """word: as a verdict's. lines: Markdown, with the numbers."""

    word: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """exact, errors: the studies that were found."""

    exact: tuple[Study, ...] = ()
    errors: tuple[Study, ...] = ()

    @classmethod
    def read(cls, folders: Iterable[Path]) -> Evidence:
        """Of folders of exact.md or errors.md, with the points beside them; others are passed over."""
        exact, errors = [], []
        for folder in folders:
            page, floor = folder / "exact.md", folder / "floor.json"
            if page.is_file() and floor.is_file():
                points = PointFile(folder / "points.jsonl", ExactPoint.from_dict).points.values()
                found = resolution_of(json.loads(floor.read_text())["excess"])
                exact.append(Study(page, _data(page), tuple(points), found))
            page = folder / "errors.md"
            if page.is_file():
                rows = PointFile(folder / "errors.jsonl", ErrorPoint.from_dict).points.values()
                errors.append(Study(page, _data(page), tuple(rows)))
        return cls(tuple(exact), tuple(errors))

    def fewer_evaluations(self) -> Finding | None:
        """PFGM's evaluations for an error against the best SDE sampler's, exact field."""
        if not self.exact:
            return None
        found: list[float] = []
        lines = [
            "Evaluations with the exact field, for an error of the distribution; seed by seed in brackets:",
            "",
            "| data | error | PFGM | best SDE sampler | times as many | best ODE of all |",
            "|---|---|---|---|---|---|",
        ]
        for study in self.exact:
            points = _exact(study)
            methods = _methods(points)
            for level in levels(study.resolution):
                own, sde, ode = (
                    best(points, level, noisy, some)
                    for noisy, some in ((False, ["pfgm"]), (True, methods), (False, methods))
                )
                each = [ratio for _, ratio in ratios(points, level) if not math.isnan(ratio)]
                found += each
                most = max((p.evaluations for p in points if p.solver in STOCHASTIC), default=0)
                lines.append(
                    f"| {study.data} | {level:.0%} | {_told(*own)} | "
                    + (
                        f"{_told(*sde)} | {_times(own[0], sde[0], each)}"
                        if math.isfinite(sde[0])
                        else f"not in {most} | over {most / own[0]:.1f}"
                    )
                    + f" | {_told(*ode)} |"
                )
        word = "holds in part" if any(ratio > 1 for ratio in found) else "does not hold"
        if found and min(found) >= CLAIMED:
            word = "holds"
        return Finding(word, (*lines, "", f"The paper claims {CLAIMED:.0f} to 20 times as many."))

    def euler_step(self) -> Finding | None:
        """How far few steps of Euler's method end from the ODE's own solution, exact field."""
        if not self.exact:
            return None
        methods = list(dict.fromkeys(m for study in self.exact for m in _methods(_exact(study))))
        lines = [
            "Distance from the ODE's own solution over the data's spread, exact field:",
            "",
            "| data | steps of Euler's method | " + " | ".join(TITLES[m] for m in methods) + " |",
            "|---|---|" + "---|" * len(methods),
        ]
        wins: list[tuple[str, bool]] = []
        for study in self.exact:
            points = _exact(study)
            tried = sorted({p.steps for p in points if p.solver == "euler"})
            for steps in tried:
                away = {m: deviation(points, m, steps) for m in methods}
                known = [m for m in DIFFUSION if not math.isnan(away.get(m, math.nan))]
                if not math.isnan(away.get("pfgm", math.nan)):
                    wins += [(m, away["pfgm"] < away[m]) for m in known]
                if steps in (tried[0], min(tried, key=lambda n: (abs(n - 10), n)), tried[-1]):
                    cells = ["" if math.isnan(v) else f"{v:.2f}" for v in away.values()]
                    lines.append(f"| {study.data} | {steps} | " + " | ".join(cells) + " |")
        return Finding(_word(wins), (*lines, "", _against("is nearer", wins)))

    def weak_networks(self) -> Finding | None:
        """The error of the distribution under an error of one strength in every method's output."""
        if not self.errors:
            return None
        wins: list[tuple[str, bool]] = []
        lines = ["Error of the distribution, exact field with an injected error:", ""]
        for study in self.errors:
            points = [p for p in study.points if isinstance(p, ErrorPoint)]
            methods = _methods(points)
            lines += [f"| {study.data}: kind | strength | " + " | ".join(TITLES[m] for m in methods) + " |"]
            lines += ["|---|---|" + "---|" * len(methods)]
            strengths = sorted({p.strength for p in points})
            for kind in [k for k in KINDS if any(p.kind == k for p in points)]:
                for strength in strengths:
                    here = {m: tolerance(points, m, kind, strength) for m in methods}
                    if strength > 0 and "pfgm" in here:
                        wins += [(m, here["pfgm"] < here[m]) for m in here if m in DIFFUSION]
                    if strength in strengths[-2:] or (strength == 0 and kind == KINDS[0]):
                        cells = [f"{v:.3f}" if math.isfinite(v) else "lost" for v in here.values()]
                        lines.append(
                            f"| {kind if strength else 'none'} | {strength:.0%} | " + " | ".join(cells) + " |"
                        )
            lines.append("")
        return Finding(_word(wins), (*lines, _against("has the smaller error", wins)))


def _told(evaluations: float, sampler: str) -> str:
    return f"{evaluations:.0f} ({sampler})" if math.isfinite(evaluations) else "not reached"


def _times(own: float, sde: float, each: Sequence[float]) -> str:
    good = [ratio for ratio in each if math.isfinite(ratio)]
    between = f" ({min(good):.1f} to {max(good):.1f})" if good else ""
    return f"{sde / own:.1f}{between}" if math.isfinite(own) else "–"


def _against(what: str, wins: Sequence[tuple[str, bool]]) -> str:
    """Whom PFGM beats, and how often."""
    told = []
    for method in dict.fromkeys(m for m, _ in wins):
        own = [won for m, won in wins if m == method]
        told.append(f"{TITLES[method]} in {sum(own)} of {len(own)}")
    return f"PFGM {what} than " + ", ".join(told) + " comparisons."


def together(words: Sequence[str]) -> str:
    """One word for what several say; those that settle nothing are passed over."""
    said = {word for word in words if word != "not settled"}
    return "not settled" if not said else said.pop() if len(said) == 1 else "holds in part"


def deviation(points: Sequence[ExactPoint], method: str, steps: int) -> float:
    """Mean deviation of so many steps of Euler's method; NaN where it is not known."""
    own = [p.deviation for p in points if (p.method, p.solver, p.steps) == (method, "euler", steps)]
    good = [d for d in own if d is not None]
    return sum(good) / len(good) if good else math.nan


def tolerance(points: Sequence[ErrorPoint], method: str, kind: str, strength: float) -> float:
    """Error of the distribution, mean excess over the seeds; inf where samples were lost, NaN where it is not known. Without an error its kind
    does not matter."""
    own = [p for p in points if (p.method, p.strength) == (method, strength)]
    own = [p for p in own if p.kind == kind or not strength]
    if not own:
        return math.nan
    good = [p.quality.excess for p in own if p.quality is not None]
    return math.sqrt(max(0.0, sum(good) / len(good))) if len(good) == len(own) else math.inf


def between(study: Study, method: str, strength: float) -> str:
    """The error of the distribution at a strength of the kind "smooth", between the strengths that were tried by their logarithms."""
    points = [p for p in study.points if isinstance(p, ErrorPoint)]
    tried = sorted({p.strength for p in points if p.method == method and p.strength > 0})
    values = [tolerance(points, method, "smooth", s) for s in tried]
    if not tried or not all(map(math.isfinite, values)):
        return "–"
    if strength <= tried[0]:
        return f"≤ {values[0]:.3f}"
    if strength > tried[-1]:
        return f"> {values[-1]:.3f}"
    after = next(i for i, s in enumerate(tried) if s >= strength)
    share = math.log(strength / tried[after - 1]) / math.log(tried[after] / tried[after - 1])
    return f"{values[after - 1] * (1 - share) + values[after] * share:.3f}"


def _exact(study: Study) -> list[ExactPoint]:
    return [p for p in study.points if isinstance(p, ExactPoint)]


def _methods(points: Sequence[ExactPoint] | Sequence[ErrorPoint]) -> list[str]:
    return list(dict.fromkeys(p.method for p in points))


def _word(wins: Sequence[tuple[str, bool]]) -> str:
    good = [won for _, won in wins]
    return "holds" if good and all(good) else "holds in part" if any(good) else "does not hold"


def _data(page: Path) -> str:
    """The data's name, from the page's title."""
    return page.read_text().splitlines()[0].partition(": ")[2].partition(",")[0]
