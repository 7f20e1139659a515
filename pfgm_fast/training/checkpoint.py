"""Checkpoints: step-XXXXXXX.safetensors (every tensor) beside step-XXXXXXX.json (what they are, and their hash).

The JSON is written last: where it stands, the tensors are whole. Nothing older is removed before that.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.files import beside, write_beside
from pfgm_fast.methods import Method
from pfgm_fast.methods import from_dict as method_from_dict
from pfgm_fast.nn import DDPMpp
from pfgm_fast.training.config import RunConfig
from pfgm_fast.training.networks import build
from pfgm_fast.training.version_1 import tensors_today

_NAME = re.compile(r"step-\d{7,}\.json")
FORMAT = "pfgm_fast checkpoint, version 1"


@dataclass
class Checkpoint:
    """tensors: flat names → tensors ("net.…", "ema.<rate>.…", "adam.…", "rng.…"); numbers: what JSON holds beside them."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it. Raises: CheckpointError where there are none."""
        found = {
            name[len(prefix) + 1 :]: value
            for name, value in self.tensors.items()
            if name.startswith(prefix + ".")
        }
        if not found:
            kinds = sorted({name.split(".")[0] for name in self.tensors})
            raise CheckpointError(f"the checkpoint holds no {prefix!r}; it holds {', '.join(kinds)}")
        return found


def folder_of(run: Path) -> Path:
    """Where a run's checkpoints are."""
    return run / "checkpoints"


def _stem(step: int) -> str:
    return f"step-{step:07d}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def save(run: Path, checkpoint: Checkpoint, keep: int, snapshot_every: int = 0) -> Path:
    """Write a checkpoint, then remove all but the newest `keep` and the snapshots. Returns the path of its tensors.

    snapshot_every: checkpoints of its multiples are snapshots, which stay for good; 0: there are none.

    Raises: CheckpointError where it cannot be written (a full disk); the older checkpoints are then all still there.
    """
    path = folder_of(run) / f"{_stem(checkpoint.step)}.safetensors"
    try:
        # Of a checkpoint that stands there already the description goes first: it would be of other tensors.
        path.with_suffix(".json").unlink(missing_ok=True)
        with beside(path) as partial:
            save_file(_apart(checkpoint.tensors), partial)
        facts = {"format": FORMAT, "step": checkpoint.step, "sha256": _digest(path), **checkpoint.numbers}
        write_beside(path.with_suffix(".json"), json.dumps(facts, indent=2).encode())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} could not be written to {path.parent}: {error}; "
            "earlier checkpoints are untouched"
        ) from error
    # Later ones, of a run that went on from an earlier checkpoint because they were damaged, are no reason to remove this one.
    for old in [p for p in available(run) if step_of(p) <= checkpoint.step][:-keep]:
        if snapshot_every and step_of(old) % snapshot_every == 0:
            continue
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    _sweep(run)
    return path


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and none in another's memory, as weights that a network uses twice are."""
    apart: dict[str, Tensor] = {}
    seen = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    return apart


def _sweep(run: Path) -> None:
    """Remove what processes that were killed left: half-written files, tensors without a description."""
    whole = set(available(run))
    for left in [*folder_of(run).glob(".step-*.partial"), *folder_of(run).glob("step-*.safetensors")]:
        if left not in whole:
            left.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's file."""
    return int(path.stem.removeprefix("step-"))


def available(run: Path) -> list[Path]:
    """Paths of the tensors of complete checkpoints, oldest first."""
    found = (path for path in folder_of(run).glob("step-*.json") if _NAME.fullmatch(path.name))
    return sorted((path.with_suffix(".safetensors") for path in found), key=step_of)


