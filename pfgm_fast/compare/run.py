"""Carry out a plan in a folder: runs/<model>, points.jsonl, models.jsonl, grids. Whatever stands there already is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from pfgm_fast.compare.drawing import Drawing
from pfgm_fast.compare.measures import Measures, amplitude
from pfgm_fast.compare.parts import Parts
from pfgm_fast.compare.plan import Model, Plan, Point
from pfgm_fast.compare.results import Result, Trained, told
from pfgm_fast.data import ImageSet
from pfgm_fast.errors import ArgumentError
from pfgm_fast.files import write_beside
from pfgm_fast.methods import PFGM
from pfgm_fast.precision import network_precision
from pfgm_fast.sampling import sample
from pfgm_fast.studies.network_error import NetworkError, network_error
from pfgm_fast.studies.points import PointFile
from pfgm_fast.timing import processor
from pfgm_fast.training import Trainer


@dataclass(frozen=True)
class Costs:
    """Seconds of one image's update and of one sample's evaluation, by strength (`weak`), and of a point's figures."""

    update: dict[bool, float]
    evaluation: dict[bool, float]
    figures: float = 0.0

    def training(self, plan: Plan, model: Model, done: int = 0) -> float:
        return self.update[model.weak] * plan.batch * (plan.updates(model) - done)

    def sampling(self, plan: Plan, point: Point) -> float:
        return self.evaluation[point.model.weak] * plan.samples * point.evaluations + self.figures

    def of(self, plan: Plan) -> tuple[float, float]:
        """Seconds of training, and of sampling and measuring, of a whole plan."""
        models = plan.models()
        return (
            sum(self.training(plan, m) for m in models),
            sum(self.sampling(plan, p) for m in models for p in plan.points(m)),
        )


