"""Training: it learns, resumes to the bit, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pfgm_fast.data import load
from pfgm_fast.errors import ArgumentError, CheckpointError, MissingPackageError
from pfgm_fast.nn import UNetConfig
from pfgm_fast.training import RunConfig, TrainConfig, Trainer, load_network
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.log import read

SMALL = RunConfig(
    "digits",
    network=UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.1),
    train=TrainConfig(
        steps=12,
        batch=16,
        lr=1e-3,
        warmup=4,
        decay=0.5,
        ema=(0.9, 0.5),
        flip=False,
        log_every=1,
        sample_every=0,
        checkpoint_every=4,
    ),
)


def _with(**changes: object) -> RunConfig:
    return dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, **changes))


def _losses(folder: Path) -> list[str]:
    return [row["loss"] for row in read(folder)]


def _weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.net.parameters()])


def test_it_learns() -> None:
    """On 64 digits the loss of the last tenth is well under that of the first."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config = _with(steps=80, lr=3e-3, batch=32, checkpoint_every=1000)
        trainer = Trainer(config, folder, images=load("digits").select(torch.arange(64)))
        trainer.run(progress=False)
        losses = [float(x) for x in _losses(Path(folder))]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


def test_resume_is_to_the_bit(tmp_path: Path) -> None:
    whole = Trainer(SMALL, tmp_path / "whole")
    whole.run(progress=False)
    Trainer(SMALL, tmp_path / "parts").run(until=5, progress=False)
    torch.manual_seed(99)  # whatever happened in between
    resumed = Trainer(SMALL, tmp_path / "parts")
    assert resumed.step == 5
    resumed.run(progress=False)
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")
    assert torch.equal(_weights(whole), _weights(resumed))
    for mine, theirs in zip(whole.averages, resumed.averages, strict=True):
        pairs = zip(mine.module.parameters(), theirs.module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_average_is_the_recursion_it_says(tmp_path: Path) -> None:
    trainer = Trainer(_with(ema=(0.6,)), tmp_path)
    name, parameter = next(iter(trainer.net.named_parameters()))
    expected = parameter.detach().clone()
    for done in range(6):
        trainer._update()
        rate = min(0.6, (1 + done) / (10 + done))
        expected = (
            parameter.detach().clone() if done == 0 else torch.lerp(expected, parameter.detach(), 1 - rate)
        )
    torch.testing.assert_close(dict(trainer.averages[0].module.named_parameters())[name], expected)


def test_accumulation_gives_the_same_gradient(tmp_path: Path) -> None:
    """With a loss that draws nothing, a batch in one part and in four gives the same gradient, to rounding."""
    gradients = []
    for parts in (1, 4):
        trainer = Trainer(_with(accumulate=parts, batch=16, clip=0.0), tmp_path / str(parts))
        for layer in trainer.net.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        seen = []

        def loss(net, images, index, charges, generator, labels=None, seen=seen):
            seen.append(len(images))
            vx, vz = net(images, torch.full((len(images),), 2.0))
            return (vx - images).square().flatten(1).mean(1) + vz.square()

        trainer.method = SimpleNamespace(loss=loss)  # type: ignore[assignment]
        trainer.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
        trainer._update()
        assert seen == [16 // parts] * parts
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.net.parameters()]))
    assert float(gradients[0].norm()) > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_conditional_flipped_bfloat16_and_few_charges(tmp_path: Path) -> None:
    config = _with(conditional=True, flip=True, precision="bfloat16", field_charges=128, steps=2)
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, classes=10))
    trainer = Trainer(config, tmp_path)
    assert len(trainer.charges) == 2 * 1797
    trainer.run(progress=False)
    net, _, loaded = load_network(tmp_path)
    assert loaded.train.conditional
    assert net.unet.map_label is not None


def test_sample_grids_and_other_averages(tmp_path: Path) -> None:
    Trainer(_with(steps=2, sample_every=2), tmp_path).run(progress=False)
    assert (tmp_path / "samples" / "step-0000002.png").stat().st_size > 500
    nets = [load_network(tmp_path, ema)[0] for ema in (0, 1, None)]
    heads = [next(net.parameters()) for net in nets]
    assert not torch.equal(heads[0], heads[2])
    with pytest.raises(ArgumentError, match="ema must be in"):
        load_network(tmp_path, 2)