def load(path: Path) -> Checkpoint:
    """One checkpoint, its hash verified.

    Raises: CheckpointError that says what was expected, where files are missing, truncated, changed, or another program's.
    """
    expected = "expected step-XXXXXXX.safetensors beside step-XXXXXXX.json, as `pfgm-fast train` writes them"
    facts_path = path.with_suffix(".json")
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{facts_path} is missing: {expected}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{facts_path} is not readable JSON ({error}): {expected}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(f'{facts_path} is of another program or version: expected "{FORMAT}"')
    try:
        if _digest(path) != facts.get("sha256"):
            raise CheckpointError(f"{path} is damaged: its contents are not those that were written")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {expected}") from error
    numbers = {k: v for k, v in facts.items() if k not in ("format", "step", "sha256")}
    return Checkpoint(int(facts["step"]), tensors, numbers)


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, with a warning for each damaged one passed over; None where there is none.

    Raises: CheckpointError where checkpoints are there and all of them are damaged.
    """
    paths = available(run)
    for path in reversed(paths):
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    if paths:
        raise CheckpointError(f"none of the {len(paths)} checkpoints in {folder_of(run)} can be read")
    return None


def load_network(
    run: str | Path,
    ema: int | None = 0,
    device: torch.device | str = "cpu",
    step: int | None = None,
    net: torch.nn.Module | None = None,
) -> tuple[torch.nn.Module, Method, RunConfig]:
    """The network of a run's checkpoint, in evaluation mode, its method and its config.

    step: of the checkpoint, such as a snapshot's; None: the newest. ema: which of the averages (in the order of TrainConfig.ema_half_life or ema); None: the trained weights themselves.
    net: of a run that was trained with a network of the caller's (`Trainer(…, net=…)`): one of the same class, which gets the weights.
    Raises: CheckpointError where the run or its checkpoint is not readable, or does not fit its config.
    """
    run = Path(run)
    config = RunConfig.load(run)
    checkpoint = latest(run) if step is None else load(_of_step(run, step))
    if checkpoint is None:
        raise CheckpointError(f"{run} has no checkpoint yet (none in {folder_of(run)})")
    if ema is not None and not 0 <= ema < config.train.averages:
        raise ArgumentError(f"ema must be in [0, {config.train.averages}) or None; got {ema}")
    if config.own_network is not None and net is None:
        raise CheckpointError(
            f"{run} was trained with a network of its caller's, {config.own_network}: load_network(run, net={config.own_network}(…)) "
            "reads it"
        )
    assert config.method is not None
    method = method_from_dict(config.method)
    net = build(config, method) if net is None else net
    checkpoint = today(checkpoint, net)
    weights = checkpoint.part("net" if ema is None else f"ema.{ema}")
    load_weights(net, weights, str(run))
    return net.to(device).eval(), method, config


def _of_step(run: Path, step: int) -> Path:
    paths = {step_of(path): path for path in available(run)}
    if step not in paths:
        raise CheckpointError(
            f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, paths)) or 'none'}"
        )
    return paths[step]


def today(checkpoint: Checkpoint, net: torch.nn.Module) -> Checkpoint:
    """A checkpoint by the names of today's network, also one that version 1 wrote; of a caller's network as it is."""
    if not isinstance(net, DDPMpp):
        return checkpoint
    parameters = [name for name, _ in net.named_parameters()]
    tensors = tensors_today(checkpoint.tensors, net.config, parameters)
    if tensors is checkpoint.tensors:
        return checkpoint
    kinds = {name.rpartition(".unet.")[0] for name in tensors if name.startswith(("net.", "ema."))}
    fixed = {f"{kind}.{name}": value for kind in kinds for name, value in net.named_buffers()}
    return Checkpoint(checkpoint.step, fixed | tensors, checkpoint.numbers)


def load_weights(net: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raises: CheckpointError naming the first name or shape that does not fit."""
    expected = net.state_dict()
    for name, value in expected.items():
        if name not in weights:
            raise CheckpointError(f"{source}: the weights have no {name!r}, which the network needs")
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(weights[name].shape)}; the network needs {tuple(value.shape)}"
            )
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise CheckpointError(f"{source}: the weights hold {extra[0]!r}, which the network does not have")
    net.load_state_dict(weights)
