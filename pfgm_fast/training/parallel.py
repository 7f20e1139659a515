"""A training on several processes: DistributedDataParallel, and what makes it the training of one process.

Every rank draws the whole batch and its perturbations from the same generator and takes its rows, so that an update does not depend on
the number of ranks but for the order of sums; dropout alone is of each rank's own. Rank 0 writes; all read the one folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.seeds import STRIDE
from pfgm_fast.training.config import TrainConfig
from pfgm_fast.world import World, lost_ranks, world


class Parallel:
    """The ranks of a training: the default process group of torch.distributed, or this process alone.

    Raises: ArgumentError for a batch (or its part, TrainConfig.accumulate) of fewer images than ranks.
    """

    def __init__(self, train: TrainConfig, device: torch.device, folder: Path) -> None:
        self.world: World = world()
        self.device, self.folder, self.seed = device, folder, train.seed
        self._asked: tuple[Tensor, Any] | None = None
        self._network: DistributedDataParallel | None = None
        part = train.batch // train.accumulate
        if part < self.world.size:
            raise ArgumentError(
                f"{self.world.size} ranks share a batch of {train.batch} in {train.accumulate} parts: "
                f"each part of {part} must have an image a rank"
            )

    @property
    def alone(self) -> bool:
        return self.world.size == 1

    def agree(self, step: int) -> None:
        """Raises: CheckpointError, on every rank, where they would go on from different checkpoints."""
        steps = self.world.objects(step)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the ranks see different checkpoints in {self.folder}, of steps {', '.join(map(str, steps))}: "
                "the folder must be one that all machines share"
            )

    def wrap(self, network: Any, own: bool) -> Any:
        """The network that is trained. own: the user's, of which some parameters may lie idle."""
        if self.alone:
            return network
        self._network = DistributedDataParallel(
            network,
            device_ids=None if self.device.type == "cpu" else [self.device],
            find_unused_parameters=own,
        )
        return self._network

    def rows(self, count: int) -> dict[str, slice]:
        """What `Method.loss` is told beside its arguments: this rank's rows of `count`; alone, nothing."""
        return {} if self.alone else {"rows": self.world.share(count)}

    def synced(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over the ranks in the last of an update's backward passes."""
        if self._network is None or last:
            return contextlib.nullcontext()
        return self._network.no_sync()

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor (), which is changed."""
        if not self.alone:
            dist.all_reduce(value)
        return value

    def ask(self, stop: bool) -> None:
        """Whether this rank was told to stop: asked of all while the update runs."""
        if not self.alone:
            where = torch.device("cpu") if "cpu:" in dist.get_backend_config() else self.device
            flag = torch.tensor(int(stop), device=where)
            self._asked = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)

    def stop(self, told: bool) -> bool:
        """The answer, the same on every rank; alone, `told`."""
        if self._asked is None:
            return told
        flag, work = self._asked
        work.wait()
        self._asked = None
        return bool(flag)

    def own_draws(self, states: Mapping[str, Tensor], step: int) -> None:
        """Dropout of each rank its own: as it was saved, else from the seed, the rank and the step. Rank 0's is that of one process."""
        if self.world.writer:
            return
        kept = states.get(_state(self.world.rank))
        if kept is not None:
            torch.set_rng_state(kept)
        else:
            torch.manual_seed((self.seed * STRIDE + self.world.rank * 7919 + step * 104_729) % 2**63)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(torch.initial_seed() + step)

    def draws(self) -> dict[str, Tensor]:
        """The states of the other ranks' generators, for a checkpoint. A collective."""
        states = self.world.objects(torch.get_rng_state())
        return {_state(rank): state for rank, state in enumerate(states) if rank}

    def watched(self, saved: Any) -> contextlib.AbstractContextManager[None]:
        """Within, another rank's end is a RankError. saved: gives the step of the newest checkpoint, or None."""
        return _Watched(self.folder, saved)


class _Watched(contextlib.AbstractContextManager[None]):
    def __init__(self, folder: Path, saved: Any) -> None:
        self.folder, self.saved = folder, saved

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            return
        step = self.saved()
        stays = "there is no checkpoint yet" if step is None else f"the checkpoint of step {step} is whole"
        with lost_ranks(f"training in {self.folder} ends, {stays}, and the same command goes on from it"):
            raise error


def _state(rank: int) -> str:
    return f"rng.torch.{rank}"


class SilentLog:
    """Of the ranks that write nothing, in the place of `MetricsLog`."""

    seconds = 0.0

    def begin(self) -> None: ...

    def add(self, row: Mapping[str, Any]) -> None: ...

    def add_images(self, name: str, grid: Any, step: int) -> None: ...

    def close(self) -> None: ...
