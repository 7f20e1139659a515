"""Any network and any data in the trainer: what it returns, where its run can be read, who gets the figures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pfgm_fast as pf
from pfgm_fast.errors import ArgumentError, CheckpointError, MissingPackageError
from pfgm_fast.training import RunConfig, TrainConfig, Trainer, load_network

CONFIG = RunConfig(
    "my data",
    train=TrainConfig(
        steps=2, batch=4, lr=1e-3, warmup=0, ema=(0.5,), flip=False, sample_every=2, log_every=1
    ),
)


class Mine(nn.Module):
    """A convolution whose weight serves twice, with a buffer; `form` says what it returns."""

    def __init__(self, form: str = "pair", classes: int = 0) -> None:
        super().__init__()
        self.form = form
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.first
        self.norm = nn.BatchNorm2d(3)
        self.embed = nn.Embedding(classes, 3) if classes else None

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Any:
        out = self.again(self.norm(self.first(x)).relu())
        if self.embed is not None and labels is not None:
            out = out + self.embed(labels)[:, :, None, None]
        out = out.tanh()  # bounded, so that the flow of an untrained network ends somewhere
        return {
            "pair": (out, -1 - out.mean((1, 2, 3)).square()),
            "one": out,
            "dict": {"v": out},
            "small": out[:, :, 1:],
        }[self.form]


class Pictures(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((3, 6, 10), i / 6), i % 2


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "(v_x, v_z)": lambda: Mine("pair"),
    "a tensor": lambda: Mine("one"),
    "a denoiser": lambda: pf.Denoiser(Mine("one")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_ones_own_is_trained_resumed_and_sampled(name: str, tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, tmp_path / "run", images=Pictures(), net=NETWORKS[name]())
    before = [p.clone() for p in trainer.net.parameters()]
    trainer.run(progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.net.parameters(), strict=True))
    assert (tmp_path / "run" / "samples" / "step-0000002.png").exists()
    again = Trainer(CONFIG, tmp_path / "run", images=Pictures(), net=NETWORKS[name]())
    assert again.step == 2
    for a, b in zip(trainer.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(a, b)
    net, method, config = load_network(tmp_path / "run", net=NETWORKS[name]())
    assert config.own_network in ("Mine", "Denoiser") and config.network.shape == (3, 6, 10)
    for a, b in zip(trainer.ema_network().state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert pf.sample(net, (2, 3, 6, 10), steps=2, method=method).x.isfinite().all()


@pytest.mark.parametrize("form", ["dict", "small"])
def test_a_broken_contract_is_said_at_the_first_call_and_leaves_nothing(form: str, tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, tmp_path / "run", images=Pictures(), net=Mine(form))
    with pytest.raises(ArgumentError, match=r"v_x of x's shape.*pf\.Denoiser"):
        trainer.run(progress=False)
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(ArgumentError, match=r"net\(x"):
        Trainer(CONFIG, tmp_path / "run", images=Pictures(), net=nn.Identity())
    with pytest.raises(ArgumentError, match=r"nn\.Module; got function"):
        Trainer(CONFIG, tmp_path / "run", images=Pictures(), net=lambda x, z: x)  # type: ignore[arg-type]


def test_classes_reach_the_network_and_the_run_knows_whose_it_is(tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(CONFIG, train=replace(CONFIG.train, conditional=True, steps=1, sample_every=0))
    loader = torch.utils.data.DataLoader(Pictures(), batch_size=4)
    trainer = Trainer(config, tmp_path, images=loader, net=Mine("one", classes=2))
    trainer.run(progress=False)
    assert trainer.config.network.classes == 2 and len(trainer.charges) == 6
    with pytest.raises(CheckpointError, match=r"load_network\(run, net=Mine"):
        load_network(tmp_path)
    with pytest.raises(CheckpointError, match="own_network = 'Mine', not 'Denoiser'"):
        Trainer(config, tmp_path, images=loader, net=pf.Denoiser(Mine("one", classes=2)))


class Recorder:
    """A logger; and what stands for the module wandb, where that is not installed."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.Image = lambda grid: ("image", grid.shape[2])

    def begin(self) -> None:
        self.calls.append(("begin",))

    def scalars(self, values: Any, step: int) -> None:
        self.calls.append(("scalars", step, sorted(values)))

    def image(self, name: str, grid: Any, step: int) -> None:
        self.calls.append(("image", name, grid.shape[2], step))

    def close(self) -> None:
        self.calls.append(("close",))

    def init(self, **options: Any) -> Recorder:
        self.calls.append(("init", options))
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append(("log", sorted(values), step))

    def finish(self) -> None:
        self.calls.append(("finish",))


FIGURES = ["gradient_norm", "images_per_second", "loss", "lr", "seconds"]


def test_a_logger_gets_figures_and_grids(tmp_path: Path) -> None:
    recorder = Recorder()
    Trainer(CONFIG, tmp_path, images=Pictures(), net=Mine(), loggers=[recorder]).run(progress=False)
    assert recorder.calls == [
        ("begin",), ("scalars", 1, FIGURES), ("scalars", 2, FIGURES), ("image", "samples", 3, 2), ("close",)
    ]  # fmt: skip


def test_weights_and_biases_gets_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)  # type: ignore[arg-type]
    config = replace(CONFIG, train=replace(CONFIG.train, wandb="hearts"))
    run = tmp_path / "run"
    Trainer(config, run, images=Pictures(), net=Mine()).run(until=1, progress=False)
    Trainer(config, run, images=Pictures(), net=Mine()).run(progress=False)
    first, second = (call[1] for call in recorder.calls if call[0] == "init")
    assert (first["project"], first["name"], first["resume"]) == ("hearts", "run", "allow")
    assert first["id"] == second["id"] and first["config"]["train"]["batch"] == 4
    assert [call[1:] for call in recorder.calls if call[0] == "log"] == [
        (FIGURES, 1), (FIGURES, 2), (["samples"], 2)
    ]  # fmt: skip
    assert recorder.calls[-1] == ("finish",)


def test_a_missing_package_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with pytest.raises(
        MissingPackageError, match=r"train\.wandb needs wandb: pip install 'pfgm-fast\[wandb\]'"
    ):
        Trainer(
            replace(CONFIG, train=replace(CONFIG.train, wandb="x")), tmp_path, images=Pictures(), net=Mine()
        )
