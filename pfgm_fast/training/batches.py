"""Which images an update takes, and the charges that make its field: of a set in memory, or of a stream of which a part is in memory.

The images come in an endless order: each epoch is one permutation, drawn from the seed and the epoch alone, and update t takes the places
t·batch … (t + 1)·batch − 1. Nothing of it is state, so a run goes on from the number of its update.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.data import ImageSet, ImageStream
from pfgm_fast.errors import ArgumentError, DataError
from pfgm_fast.training.config import TrainConfig
from pfgm_fast.transfer import sent

HOST = torch.device("cpu")
SAMPLE = 1024
"""Images of a stream by which its method's hyper-parameters and the charges' centre are set."""


class Batch(NamedTuple):
    """charges: what makes the field of an update; own: the rows (batch,) of its images among them."""

    charges: Charges
    own: Tensor


class Batches(Protocol):
    """What the trainer asks of its images."""

    charges: Charges
    """In memory now."""
    sample: Charges
    """What the method's rules look at; the same at every start."""

    def at(self, step: int, generator: torch.Generator) -> Batch:
        """Of update `step`, from 0; draws of charges are the generator's."""
        ...


def places(count: int, seed: int, first: int, number: int, device: torch.device = HOST) -> Tensor:
    """(number,) int64 on the device: the images at the places first … first + number − 1 of the endless order of `count` images."""
    pieces = []
    while number:
        epoch, place = divmod(first, count)
        piece = _order(count, (seed * 1_000_003 + epoch) % 2**63, device)[place : place + number]
        pieces.append(piece)
        first, number = first + len(piece), number - len(piece)
    return torch.cat(pieces)


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, device: torch.device) -> Tensor:
    """An epoch's permutation, the same on every device: sent there once."""
    return sent(torch.randperm(count, generator=torch.Generator().manual_seed(seed)), device)


class Resident:
    """All images are in memory, and charges: all of them, or `train.field_charges` drawn beside the batch's own."""

    def __init__(self, images: ImageSet, train: TrainConfig, device: torch.device) -> None:
        self._train = train
        self.charges = self.sample = images.charges(labels=train.conditional).to(device)

    def at(self, step: int, generator: torch.Generator) -> Batch:
        train, charges = self._train, self.charges
        index = places(len(charges), train.seed, step * train.batch, train.batch, charges.device)
        limit = train.field_charges
        if limit is None or limit >= len(charges):
            return Batch(charges, index)
        others = torch.randint(
            len(charges), (max(0, limit - len(index)),), generator=generator, device=charges.device
        )
        drawn = charges.rows(torch.cat([index, others]))
        return Batch(drawn, torch.arange(len(index), device=charges.device))


class Reservoir:
    """`train.reservoir` images of a stream are in memory, and are the charges.

    Rule: the charges of update t are the K images at the places t·batch … t·batch + K − 1 of the endless order, and its own images the
    first `batch` of them; so an image is a charge for K/batch updates and is trained on in the last of them. Place p lies in row p mod K.
    Where an epoch ends within the K places, an image may be there twice, and weighs twice. The next `batch` images are read by a
    thread while the update runs. The centre that keeps the kernels' products small is the mean of the stream's first 1,024 places.

    Raises: ArgumentError for K below the batch, or not below the number of images.
    """

    def __init__(self, images: ImageStream, train: TrainConfig, device: torch.device) -> None:
        assert train.reservoir is not None
        if not train.batch <= train.reservoir < len(images):
            raise ArgumentError(
                f"reservoir must hold a batch ({train.batch}) and fewer than all {len(images):,} images; got {train.reservoir:,}"
            )
        if train.field_charges is not None:
            raise ArgumentError(
                "field_charges draws from images that are all in memory: reservoir takes its place"
            )
        if train.conditional and images.labels is None:
            raise DataError(f"{images.name} has no labels, which a class-conditional run needs")
        self._images, self._train, self._device = images, train, device
        self._reader = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[tuple[Tensor, Tensor | None]]] | None = None
        self._step: int | None = None
        first = min(SAMPLE, len(images))
        stored, labels = self._read(0, first)
        self.sample = Charges(stored, labels=labels).to(device)
        self._fill(0)

    def at(self, step: int, generator: torch.Generator) -> Batch:
        train, size = self._train, len(self.charges)
        if self._step is not None and step == self._step + 1:
            first = self._step * train.batch
            entering = self._entering(step)
            rows = torch.arange(first, first + train.batch, device=self._device) % size
            self.charges.put(rows, *(None if part is None else sent(part, self._device) for part in entering))  # type: ignore[arg-type]
            self._step = step
        elif step != self._step:
            self._fill(step)
        self._next = (step + 1, self._reader.submit(self._read, step * train.batch + size, train.batch))
        own = torch.arange(step * train.batch, (step + 1) * train.batch, device=self._device) % size
        return Batch(self.charges, own)

    def _entering(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The images that update `step` has and the one before had not."""
        assert self._next is not None and self._next[0] == step
        return self._next[1].result()

    def _fill(self, step: int) -> None:
        assert self._train.reservoir is not None
        size, first = self._train.reservoir, step * self._train.batch
        stored, labels = self._read(first, size)
        turn = (torch.arange(size) - first) % size  # row r holds the place p = r mod K
        charges = Charges(stored[turn], labels=None if labels is None else labels[turn])
        self.charges, self._step = charges.to(self._device).centred(self.sample.center), step

    def _read(self, first: int, number: int) -> tuple[Tensor, Tensor | None]:
        """Images (number, C, H, W) as bytes and, where they matter, labels (number,), at places of the endless order."""
        index = places(len(self._images), self._train.seed, first, number)
        labels = self._images.labels if self._train.conditional else None
        return self._images.read(index), None if labels is None else labels[index]


def batches(images: ImageSet | ImageStream, train: TrainConfig, device: torch.device) -> Resident | Reservoir:
    """By whether the images are in memory."""
    return (
        Resident(images, train, device) if isinstance(images, ImageSet) else Reservoir(images, train, device)
    )
