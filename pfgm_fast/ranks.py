"""Collectives among the ranks of a process group: rows go to their owners in the ranks' order, and what is sent is counted.

PyTorch's own collectives, in one form each: gloo on a CPU, NCCL on GPUs (all of them are in NCCL too; none has been run there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from pfgm_fast.errors import ArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def even(count: int, size: int) -> list[int]:
    """How many of `count` things each of `size` ranks gets: they differ by one at most, the first ranks get more."""
    return [count // size + (rank < count % size) for rank in range(size)]


def starts(counts: Sequence[int]) -> list[int]:
    """Where each rank's things begin, and where the last ones end: (R + 1,)."""
    return [0, *accumulate(counts)]


class Ranks:
    """A process group as this package uses it.

    group: a ProcessGroup, a DeviceMesh of one dimension, or None, the default group.
    rank, size: this process's number in the group, and how many there are. sent: bytes that this rank has sent to others so far, as
    the collectives are defined: a gathered row counts once for each other rank.

    Raises: ArgumentError where there is no process group, this process is not in it, or it does not serve the device.
    """

    def __init__(self, group: ProcessGroup | DeviceMesh | None, device: torch.device) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ArgumentError(
                "there is no process group: start under torchrun and call torch.distributed.init_process_group() first"
            )
        mesh: Any = group
        own: Any = group
        if hasattr(mesh, "get_group"):
            if mesh.ndim != 1:
                raise ArgumentError(
                    f"the mesh has {mesh.ndim} dimensions, {mesh.mesh_dim_names}: name one, as mesh['data']"
                )
            own = mesh.get_group()
        self.group = own
        self.rank, self.size, self.device = dist.get_rank(own), dist.get_world_size(own), device
        if self.rank < 0:
            raise ArgumentError("this process is not in the group")
        backends = dist.get_backend_config(own)
        if f"{device.type}:" not in backends:
            raise ArgumentError(f"the group's backend is {backends}: it has none for {device.type} tensors")
        self.sent = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self  # a group is no value

    def objects(self, value: Any) -> list[Any]:
        """Every rank's small Python value, in the ranks' order."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def numbers(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's integers, as many on each: one collective of 8 bytes a number. Waits for the device."""
        return self.gather(torch.tensor([list(values)], device=self.device), [1] * self.size).tolist()

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Every rank's rows (counts[rank], ...), joined in the ranks' order: (Σ counts, ...) on all."""
        longest = max(counts)
        if longest == 0:
            return rows
        padded = rows
        if len(rows) < longest:
            padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded.contiguous(), group=self.group)
        self.sent += (self.size - 1) * padded.numel() * padded.element_size()
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    def exchange(
        self, rows: Tensor, give: Sequence[int], take: Sequence[int]
    ) -> Callable[[], tuple[Tensor, ...]]:
        """Send rows (Σ give, ...), the first give[0] of them to rank 0 and so on, while this process goes on.

        Returns what waits for the rows from each rank, (take[k], ...) of rank k.
        """
        rows = rows.contiguous()
        found = rows.new_empty((sum(take), *rows.shape[1:]))
        work = dist.all_to_all_single(found, rows, list(take), list(give), group=self.group, async_op=True)
        row = rows[:1].numel() * rows.element_size()
        self.sent += row * (sum(give) - give[self.rank])

        def wait() -> tuple[Tensor, ...]:
            _ = rows  # must live until it has been sent
            if work is not None:
                work.wait()
            return found.split(list(take))

        return wait


def pack(values: Sequence[Tensor]) -> Tensor:
    """Tensors (B, ...) of any dtypes as the bytes of their rows, side by side: (B, P) uint8."""
    flat = [value.reshape(len(value), math.prod(value.shape[1:])) for value in values]
    # A column of one row may be strided and yet "contiguous"; bytes must lie side by side.
    dense = [
        value
        if value.stride() == (value.shape[1], 1)
        else torch.empty_like(value, memory_format=torch.contiguous_format).copy_(value)
        for value in flat
    ]
    return torch.cat([value.view(torch.uint8) for value in dense], 1)


def unpack(packed: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `pack` made of tensors of these shapes behind B, and dtypes."""
    values, first = [], 0
    for value in like:
        width = math.prod(value.shape[1:]) * value.element_size()
        part = packed[:, first : first + width].clone(memory_format=torch.contiguous_format)  # aligned
        values.append(part.view(value.dtype).view(len(packed), *value.shape[1:]))
        first += width
    return tuple(values)


def checksum(value: Tensor) -> int:
    """Of a float tensor's bits: what differs between ranks is seen, but for one chance in 2^64."""
    words = value.detach().contiguous().view(torch.int32 if value.element_size() == 4 else torch.int64)
    # neighbours are told apart, so that an exchange of two rows is seen too
    places = torch.arange(1, words.numel() + 1, device=words.device)
    return int((words.flatten().long() * places * 0x9E3779B97F4A7C1).sum()) if words.numel() else 0
