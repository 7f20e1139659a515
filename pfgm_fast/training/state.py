"""What a checkpoint holds of a training: weights, averages, Adam's moments, the state of every generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pfgm_fast.training.trainer import Trainer


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Flat names, as `Checkpoint` describes them."""
    tensors = {f"net.{k}": v for k, v in trainer.net.state_dict().items()}
    for i, average in enumerate(trainer.averages):
        tensors |= {f"ema.{i}.{k}": v for k, v in average.module.state_dict().items()}
    for i, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["rng.perturbation"] = trainer.generator.get_state()
    tensors["rng.torch"] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(trainer.device)
    return tensors


def restore(trainer: Trainer, saved: Checkpoint) -> None:
    """Bring a trainer to where the checkpoint was written. Raises: CheckpointError where it does not fit the network."""
    saved, source = checkpoints.today(saved, trainer.net), str(trainer.folder)
    checkpoints.load_weights(trainer.net, saved.part("net"), source)
    for i, average in enumerate(trainer.averages):
        checkpoints.load_weights(average.module, saved.part(f"ema.{i}"), source)
    trainer.averages.resume(saved.step)
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = list(trainer.net.parameters())
    for name, value in saved.part("adam").items():
        index, key = name.split(".")
        if value.dim():  # in the parameter's layout: the fused kernel takes that for granted
            value = torch.empty_like(parameters[int(index)], requires_grad=False).copy_(value)
        moments.setdefault(int(index), {})[key] = value
    state = trainer.optimizer.state_dict()
    trainer.optimizer.load_state_dict({**state, "state": moments})
    trainer.generator.set_state(saved.tensors["rng.perturbation"])
    torch.set_rng_state(saved.tensors["rng.torch"])
    if trainer.device.type == "cuda" and "rng.cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["rng.cuda"], trainer.device)