def test_snapshots_stay_beyond_the_newest(tmp_path: Path) -> None:
    Trainer(_with(checkpoint_every=4, snapshot_every=3, keep=1), tmp_path).run(progress=False)
    assert [checkpoints.step_of(p) for p in checkpoints.available(tmp_path)] == [3, 6, 9, 12]
    nets = [load_network(tmp_path, None, step=step)[0] for step in (3, 12, None)]
    heads = [next(net.parameters()) for net in nets]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])
    with pytest.raises(CheckpointError, match="no checkpoint of step 4; it has 3, 6, 9, 12"):
        load_network(tmp_path, step=4)


def test_the_data_set_stays_in_bytes(tmp_path: Path) -> None:
    trainer = Trainer(_with(flip=True), tmp_path)
    assert trainer.charges.dtype == torch.uint8
    assert trainer.charges.data.numel() == 2 * 1797 * 64
    mirrored = trainer.charges.data[1797:]
    assert torch.equal(mirrored, trainer.charges.data[:1797].flip(3))


def test_channels_last_changes_the_layout_alone(tmp_path: Path) -> None:
    losses = []
    for last in (True, False):
        trainer = Trainer(_with(channels_last=last, steps=3), tmp_path / str(last))
        kernel = trainer.net.unet.dec["8x8_aux_conv"].weight
        assert kernel.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        trainer.run(progress=False)
        losses.append([float(x) for x in _losses(tmp_path / str(last))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_compiled_training_follows_the_eager_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile of the network, in one graph: the losses of the first updates agree, and the checkpoint is an ordinary one.
    Without Inductor, whose C++ for a CPU takes minutes to build."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compile_(net, backend="aot_eager", fullgraph=True))
    runs = []
    for compiled in (False, True):
        config = dataclasses.replace(
            _with(compile=compiled, steps=3, checkpoint_every=10),
            network=dataclasses.replace(SMALL.network, dropout=0.0),
        )
        Trainer(config, tmp_path / str(compiled)).run(progress=False)
        runs.append([float(x) for x in _losses(tmp_path / str(compiled))])
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)
    load_network(tmp_path / "True")


def test_tensorboard_gets_metrics_and_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a writer in TensorBoard's place, which need not be installed; without either, one clear message."""
    written: dict[str, list] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            written["folder"] = [folder]

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.setdefault(name, []).append((step, value))

        def add_image(self, name: str, grid, step: int, dataformats: str) -> None:
            written.setdefault(name, []).append((step, grid.shape, dataformats))

        def close(self) -> None:
            written["closed"] = [True]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    Trainer(_with(steps=2, sample_every=2, tensorboard=True), tmp_path / "a").run(progress=False)
    assert written["folder"] == [str(tmp_path / "a" / "tensorboard")]
    assert [step for step, _ in written["loss"]] == [1, 2]
    assert written["samples"][0][2] == "HWC"
    assert written["closed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        MissingPackageError, match=r"needs tensorboard: pip install 'pfgm-fast\[tensorboard\]'"
    ):
        Trainer(_with(steps=2, tensorboard=True), tmp_path / "b").run(progress=False)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    Trainer(_with(checkpoint_every=1, keep=3, steps=6), tmp_path).run(progress=False)
    assert [p.stem for p in checkpoints.available(tmp_path)] == [f"step-{i:07d}" for i in (4, 5, 6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-3}, "holds a run with lr = 0.001, not 0.002"),
        ({"batch": 32}, "holds a run with batch = 16"),
    ],
)
def test_a_folder_keeps_its_run(tmp_path: Path, change: dict, message: str) -> None:
    Trainer(SMALL, tmp_path).run(until=1, progress=False)
    with pytest.raises(CheckpointError, match=message):
        Trainer(_with(**change), tmp_path)
    Trainer(_with(steps=20, keep=5), tmp_path)  # these may change


def test_config_round_trip_and_foreign_files(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    assert RunConfig.load(tmp_path) == SMALL
    for text, message in (
        ("{", "not readable JSON"),
        ('{"model": 1}', "another program or version"),
        (json.dumps({**SMALL.to_dict(), "colour": 1}), "unknown setting 'colour'"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            RunConfig.load(tmp_path)
    with pytest.raises(CheckpointError, match="is not a run of pfgm_fast"):
        RunConfig.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        SMALL.save(tmp_path)
        load_network(tmp_path)
