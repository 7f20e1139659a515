"""Training, sampling and studies on 1, 2, 3 and 4 ranks against one process; `tests/test_distributed.py` runs this (tests/forked.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfgm_fast as pf
from pfgm_fast import cli
from pfgm_fast.data import load
from pfgm_fast.errors import RankError
from pfgm_fast.nn import UNetConfig
from pfgm_fast.nn.augment import AUGMENT_DIM
from pfgm_fast.training import RunConfig, TrainConfig, Trainer
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.log import read
from tests import forked

SIZE = 4
SMALL = RunConfig(
    "digits",
    network=UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.0),
    train=TrainConfig(
        steps=9, batch=16, lr=1e-3, warmup=4, ema=(0.9,), flip=False, log_every=1, sample_every=0, checkpoint_every=3
    ),
)  # fmt: skip
DIGITS = load("digits").select(torch.arange(256))


def with_(network: dict[str, Any] | None = None, method: Any = None, **train: Any) -> RunConfig:
    return dataclasses.replace(
        SMALL,
        method=method,
        network=dataclasses.replace(SMALL.network, **(network or {})),
        train=dataclasses.replace(SMALL.train, **train),
    )


VARIANTS = {
    "pfgm": with_(),
    "pfgm++, classes, two parts": with_(
        {"classes": 10}, {"name": "pfgmpp"}, conditional=True, accumulate=2, flip=True
    ),
    "vp, few charges": with_(None, {"name": "vp"}, field_charges=64),
    "edm's recipe": dataclasses.replace(
        with_(
            {"architecture": "ncsnpp", "augment_dim": AUGMENT_DIM, "classes": 10},
            {"name": "pfgmpp", "aug_dim": 2048.0, "loss_reduction": "sum"},
            conditional=True,
            clip=0.0,
            augment=0.5,
            augment_group=2,
            field_charges=64,
            ema_half_life=(40.0, 400.0),
            ema_ramp_up=None,
            steps=4,
        ),
        preconditioning="edm",
    ),
}


def gradient(config: RunConfig, folder: Path) -> torch.Tensor:
    trainer = Trainer(config, folder, images=DIGITS)
    trainer.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
    trainer._update()
    return torch.cat([p.grad.flatten() for p in trainer.net.parameters()])  # type: ignore[union-attr]


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([float(row["loss"]) for row in read(folder)])


def gradients_of_a_step(rank: int, folder: Path) -> None:
    """Of 16 images on 2, 3 (uneven) and 4 ranks and of one process, to rounding."""
    alone = {name: gradient(config, folder / f"alone-{rank}") for name, config in VARIANTS.items()}
    for size in (2, 3, 4):
        if rank < size:
            with forked.group(folder, f"gradients-{size}", rank, size):
                for name, config in VARIANTS.items():
                    found = gradient(config, folder / f"of-{size}")
                    assert float(found.norm()) > 0
                    error = float((found - alone[name]).norm() / alone[name].norm())
                    assert error < 1e-5, (name, size, error)
    assert not (folder / "of-2").exists()


def edms_recipe(rank: int, folder: Path) -> None:
    """Four updates on 2 ranks: the losses, weights and both averages of one process; the last two updates are a resumed run's."""
    config, whole = VARIANTS["edm's recipe"], None
    if rank == 0:
        whole = Trainer(config, folder / "recipe-alone", images=DIGITS)
        whole.run(progress=False)
    for until in (2, 4):
        if rank < 2:
            with forked.group(folder, f"recipe-{until}", rank, 2):
                Trainer(config, folder / "recipe", images=DIGITS).run(until, progress=False)
    if whole is not None:
        found = Trainer(config, folder / "recipe", images=DIGITS)
        torch.testing.assert_close(
            losses(folder / "recipe"), losses(folder / "recipe-alone"), rtol=1e-4, atol=0
        )
        begun = weights(Trainer(config, folder / "begun", images=DIGITS).net)
        for net in (lambda t: t.net, lambda t: t.ema_network(0), lambda t: t.ema_network(1)):
            moved = float((weights(net(whole)) - begun).norm())
            assert moved > 0 and float((weights(net(found)) - weights(net(whole))).norm()) < 1e-3 * moved


def resume_on_other_numbers_of_ranks(rank: int, folder: Path) -> None:
    """Updates 1–3 on 2 ranks, 4–6 on 3, 7–9 on 1: the losses and weights of one process that never stopped."""
    if rank == 0:
        Trainer(SMALL, folder / "whole", images=DIGITS).run(progress=False)
    for size, until in ((2, 3), (3, 6), (1, 9)):
        if rank < size:
            with forked.group(folder, f"until-{until}", rank, size):
                trainer = Trainer(SMALL, folder / "moved", images=DIGITS)
                assert trainer.step == until - 3
                trainer.run(until, progress=False)
                assert checkpoints.step_of(checkpoints.available(folder / "moved")[-1]) == until
    if rank == 0:
        torch.testing.assert_close(losses(folder / "moved"), losses(folder / "whole"), rtol=1e-4, atol=0)
        assert len(losses(folder / "moved")) == 9
        ours, theirs = (checkpoints.latest(folder / name) for name in ("moved", "whole"))
        assert ours is not None and theirs is not None
        for name, value in theirs.part("net").items():
            torch.testing.assert_close(ours.part("net")[name], value, rtol=1e-3, atol=2e-5)


