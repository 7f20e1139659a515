"""An update's passes as a CUDA graph, without a GPU: a stand-in records what is captured and replays it as a graph does, into the same memory.
The capture itself is in tests/gpu."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfgm_fast import presets
from pfgm_fast.errors import ArgumentError
from pfgm_fast.training import Trainer
from pfgm_fast.training.captured import CapturedPasses


def _stand_in(owner: dict[str, Any]) -> Callable[..., Callable[[], None]]:
    """A graph's replay: the recorded work on the recorded inputs, with losses and gradients in the memory of the capture."""

    def record(run: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        passes: CapturedPasses = owner["passes"]
        assert all(p.grad is None for p in passes._parameters)
        states = [g.get_state() for g in generators]
        with torch.random.fork_rng(devices=[]):
            run()  # a capture draws nothing and computes nothing: where the numbers would go
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        losses, grads = passes._losses, [p.grad for p in passes._parameters]
        assert losses is not None

        def replay() -> None:
            for parameter, grad in zip(passes._parameters, grads, strict=True):
                assert parameter.grad is grad, "a graph writes where the gradients were"
                parameter.grad = None
            run()
            for parameter, grad in zip(passes._parameters, grads, strict=True):
                if grad is not None and parameter.grad is not None:
                    grad.copy_(parameter.grad)
                parameter.grad = grad
            new, passes._losses = passes._losses, losses
            assert new is not None
            losses.copy_(new)

        return replay

    return record


def _trainer(folder: Path, captured: bool, **train: Any) -> Trainer:
    base = presets.preset("digits")
    network = replace(base.network, width=8, multipliers=(1,), blocks=1, attention=(8,), dropout=0.2)
    config = replace(
        base, network=network, train=replace(base.train, steps=6, batch=16, log_every=1, **train)
    )
    trainer = Trainer(config, folder)
    if captured:
        owner: dict[str, Any] = {}
        owner["passes"] = trainer._captured = CapturedPasses(
            trainer._passes, trainer._parameters, trainer.generator, _stand_in(owner)
        )
    return trainer


def test_replayed_updates_are_the_plain_ones(tmp_path: Path) -> None:
    """To the bit, dropout and the method's draws included: the warm-up before a capture takes none of them."""
    plain, captured = _trainer(tmp_path / "plain", False), _trainer(tmp_path / "captured", True)
    for trainer in (plain, captured):
        torch.manual_seed(5)  # dropout's
        trainer.run(progress=False)
    for one, other in zip(plain.net.parameters(), captured.net.parameters(), strict=True):
        assert torch.equal(one, other)
    columns = [
        [line.split(",")[:3] for line in (tmp_path / name / "metrics.csv").read_text().splitlines()]
        for name in ("plain", "captured")
    ]
    assert columns[0] == columns[1]
    assert len(columns[0]) == 7


def test_another_shape_is_refused() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))

    def function(images: Tensor, rows: Tensor, labels: Tensor | None) -> Tensor:
        losses = (images * parameter).sum(1)
        losses.sum().backward()
        return losses

    owner: dict[str, Any] = {}
    passes = owner["passes"] = CapturedPasses(function, [parameter], torch.Generator(), _stand_in(owner))
    rows = torch.arange(2)
    assert passes(torch.ones(2, 3), rows, None).tolist() == [3, 3]
    assert passes(2 * torch.ones(2, 3), rows, None).tolist() == [6, 6]
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [4, 4, 4]  # of this call alone
    with pytest.raises(ValueError, match="one shape"):
        passes(torch.ones(4, 3), torch.arange(4), None)
    with pytest.raises(ValueError, match="labels"):
        passes(torch.ones(2, 3), rows, rows)


@pytest.mark.parametrize(
    "other",
    [{"accumulate": 2}, {"field_charges": 64}, {"reservoir": 64}, {"optimal_every": 5}, {"compile": True}],
    ids=lambda other: next(iter(other)),
)
def test_what_cannot_be_captured_is_refused(other: dict[str, Any]) -> None:
    train = presets.preset("digits").train
    assert replace(train, **other) is not None
    with pytest.raises(ArgumentError, match=f"cuda_graph.*{next(iter(other))}"):
        replace(train, cuda_graph=True, **other)


def test_on_a_cpu_it_changes_nothing(tmp_path: Path) -> None:
    assert _trainer(tmp_path, False, cuda_graph=True)._captured is None
