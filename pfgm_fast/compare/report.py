"""report.md: one page from what stands in a comparison's folder: verdicts, three pictures, the criterion, all points, grids."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pfgm_fast.compare import figures
from pfgm_fast.compare.evidence import Evidence, Finding, between, together
from pfgm_fast.compare.measures import OUTSIDE, SUSPICIOUS, Figures
from pfgm_fast.compare.plan import Plan
from pfgm_fast.compare.results import Result, Trained
from pfgm_fast.compare.verdicts import (
    WORST,
    Verdict,
    agreements,
    frechet,
    of,
    outside,
    trained,
    unique,
    verdicts,
)
from pfgm_fast.errors import ArgumentError
from pfgm_fast.files import write_beside
from pfgm_fast.studies.claims import TITLES
from pfgm_fast.studies.network_error import NetworkError
from pfgm_fast.studies.points import PointFile

PICTURES = ("evaluations.png", "euler.png", "weak.png")
EXACT_CAVEATS = (
    "- The exact field draws the training data themselves: what is measured without a network is a sampler, not a generative model.",
    "- *Error* is the root of the energy distance over the data's own mean distance, *deviation* the distance to the ODE's exact solution on data "
    "smoothed by half their standard deviation.",
    "- An injected error has the same strength at every noise level; a network's has not. The sampler is Heun's method with 18 steps for all; "
    "without an error (strength 0) it has come to its end for all but VE and sub-VP.",
    "- MNIST here is the 10,000 test images; CIFAR-10 its 50,000 images through JPEG (quality 75).",
)


def write_report(
    plan: Plan,
    results: Sequence[Result],
    described: str,
    folder: Path,
    studies: Iterable[Path] = (),
    command: str = "pfgm-fast compare",
) -> Path:
    """Write report.md and its pictures; returns its path. studies: folders of exact.md and errors.md, whose findings the page takes in.
    command: what made the page.

    Without results the page says what is known without a network, and that nothing was trained.
    Raises: ArgumentError where there is nothing at all to say.
    """
    floor = _read(folder / "floor.json")
    real = None if floor is None else Figures(**floor["figures"])
    floor_value = None if real is None else real.frechet
    evidence = Evidence.read(studies)
    if not results and not evidence.exact and not evidence.errors:
        raise ArgumentError("the page needs results, or folders of `study exact` and `study errors`")
    networks = list(PointFile(folder / "network-errors.jsonl", NetworkError.from_dict).points.values())
    figures.fewer_evaluations(folder / PICTURES[0], results, floor_value, evidence)
    figures.euler_step(folder / PICTURES[1], results, evidence)
    figures.weak_networks(folder / PICTURES[2], results, evidence, networks)
    if results:
        figures.samplers(folder / "samplers.png", results, floor_value)
    found = (evidence.fewer_evaluations(), evidence.euler_step(), evidence.weak_networks())
    claims = list(zip(verdicts(results), found, PICTURES, strict=True))
    lines = [
        "# PFGM's three claims: fewer evaluations, robust to Euler's step, tolerant of weak networks",
        "",
        "| claim | exact field, no network | trained networks | verdict |",
        "|---|---|---|---|",
    ]
    for verdict, finding, _ in claims:
        word = "not studied" if finding is None else finding.word
        own = _word(verdict, results) if results else "not run"
        lines.append(f"| {verdict.title} | {word} | {own} | **{_settled(verdict, finding)}** |")
    lines += ["", *_criterion_line(results, command), ""]
    for verdict, finding, picture in claims:
        lines += [
            f"## {verdict.title}: {_settled(verdict, finding)}",
            "",
            f"![{verdict.title}]({picture})",
            "",
        ]
        lines += [] if finding is None else [*finding.lines, ""]
        if results:
            lines.append(f"With trained networks, {described}: {verdict.sentence}")
            lines.append("")
        if verdict is claims[-1][0]:
            lines += _network_errors(networks, evidence)
    if results:
        lines += [
            *_head(plan, results, described, floor, folder, command),
            *_links(folder, evidence),
            *_criterion(results),
            *_caveats(plan, results, folder, evidence),
            *_models(plan, folder),
            *_points(results, real, floor, folder),
            *_grids(results, folder),
        ]
    else:
        lines += [*_links(folder, evidence), "## Caveats", "", *EXACT_CAVEATS, *_studied(evidence)]
    path = folder / "report.md"
    write_beside(path, ("\n".join(lines).rstrip() + "\n").encode())
    return path


def _settled(verdict: Verdict, finding: Finding | None) -> str:
    return verdict.word if finding is None else together([finding.word, verdict.word])


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _head(
    plan: Plan,
    results: Sequence[Result],
    described: str,
    floor: dict[str, Any] | None,
    folder: Path,
    command: str,
) -> list[str]:
    done = sorted({r.seed for r in results})
    times = _read(folder / "seconds.json")
    count = len({(r.method, r.weak, r.seed) for r in results})
    wanted = len(plan.models())
    lines = [
        "## Methods",
        "",
        f"`{command}` made this page from {described}; `pfgm-fast study exact` and `study errors` made what is said without a network. "
        f"{count} networks: one DDPM++ of the same size (width {plan.width}), updates ({plan.steps} of {plan.batch} images), optimiser and data a "
        f"method, weak ones with half the width and half the updates; {len(done)} seed{'s' if len(done) != 1 else ''} of training and sampling; {plan.samples} samples a "
        "point, from the same starts for every sampler of a network, down to the data with the denoising step.",
        "",
        "FID* is the Fréchet distance in the features of a classifier, lower is better. Networks, classifier and the metric's reference have "
        "their own parts of the data. Its intervals are a bootstrap of both sides (95%).",
    ]
    if floor is not None:
        real = Figures(**floor["figures"])
        lines[-1] += (
            f" {floor['count']} real images have FID* {real.frechet:.2f} [{real.low:.2f}, {real.high:.2f}]: the floor. The classifier "
            f"is right on {floor['accuracy']:.1%} of the reference."
        )
    if times is not None:
        lines += ["", f"Measured on: {times['machine']}."]
    if count < wanted or floor is None:
        lines += ["", f"**So far: {count} of {wanted} networks; the comparison goes on.**"]
    lines += [
        "",
        "What changed against the first report: the exact field and injected errors beside networks; several seeds; held-out data for the "
        "metric and for the classifier; figures of samples as they are, not clipped, none replaced where it is not finite; intervals; the "
        "denoising step; VE's σ for values in [−1, 1]; PFGM's field held to the ball of the data; PFGM++ and EDM; and a criterion of "
        "training that is checked before methods are compared.",
        "",
    ]
    return lines


def _criterion_line(results: Sequence[Result], command: str) -> list[str]:
    if not results:
        return [
            f"**No network was trained for this page.** `{command}` trains them, on every method alike, checks that they can be compared, and "
            "makes the page anew; `--estimate` says how long it takes."
        ]
    good = trained(results)
    failed = [TITLES[m] for m, passed in good.items() if not passed]
    if not failed:
        return ["**Trained enough to be compared:** the samplers of every method agree (below)."]
    return [
        f"**Not trained enough by the criterion below: {', '.join(failed)}.** What is compared there is partly networks, not "
        "methods."
    ]


def _word(verdict: Verdict, results: Sequence[Result]) -> str:
    failed = [m for m, passed in trained(results).items() if not passed]
    return verdict.word + (" (provisional)" if failed and verdict.word != "not settled" else "")


def _criterion(results: Sequence[Result]) -> list[str]:
    lines = [
        "## The criterion of training",
        "",
        "Two samplers of one well-trained network give the same distribution: an ODE with n and about 2n evaluations, and a diffusion method's "
        "ODE and SDE. They agree where FID* differs by no more than √(h₁² + h₂²), h half the width of an interval; means over the seeds. "
        f"And at most {WORST:.0%} of the ODE's samples leave the data's range (a value beyond ±{OUTSIDE:g}): else they agree on noise.",
        "",
        "| method | compared | FID* | FID* | difference | explained by chance | agree |",
        "|---|---|---|---|---|---|---|",
    ]
    for a in agreements(results):
        lines.append(
            f"| {TITLES[a.method]} | {a.what} | {_two(a.first)} | {_two(a.second)} | {_two(abs(a.first - a.second))} | {_two(a.tolerance)} "
            f"| {'yes' if a.agrees else '**no**'} |"
        )
    lines.append("")
    for method in unique(r.method for r in results):
        share = outside(results, method)
        if share > WORST:
            lines.append(f"- {TITLES[method]}: {share:.1%} of the ODE's samples leave the data's range.")
    return [*lines, ""]


def _links(folder: Path, evidence: Evidence) -> list[str]:
    """Where the same questions are answered without a trained network."""
    lines = ["## Without a network", ""]
    for studies, what in (
        (evidence.exact, "accuracy against evaluations with the exact field"),
        (evidence.errors, "tolerance of controlled errors"),
    ):
        for study in studies:
            link = Path(os.path.relpath(study.page, folder)).as_posix()
            lines.append(f"- [{study.data}: {what}]({link})")
    if not evidence.exact or not evidence.errors:
        lines.append(
            "- `pfgm-fast study exact` and `study errors` write such pages; name their folders by `--studies`"
        )
    return [*lines, ""]


def _network_errors(networks: Sequence[NetworkError], evidence: Evidence) -> list[str]:
    """How large the trained networks' errors are, and what an injected error of that strength does."""
    if not networks:
        return []
    lines = [
        "What the trained networks err by, in the same terms (medians over queries of the training distribution, means over the seeds), and "
        "the error of the distribution that a smooth injected error of this strength makes:",
        "",
        "| method | width | error | at right angles | of the amplitude | injected, it makes |",
        "|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys((figures.method_of(e.key), e.width) for e in networks)
    for method, width in sorted(groups, key=lambda g: -g[1]):
        own = [e for e in networks if (figures.method_of(e.key), e.width) == (method, width)]
        mean = [
            sum(values) / len(own)
            for values in zip(*((e.relative, e.direction, e.amplitude) for e in own), strict=True)
        ]
        made = ", ".join(between(study, method, mean[0]) for study in evidence.errors)
        lines.append(
            f"| {TITLES[method]} | {width} | " + " | ".join(f"{v:.1%}" for v in mean) + f" | {made} |"
        )
    return [*lines, ""]


def _studied(evidence: Evidence) -> list[str]:
    """Of what data which methods had the exact field: the larger, the fewer."""
    return [
        f"- Exact field, {study.data}: {', '.join(TITLES[m] for m in unique(p.method for p in study.points))} were run; perfect samples have an "
        f"error of {study.resolution:.1%} by chance."
        for study in evidence.exact
    ]


def _caveats(plan: Plan, results: Sequence[Result], folder: Path, evidence: Evidence) -> list[str]:
    strong = [r for r in results if not r.weak]
    lost = [r for r in results if r.figures.lost]
    suspicious = [r for r in strong if (r.figures.start or 0.0) > SUSPICIOUS]
    facts = PointFile(folder / "models.jsonl", Trained.from_dict).points
    lines = [
        "## Caveats",
        "",
        *EXACT_CAVEATS,
        *_studied(evidence),
        "- A ratio is of this network, budget and data; the two pages without a network say what of it is the sampler and what the network.",
        f"- FID* is biased upwards for few samples: here {plan.samples} for every point.",
        f"- {len(lost)} of {len(results)} points lost samples that are not finite; they have no FID* and count as infinite.",
        f"- At {len(suspicious)} points of strong networks the noise left in the frame follows the start's norm (rank correlation above {SUSPICIOUS:g}): "
        "there the network fails on unusual starts"
        + (f" ({', '.join(_named(suspicious))})." if suspicious else "."),
    ]
    for name in ("pfgm", "pfgm-weak"):
        found = [
            t.amplitude for k, t in facts.items() if k.rsplit("-", 1)[0] == name and t.amplitude is not None
        ]
        if found:
            above = sum(a.above for a in found) / len(found)
            ends = min(a.low for a in found), max(a.high for a in found)
            strength = "weak" if name.endswith("weak") else "strong"
            lines.append(
                f"- Amplitude of PFGM's {strength} networks: ‖v_x‖/√N ≥ 1, which no field has, at {above:.2%} of training queries; elsewhere "
                f"the field's length is {ends[0]:.2f} to {ends[1]:.2f} times the true one (deciles 1 and 9)."
            )
    return [*lines, ""]


def _named(results: Sequence[Result]) -> list[str]:
    return unique(f"{TITLES[r.method]} {r.solver.replace('_', ' ')}" for r in results)


def _models(plan: Plan, folder: Path) -> list[str]:
    facts = PointFile(folder / "models.jsonl", Trained.from_dict).points
    times = (_read(folder / "seconds.json") or {}).get("seconds", {})
    lines = [
        "## Networks",
        "",
        "| method | parameters | updates | weak: parameters | updates | ms an evaluation and sample |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for method in plan.methods:
        pair = [
            next((t for k, t in facts.items() if k.rsplit("-", 1)[0] == name), None)
            for name in (method, f"{method}-weak")
        ]
        cells = [f"{t.parameters:,} | {t.updates}" if t else " | " for t in pair]
        ms = f"{times[method] * 1e3:.3g}" if method in times else ""
        lines.append(f"| {TITLES[method]} | {cells[0]} | {cells[1]} | {ms} |")
    return [*lines, ""]


def _points(
    results: Sequence[Result], real: Figures | None, floor: dict[str, Any] | None, folder: Path
) -> list[str]:
    times = (_read(folder / "seconds.json") or {}).get("seconds", {})
    lines = [
        "## All points",
        "",
        "![FID* of every sampler](samplers.png)",
        "",
        "Means over the seeds; FID*'s interval from the least end to the largest. *lost*: samples that are not finite. *energy*: energy distance "
        f"over the data's own mean distance, unbiased. *outside*: share of samples with a value beyond ±{OUTSIDE:g}. *frame*: root mean square "
        "of what is left where the data are constant; *start*: its rank correlation with the start's norm. *copies*: share of samples that copy a "
        "training image; *neighbour*: distance to the nearest training image, over that of held-out images.",
        "",
        "| method | network | sampler | evaluations | ms a sample | FID* | lost | energy | outside | frame | start | copies | neighbour |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    if real is not None and floor is not None:
        lines.append(f"| real images | | {floor['count']} of them | | | {_cells([real])} |")
    for method, weak, solver, steps in dict.fromkeys((r.method, r.weak, r.solver, r.steps) for r in results):
        here = [r for r in of(results, method, solver, weak) if r.steps == steps]
        evaluations = max(r.evaluations for r in here)
        ms = f"{times[method] * evaluations * 1e3:.3g}" if method in times and not weak else ""
        strength = "weak" if weak else "strong"
        lines.append(
            f"| {TITLES[method]} | {strength} | {solver.replace('_', ' ')} | {evaluations} | {ms} | {_cells([r.figures for r in here])} |"
        )
    return [*lines, ""]


def _cells(found: Sequence[Figures]) -> str:
    values = [f.frechet for f in found if f.frechet is not None]
    low, high = [f.low for f in found if f.low is not None], [f.high for f in found if f.high is not None]
    distance = "–"
    if len(values) == len(found):
        distance = f"{sum(values) / len(values):.2f} [{min(low):.2f}, {max(high):.2f}]"
    rows = [asdict(f) for f in found]
    cells = [distance, str(sum(f.lost for f in found))]
    for name, form in (
        ("energy", ".4f"),
        ("outside", ".1%"),
        ("frame", ".3f"),
        ("start", ".2f"),
        ("copies", ".1%"),
        ("neighbor", ".2f"),
    ):
        own = [row[name] for row in rows if row[name] is not None]
        cells.append(format(sum(own) / len(own), form) if len(own) == len(rows) else "–")
    return " | ".join(cells)


def _two(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _grids(results: Sequence[Result], folder: Path) -> list[str]:
    """Of each method's network of the first seed: the sampler of the least FID*, strong and weak."""
    lines = ["## Samples", "", "Each method's best sampler, strong network and weak, the first seed's.", ""]
    first = min(r.seed for r in results)
    titles, pictures = [], []
    for method in unique(r.method for r in results):
        for weak in (False, True):
            own = [r for r in of(results, method, weak=weak) if r.seed == first]
            best = min(own, key=lambda r: frechet([r]), default=None)
            name = "" if best is None else f"grids/{best.key.replace('/', '-')}.png"
            if best is not None and (folder / name).exists():
                titles.append(
                    f"{TITLES[method]}{', weak' if weak else ''}: {best.solver.replace('_', ' ')}, {best.evaluations}"
                )
                pictures.append(f"![{titles[-1]}]({name})")
    for at in range(0, len(titles), 4):
        row, images = titles[at : at + 4], pictures[at : at + 4]
        if not at:
            lines += ["| " + " | ".join(row) + " |", "|" + "---|" * len(row)]
        else:
            lines.append("| " + " | ".join(row) + " |")
        lines.append("| " + " | ".join(images) + " |")
    return lines