def dropout_resumes_to_the_bit(rank: int, folder: Path) -> None:
    """Each rank has masks of its own, which go on where they were; a stop that one rank is told of stops all."""
    config = with_({"dropout": 0.3}, steps=6)
    if rank >= 2:
        return
    with forked.group(folder, "whole", rank, 2):
        whole = Trainer(config, folder / "whole-dropout", images=DIGITS)
        whole.run(progress=False)
        masks = torch.stack(whole.parallel.world.objects(torch.nn.functional.dropout(torch.ones(64))))
        assert not torch.equal(masks[0], masks[1])
    with forked.group(folder, "parts", rank, 2):
        trainer = Trainer(config, folder / "parts-dropout", images=DIGITS)
        if rank == 1:
            update = trainer._update

            def told() -> Any:
                if trainer.step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return update()

            trainer._update = told  # type: ignore[method-assign]
        try:
            trainer.run(progress=False)
        except KeyboardInterrupt:
            assert trainer.step == 4  # asked in the third update, answered with the next
        else:
            raise AssertionError("nobody stopped")
    with forked.group(folder, "rest", rank, 2):
        rest = Trainer(config, folder / "parts-dropout", images=DIGITS)
        assert rest.step == 4
        rest.run(progress=False)
        pairs = zip(rest.net.parameters(), whole.net.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def different_folders_are_refused(rank: int, folder: Path) -> None:
    if rank >= 2:
        return
    with forked.group(folder, "apart", rank, 2):
        try:
            Trainer(SMALL, folder / ("moved" if rank == 0 else "nowhere"), images=DIGITS)
        except pf.CheckpointError as error:
            assert "that all machines share" in str(error)
        else:
            raise AssertionError("not refused")
        try:
            Trainer(with_(batch=1), folder / "nowhere", images=DIGITS)
        except pf.ArgumentError as error:
            assert "2 ranks share a batch of 1" in str(error)
        else:
            raise AssertionError("not refused")


def a_killed_rank(rank: int, folder: Path) -> None:
    """Its end is seen at once by the others, who name the checkpoint. In processes of their own, forked before any derivative."""
    if rank < 3:
        child = os.fork()
        if child == 0:
            os._exit(_dying(rank, folder))
        _, status = os.waitpid(child, 0)
        if rank == 2:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        else:
            assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, status


def after_the_kill(rank: int, folder: Path) -> None:
    """The last checkpoint is whole, and training goes on from it as if nothing had been."""
    if rank == 0:
        resumed = Trainer(SMALL, folder / "killed", images=DIGITS)
        assert resumed.step == 3
        resumed.run(progress=False)
        torch.testing.assert_close(losses(folder / "killed"), losses(folder / "whole"), rtol=1e-4, atol=0)


def _dying(rank: int, folder: Path) -> int:
    with forked.group(folder, "dying", rank, 3):
        trainer = Trainer(SMALL, folder / "killed", images=DIGITS)
        update = trainer._update

        def until_killed() -> Any:
            if trainer.step == 4 and rank == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return update()

        trainer._update = until_killed  # type: ignore[method-assign]
        began = time.monotonic()
        try:
            trainer.run(progress=False)
        except RankError as error:
            said = "lost another rank" in str(error) and "the checkpoint of step 3 is whole" in str(error)
            return 0 if said and time.monotonic() - began < 60 else 2
        return 1


def commands(rank: int, folder: Path, ports: list[int]) -> None:
    """`sample`, `evaluate` and `study` under torchrun: the numbers asked for, the images of one process, one writer."""
    run, taken = str(folder / "moved"), iter(ports)

    def on(size: int, *arguments: object) -> None:
        port = next(taken)
        if rank < size:
            with forked.torchrun(rank, size, port):
                assert cli.main([str(argument) for argument in arguments]) == 0, arguments

    def compare(
        name: str, command: list[object], out: str, sizes: tuple[int, ...], look: Callable[[Path], Any]
    ) -> None:
        for size in sizes:
            on(size, *command, out, folder / f"{name}-{size}{Path(name).suffix}")
        if rank == 0:
            one, *others = (look(folder / f"{name}-{size}{Path(name).suffix}") for size in sizes)
            for other in others:
                np.testing.assert_allclose(other, one, rtol=1e-4, atol=1)  # a byte may round to its neighbour

    def images(path: Path) -> Any:
        found = np.load(path)["images"]
        assert len(found) == 7
        return found.astype(float)

    compare("x.npz", ["sample", run, "--count", 7, "--steps", 4, "--seed", 3], "--out", (1, 2, 4), images)
    compare(
        "r.npz", ["sample", run, "--count", 7, "--solver", "rk45", "--batch", 3, "--seed", 3], "--out", (1, 3), images
    )  # fmt: skip
    compare(
        "loss", ["study", "optimal-loss", "--points", 2, "--aug-dim", 1, 128, "--queries", 32], "--out", (1, 3),
        lambda path: [point["loss"] for point in json.loads((path / "optimal-loss.json").read_text())["points"]],
    )  # fmt: skip


def main(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    steps: list[Callable[..., None]] = [
        a_killed_rank,
        gradients_of_a_step,
        edms_recipe,
        resume_on_other_numbers_of_ranks,
        after_the_kill,
        dropout_resumes_to_the_bit,
        different_folders_are_refused,
    ]
    for step in steps:
        began = time.monotonic()
        step(rank, folder)
        if rank == 0:
            print(f"{step.__name__} {time.monotonic() - began:.1f} s", flush=True)
    commands(rank, folder, json.loads((folder / "ports.json").read_text()))
