"""Runs of version 1 load, sample and go on: checkpoints are made by its own network (version_1_network.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.methods import PFGM
from pfgm_fast.nn import UNetConfig
from pfgm_fast.training import RunConfig, Trainer, load_network
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.checkpoint import Checkpoint

from .version_1_network import OldDDPMpp

NETWORKS = {
    "plain": UNetConfig(1, 8, 4, (1, 2), 1, (4,), dropout=0.0),
    "classes": UNetConfig(1, 8, 4, (1, 2), 1, (4,), dropout=0.0, classes=10),
    "attention everywhere": UNetConfig(1, 8, 8, (1, 1, 2), 2, (8, 4, 2), dropout=0.0),
    "one level": UNetConfig(1, 8, 4, (2,), 1, (), dropout=0.0),
}
OLD_SETTINGS = ("channels", "image_size", "width", "multipliers", "blocks", "attention", "dropout", "classes")
TRAIN = {
    "steps": 4,
    "batch": 32,
    "lr": 1e-3,
    "warmup": 0,
    "ema": [0.9],
    "flip": False,
    "log_every": 0,
    "sample_every": 0,
}


@pytest.fixture(params=NETWORKS, ids=str)
def old_run(request: Any, tmp_path: Path) -> tuple[Path, OldDDPMpp, torch.optim.Adam]:
    """A run's folder as version 1 left it after two updates; its network and optimizer."""
    config = NETWORKS[request.param]
    torch.manual_seed(0)
    net = OldDDPMpp(config)
    with torch.no_grad():  # no layer is almost zero, so that every weight is seen in the output
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for seed in range(2):
        _update(net, optimizer, seed)
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"ema.0.{k}": 0.9 * v for k, v in net.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
    tensors["rng.perturbation"] = torch.Generator().manual_seed(1).get_state()
    tensors["rng.torch"] = torch.get_rng_state()
    checkpoints.save(tmp_path, Checkpoint(2, tensors), keep=2)
    settings = {
        "format": "pfgm_fast run, version 1",
        "data": "digits",
        "size": None,
        "method": PFGM().to_dict(),
        "network": {name: getattr(config, name) for name in OLD_SETTINGS},
        "train": {**TRAIN, "conditional": config.classes > 0},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return tmp_path, net, optimizer


def _inputs(config: UNetConfig, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.randn(6, 1, 8, 8, generator=generator), torch.rand(6, generator=generator) * 40
    return (x, z, torch.arange(6)) if config.classes else (x, z)


def _update(net: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    vx, vz = net(*_inputs(net.config, seed))
    (vx.square().mean() + (vz - 1).square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_old_weights_give_the_old_network(old_run: Any) -> None:
    run, old, _ = old_run
    trained, average = load_network(run, ema=None)[0], load_network(run)[0]
    inputs = _inputs(old.config, 9)
    with torch.no_grad():
        for got, expected in zip(trained(*inputs), old(*inputs), strict=True):
            assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(average.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, 0.9 * theirs)


def test_old_runs_sample_as_the_old_network_does(old_run: Any) -> None:
    run, old, _ = old_run
    net, method, _ = load_network(run, ema=None)
    given = {"labels": torch.arange(3)} if old.config.classes else {}
    x, expected = (
        pf.sample(
            n, (3, 1, 8, 8), "heun", 5, method=method, generator=torch.Generator().manual_seed(0), **given
        ).x
        for n in (net, old.eval())
    )
    assert torch.isfinite(expected).all()
    assert (x - expected).norm() <= 1e-5 * expected.norm()


def test_old_optimizers_go_on(old_run: Any) -> None:
    """Three more updates, of the old network and of the resumed trainer's, reach the same function: every moment is at its parameter."""
    run, old, optimizer = old_run
    trainer = Trainer(RunConfig.load(run), run)
    assert trainer.step == 2
    for seed in range(2, 5):
        _update(old, optimizer, seed)
        _update(trainer.net, trainer.optimizer, seed)
    with torch.no_grad():
        pairs = zip(trainer.net(*_inputs(old.config, 9)), old(*_inputs(old.config, 9)), strict=True)
        assert all((got - expected).norm() <= 1e-4 * expected.norm() for got, expected in pairs)


def test_a_resumed_run_is_written_as_today(old_run: Any) -> None:
    run, old, _ = old_run
    Trainer(RunConfig.load(run), run).run(progress=False)
    net, _, config = load_network(run)
    assert config.network.label_embedding == ("late" if old.config.classes else "early")
    saved = checkpoints.latest(run)
    assert saved is not None and saved.step == 4
    assert set(saved.part("net")) == set(net.state_dict())