class Comparison:
    """One plan on one data set in one folder. Raises: ArgumentError where the folder holds another plan or other data."""

    def __init__(
        self,
        plan: Plan,
        images: ImageSet,
        data: str,
        folder: Path,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> None:
        self.plan, self.data, self.folder, self.progress = plan, data, folder, progress
        self.device = torch.device(device)
        self.parts = Parts.of(images, plan.most)
        self.charges = self.parts.train.charges()
        self._bound = json.loads(json.dumps({**plan.to_dict(), "digest": images.digest}))
        _refuse_other_plan(folder, self._bound)
        self.points = PointFile(folder / "points.jsonl", Result.from_dict)
        self.models = PointFile(folder / "models.jsonl", Trained.from_dict)
        self._measures: Measures | None = None
        self._bar: Any = None

    @property
    def measures(self) -> Measures:
        if self._measures is None:
            self._measures = Measures(self.parts, self.folder / "cache")
        return self._measures

    def results(self) -> list[Result]:
        """What is done so far, in the plan's order."""
        found = self.points.points
        return [found[p.key] for m in self.plan.models() for p in self.plan.points(m) if p.key in found]

    def costs(self, updates: int = 8, rounds: int = 3) -> Costs:
        """Measured now, in a folder of their own: updates of networks as the trainer makes them, evaluations of networks that are not
        trained, the figures of one point. What else the machine does meanwhile is in them."""
        update, evaluation = {}, {}
        for weak in (False, True):
            model = Model(self.plan.methods[0], weak, 0)
            with TemporaryDirectory() as folder:
                trainer = self._trainer(model, Path(folder))
                trainer.run(2, progress=False)  # the first ones warm up
                began = time.perf_counter()
                trainer.run(2 + updates, progress=False)
                self._wait()
                update[weak] = (time.perf_counter() - began) / (updates * self.plan.batch)
            count = min(self.plan.sample_batch, self.plan.samples)
            shape, method = (count, *self.parts.train.shape), trainer.method
            times: list[float] = []
            for _ in range(rounds):
                began = time.perf_counter()
                with network_precision(self.plan.precision, self.device):
                    out = sample(trainer.net, shape, "euler", 2, method=method, seed=0)
                self._wait()
                times.append((time.perf_counter() - began) / (count * out.nfe))
            evaluation[weak] = median(times)
        return Costs(update, evaluation, self._seconds_of_figures())

    def _seconds_of_figures(self) -> float:
        """Of the samples of a point, in the features of a classifier that is not trained."""
        measures = Measures(self.parts, None)
        samples = torch.randn(self.plan.samples, *self.parts.train.shape)
        began = time.perf_counter()
        measures.figures(samples, samples)
        return time.perf_counter() - began

    def run(self, after_seed: Callable[[list[Result]], object] | None = None) -> list[Result]:
        """Train every model, draw every point of it; returns the results in the plan's order.

        after_seed: told what is done after each seed, so that a page stands early. A comparison that is stopped goes on from the last
        checkpoint and the last point.
        """
        write_beside(self.folder / "plan.json", json.dumps(self._bound, indent=1).encode())
        costs = self.costs()
        total = sum(costs.of(self.plan))
        with tqdm(
            total=1.001 * total,  # rounding never goes beyond it
            disable=not self.progress,
            bar_format="{desc:<34.34} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left",
        ) as self._bar:
            for seed in self.plan.seeds:
                for model in (m for m in self.plan.models() if m.seed == seed):
                    self._model(model, costs)
                if after_seed is not None:
                    after_seed(self.results())
        self._floor()
        self._seconds()
        self._network_errors()
        return self.results()

    def _model(self, model: Model, costs: Costs) -> None:
        points = list(self.plan.points(model))
        if model.key in self.models.points and all(p.key in self.points.points for p in points):
            self._skip(costs.training(self.plan, model) + sum(costs.sampling(self.plan, p) for p in points))
            return
        trainer = self._trainer(model, self.folder / "runs" / model.key)
        self._train(model, trainer, costs)
        net: Any = trainer.ema_network()
        self.models.get(model.key, lambda: self._trained(model, trainer, net))
        if self.plan.compile:
            net = torch.compile(net)
        keeps = self.folder / "grids" if model.seed == self.plan.seeds[0] else None
        draw = Drawing(
            self.plan, model, trainer.method, net, self.measures, self.device, keeps, self._bar.update
        )
        for point in points:
            expected = costs.sampling(self.plan, point)
            if point.key in self.points.points:
                self._skip(expected)
                continue
            self._bar.set_description(point.key)
            result, _ = self.points.get(point.key, lambda p=point, e=expected: draw.result(p, e))  # type: ignore[misc]
            if self.progress:
                self._bar.write(told(result))

    def _skip(self, seconds: float) -> None:
        """Work that stands already: the bar's rate does not count it."""
        if not self._bar.disable:
            self._bar.initial += seconds
            self._bar.update(seconds)

    def _trainer(self, model: Model, folder: Path) -> Trainer:
        config = self.plan.config(model, self.parts.train.shape, self.charges, self.data)
        return Trainer(config, folder, self.device, self.parts.train)

    def _train(self, model: Model, trainer: Trainer, costs: Costs) -> None:
        self._bar.set_description(f"{model.key}: training")
        whole, updates = costs.training(self.plan, model), trainer.config.train.steps
        self._skip(whole * trainer.step / updates)
        every = max(1, updates // 10)
        while trainer.step < updates:
            before = trainer.step
            trainer.run(before + every, progress=False)
            self._bar.update(whole * (trainer.step - before) / updates)

    def _trained(self, model: Model, trainer: Trainer, net: Any) -> Trained:
        found = None
        if isinstance(trainer.method, PFGM):
            found = amplitude(trainer.method, net, trainer.charges)
        count = sum(p.numel() for p in net.parameters())
        return Trained(model.key, count, trainer.step, found)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _floor(self) -> None:
        path = self.folder / "floor.json"
        if not path.exists():
            figures, count = self.measures.floor(self.plan.samples)
            facts = {"count": count, "accuracy": self.measures.accuracy, "figures": asdict(figures)}
            write_beside(path, json.dumps(facts).encode())

    def _network_errors(self) -> None:
        """network-errors.jsonl: of every network against the exact field of its data."""
        file = PointFile(self.folder / "network-errors.jsonl", NetworkError.from_dict)
        for model in self.plan.models():
            file.get(model.key, lambda m=model: self._network_error(m))  # type: ignore[misc]

    def _network_error(self, model: Model) -> NetworkError:
        trainer = self._trainer(model, self.folder / "runs" / model.key)
        width = self.plan.network(model, self.parts.train.shape).width
        net: Any = trainer.ema_network()
        return network_error(model.key, width, trainer.method, net, trainer.charges)

    def _seconds(self, rounds: int = 3) -> None:
        """seconds.json: method → seconds of one sample's evaluation, strong networks of the first seed in turn, medians.

        Measured in one go at the end, so that a comparison that was stopped, or ran beside other work, has times that can be compared.
        """
        path = self.folder / "seconds.json"
        if path.exists() and json.loads(path.read_text())["seconds"].keys() >= set(self.plan.methods):
            return
        nets = {}
        for method in self.plan.methods:
            model = Model(method, False, self.plan.seeds[0])
            trainer = self._trainer(model, self.folder / "runs" / model.key)
            nets[method] = trainer.method, trainer.ema_network()
        times: dict[str, list[float]] = {name: [] for name in nets}
        shape = (min(self.plan.sample_batch, self.plan.samples), *self.parts.train.shape)
        for _ in range(rounds + 1):
            for name, (method_, net) in nets.items():
                began = time.perf_counter()
                with network_precision(self.plan.precision, self.device):
                    out = sample(net, shape, "euler", 3, method=method_, denoise=True)
                self._wait()
                times[name].append((time.perf_counter() - began) / (shape[0] * out.nfe))
        facts = {
            "machine": machine(self.device),
            "seconds": {
                name: median(seconds[1:]) for name, seconds in times.items()
            },  # the first one warms up
        }
        write_beside(path, json.dumps(facts, indent=1).encode())


def machine(device: torch.device) -> str:
    """What the times were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


FREE = ("methods", "seeds")
"""What may grow from one start of a comparison to the next."""


def _refuse_other_plan(folder: Path, now: dict[str, Any]) -> None:
    """Raises: ArgumentError where plan.json, which a comparison writes when it begins, is of another one."""
    path = folder / "plan.json"
    before = json.loads(path.read_text()) if path.exists() else now
    found = [
        f"{name} = {before.get(name)!r}, not {value!r}"
        for name, value in now.items()
        if name not in FREE and before.get(name) != value
    ]
    if found:
        raise ArgumentError(
            f"{folder} holds a comparison with {'; with '.join(found)}: go on with its own plan, or choose another folder"
        )
