"""report.md: one page from what stands in a comparison's folder: verdicts, three pictures, the criterion, all points, grids."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pfgm_fast.compare import figures
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
from pfgm_fast.files import write_beside
from pfgm_fast.studies.claims import TITLES
from pfgm_fast.studies.points import PointFile

PICTURES = ("evaluations.png", "euler.png", "weak.png")


def write_report(
    plan: Plan, results: Sequence[Result], described: str, folder: Path, studies: Path | None = None
) -> Path:
    """Write report.md and its pictures; returns its path. studies: the folder of exact.md and errors.md, to which the page then links.

    Raises: ValueError where there are no results.
    """
    if not results:
        raise ValueError("a report needs at least one result")
    floor = _read(folder / "floor.json")
    real = None if floor is None else Figures(**floor["figures"])
    figures.fewer_evaluations(folder / PICTURES[0], results, None if real is None else real.frechet)
    figures.euler_step(folder / PICTURES[1], results)
    figures.weak_networks(folder / PICTURES[2], results)
    lines = [
        f"# PFGM against diffusion, trained: {described}",
        "",
        *_head(plan, results, floor, folder),
        "",
        *_criterion_line(results),
        "",
    ]
    for verdict, picture in zip(verdicts(results), PICTURES, strict=True):
        lines += [f"## {verdict.title}: {_word(verdict, results)}", "", verdict.sentence, ""]
        lines += [f"![{verdict.title}]({picture})", ""]
    lines += [
        *_links(folder, studies),
        *_criterion(results),
        *_caveats(plan, results, folder),
        *_models(plan, folder),
        *_points(results, real, floor, folder),
        *_grids(results, folder),
    ]
    path = folder / "report.md"
    write_beside(path, ("\n".join(lines).rstrip() + "\n").encode())
    return path


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _head(plan: Plan, results: Sequence[Result], floor: dict[str, Any] | None, folder: Path) -> list[str]:
    done = sorted({r.seed for r in results})
    times = _read(folder / "seconds.json")
    count = len({(r.method, r.weak, r.seed) for r in results})
    wanted = len(plan.models())
    lines = [
        f"{count} networks: one DDPM++ of the same size (width {plan.width}), updates ({plan.steps} of {plan.batch} images), optimiser and data a "
        f"method, weak ones with half the width and half the updates; {len(done)} seeds of training and sampling; {plan.samples} samples a "
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
        "What changed against the first report: several seeds; held-out data for the metric and for the classifier; figures of samples as "
        "they are, not clipped, none replaced where it is not finite; intervals; the denoising step; VE's σ for values in [−1, 1]; "
        "PFGM++ and EDM; and a criterion of training that is checked before methods are compared.",
    ]
    return lines


def _criterion_line(results: Sequence[Result]) -> list[str]:
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


def _links(folder: Path, studies: Path | None) -> list[str]:
    """Where the same questions are answered without a trained network."""
    pages = {
        "exact.md": "accuracy against evaluations with the exact field",
        "errors.md": "tolerance of controlled errors",
    }
    lines = ["## Without a network", ""]
    for name, title in pages.items():
        path = None if studies is None else studies / name
        command = f"`pfgm-fast study {name.removesuffix('.md')}`"
        if path is not None and path.is_file():
            link = Path(os.path.relpath(path, folder)).as_posix()
            lines.append(f"- [{title}]({link}), by {command}")
        else:
            lines.append(f"- {title}: {command} writes that page; name its folder by `--studies`")
    return [*lines, ""]


def _caveats(plan: Plan, results: Sequence[Result], folder: Path) -> list[str]:
    strong = [r for r in results if not r.weak]
    lost = [r for r in results if r.figures.lost]
    suspicious = [r for r in strong if (r.figures.start or 0.0) > SUSPICIOUS]
    facts = PointFile(folder / "models.jsonl", Trained.from_dict).points
    lines = [
        "## Caveats",
        "",
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
