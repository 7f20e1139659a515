"""What holding a network's field to the data does, by form, method, strength and sampler: writes docs/held-fields.md.

`python -m tools.held_fields`: small networks of every method are trained on the digits, and drawn from with every form at the same
evaluations. Points are kept in out/held-fields, so that what was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pfgm_fast as pf
from pfgm_fast import data
from pfgm_fast.backends import reference
from pfgm_fast.files import write_beside
from pfgm_fast.flows import RULES, Clipped, Counted, Flow
from pfgm_fast.methods import PFGM, Method, PFGMpp
from pfgm_fast.metrics.features import features_of, train_classifier
from pfgm_fast.metrics.frechet import frechet_distance
from pfgm_fast.solvers import SOLVERS
from pfgm_fast.studies.exact import make
from pfgm_fast.studies.points import PointFile
from pfgm_fast.studies.quality import Target

DOCS = Path(__file__).resolve().parent.parent / "docs"
METHODS = ("pfgm", "pfgmpp-128", "pfgmpp-2048", "ve", "vp")
UPDATES = {"weak": 400, "stronger": 6000}
SAMPLERS = (("euler", 10), ("euler", 20), ("heun", 5), ("heun", 10))
SAMPLES = 1000


class MLP(nn.Module):
    """net(x, condition) of 8×8 images, for every method's contract; clock: condition → about −2 to 2."""

    def __init__(self, dim: int, clock: Callable[[Tensor], Tensor], width: int = 256) -> None:
        super().__init__()
        self.clock = clock
        self.body = nn.Sequential(
            nn.Linear(dim + 13, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dim + 1),
        )

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        size = (1 + flat.square().mean(1, keepdim=True)).sqrt()
        phase = self.clock(condition)[:, None] * 2.0 ** torch.arange(-2, 4)
        out = self.body(torch.cat([flat / size, size.log(), phase.sin(), phase.cos()], 1))
        return out[:, :-1].view(x.shape), out[:, -1]


def clock_of(method: Method) -> Callable[[Tensor], Tensor]:
    if isinstance(method, PFGM):
        return lambda z: z.log() / 3
    return (lambda c: c) if isinstance(method, PFGMpp) else (lambda t: t / 250 - 2)


def trained(method: Method, charges: pf.Charges, updates: int, seed: int) -> nn.Module:
    """Adam with a linear decay, batches of 256, an average over about the last tenth."""
    torch.manual_seed(seed)
    net = MLP(charges.dim, clock_of(method))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 10 / updates)
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(updates):
        rows = torch.randint(len(charges), (256,), generator=generator)
        loss = method.loss(net, charges.values(rows), rows, charges, generator).mean()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / updates)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(net)
    return average.module.eval()


@dataclass(frozen=True)
class Ball:
    """The least known of the data: their centre (N,) and the largest distance from it."""

    center: Tensor
    radius: float

    @classmethod
    def of(cls, points: Tensor, center: Tensor) -> Ball:
        return cls(center, float((points - center).norm(dim=1).max()))


def amplitude(clean: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """‖E‖ held to [‖x − c‖ − R, ‖x − c‖ + R]."""
    field, away = x - clean, (x - ball.center).norm(dim=1)
    length = field.norm(dim=1).clamp(min=1e-30)
    return x - (length.clamp(min=away - ball.radius, max=away + ball.radius) / length)[:, None] * field


def projection(clean: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """m to the nearest point of the ball."""
    away = clean - ball.center
    return ball.center + (ball.radius / away.norm(dim=1).clamp(min=1e-30)).clamp(max=1)[:, None] * away


def chord(clean: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """The amplitude to the end of the line's chord through the ball, then m to the ball: the steps' own form."""
    x, clean = x - ball.center, clean - ball.center
    square = reference.ball(x, ball.radius)
    return ball.center + x - reference.bounded(x, x - clean, torch.ones(len(x)), square)


def elementwise(rule: Callable[[Tensor], Tensor], clean: Tensor, x: Tensor) -> Tensor:
    return rule(clean)


class Held(Clipped):
    """`Clipped` by a rule that also sees x in the data's scale; rows are flat."""

    def __init__(self, flow: Flow, rule: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(flow, lambda clean: clean)
        self.held = rule

    def denoised(self, x: Tensor, value: Any, t: float) -> Tensor:
        clean, scale = self.flow.denoised(x, value, t), float(self.flow.marginal_prob(t)[0])
        return self.held(clean.flatten(1), x.flatten(1) / scale).view(x.shape)

    def _change(self, x: Tensor, value: Any, t: float) -> tuple[Tensor, float]:
        _, precision = super()._change(x, value, t)
        return self.denoised(x, value, t) - self.flow.denoised(x, value, t), precision


def forms_of(points: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    zero, mean = (Ball.of(points, center) for center in (torch.zeros(points.shape[1]), points.mean(0)))
    return {
        "as it is": lambda clean, x: clean,
        "amplitude": partial(amplitude, ball=zero),
        "chord": partial(chord, ball=zero),
        "chord, mean": partial(chord, ball=mean),
        "projection": partial(projection, ball=zero),
        **{name: partial(elementwise, rule) for name, rule in RULES.items()},
    }


def draw(method: Method, net: nn.Module, solver: str, steps: int, form: Any, x: Tensor) -> tuple[Tensor, int]:
    """Samples (B, *shape) from x, and evaluations; all end with the denoising step."""
    flow = Counted(method.flow(net))
    with torch.no_grad():
        out = SOLVERS[solver](Held(flow, form), x, flow.grid(steps, True), lambda x, t: x)
    return out, flow.count


@dataclass(frozen=True)
class Point:
    """frechet: FID* in a digits classifier's features; excess: the energy distance over its floor; lost: samples that are not finite or
    three radii away, which count at the edge of that in both."""

    method: str
    strength: str
    seed: int
    solver: str
    steps: int
    form: str
    evaluations: int
    frechet: float
    excess: float
    lost: int

    @property
    def key(self) -> str:
        return f"{self.method} {self.strength} {self.seed} {self.solver} {self.steps} {self.form}"

    to_dict = asdict


class Bench:
    """Measures points on the digits; the network of the last method, strength and seed is kept."""

    def __init__(self) -> None:
        images = data.load("digits")
        self.charges, self.classifier = images.charges(), train_classifier(images, epochs=30)
        self.known, self.target = features_of(self.classifier, self.charges.values()), Target(self.charges)
        points = self.charges.values().flatten(1)
        self.forms, self.radius = forms_of(points), float(points.norm(dim=1).max())
        self._net: tuple[tuple[str, str, int], Method, nn.Module] | None = None

    def _trained(self, name: str, strength: str, seed: int) -> tuple[Method, nn.Module]:
        if self._net is None or self._net[0] != (name, strength, seed):
            method = make(name, self.charges)
            method = replace(method, data_radius=None) if isinstance(method, PFGM) else method
            net = trained(method, self.charges, UPDATES[strength], seed)
            self._net = (name, strength, seed), method, net
            print(name, strength, seed, flush=True)
        return self._net[1:]

    def measure(self, name: str, strength: str, seed: int, solver: str, steps: int, form: str) -> Point:
        method, net = self._trained(name, strength, seed)
        generator = torch.Generator().manual_seed(seed)
        start = method.prior((SAMPLES, *self.charges.shape), generator=generator)
        out, evaluations = draw(method, net, solver, steps, self.forms[form], start)
        edge = 3 * self.radius
        lost = ~(out.flatten(1).norm(dim=1) <= edge)
        corner = out.nan_to_num(1.0, 1.0, -1.0).sign() * edge / math.sqrt(self.charges.dim)
        out = torch.where(lost.view(-1, 1, 1, 1), corner, out)
        frechet = frechet_distance(features_of(self.classifier, out), self.known)
        excess = self.target.quality(out).excess
        return Point(name, strength, seed, solver, steps, form, evaluations, frechet, excess, int(lost.sum()))

    def all(self, folder: Path, seeds: int) -> list[Point]:
        kept = PointFile(folder / "points.jsonl", lambda values: Point(**values))
        what = product(range(seeds), METHODS, UPDATES, SAMPLERS, self.forms)
        asked = [(name, strength, seed, *sampler, form) for seed, name, strength, sampler, form in what]
        return [kept.get(" ".join(map(str, key)), partial(self.measure, *key))[0] for key in asked]


def table(points: list[Point]) -> str:
    """Rows: network and sampler; columns: forms; a cell: FID* (energy distance × 1000), means over seeds, `n lost` samples."""
    forms = list(dict.fromkeys(p.form for p in points))
    lines = [
        "| network | sampler | evaluations | " + " | ".join(forms) + " |",
        "|" + "---|" * (3 + len(forms)),
    ]
    for head in dict.fromkeys((p.method, p.strength, p.solver, p.steps) for p in points):
        rows = [p for p in points if (p.method, p.strength, p.solver, p.steps) == head]
        cells = [_cell([p for p in rows if p.form == form]) for form in forms]
        lines.append(
            f"| {head[0]}, {head[1]} | {head[2]} {head[3]} | {rows[0].evaluations} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _cell(points: list[Point]) -> str:
    frechet, excess = (sum(getattr(p, what) for p in points) / len(points) for what in ("frechet", "excess"))
    lost = sum(p.lost for p in points)
    return f"{frechet:.3g} ({1000 * excess:.2g})" + (f", {lost} lost" if lost else "")


def gains(points: list[Point]) -> str:
    """The geometric mean over samplers and seeds of FID* with a form over FID* as it is, by network."""
    forms = list(dict.fromkeys(p.form for p in points))[1:]
    base = {p.key.removesuffix(p.form): p.frechet for p in points if p.form == "as it is"}
    lines = ["| network | " + " | ".join(forms) + " |", "|" + "---|" * (1 + len(forms))]
    for head in dict.fromkeys((p.method, p.strength) for p in points):
        cells = []
        for form in forms:
            logs = [
                math.log(p.frechet / base[p.key.removesuffix(form)])
                for p in points
                if (p.method, p.strength, p.form) == (*head, form)
            ]
            cells.append(f"{math.exp(sum(logs) / len(logs)):.2f}")
        lines.append(f"| {head[0]}, {head[1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/held-fields"))
    options = parser.parse_args()
    points = Bench().all(options.out, options.seeds)
    page = DOCS / "held-fields.md"
    words = (
        page.read_text().split("<!-- tables -->")[0]
        if page.exists()
        else "# Holding a network's field to the data\n\n"
    )
    write_beside(page, f"{words}<!-- tables -->\n\n{gains(points)}\n{table(points)}".encode())


if __name__ == "__main__":
    main()
