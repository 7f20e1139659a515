"""Draws by image: each image has a generator of its own, so image k does not depend on its batch, nor on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.errors import ArgumentError
from pfgm_fast.transfer import sent

STRIDE = 1_000_003


def image_seeds(seed: int, count: int, first: int = 0) -> list[int]:
    """Seeds of `count` images, from number `first` on, of a set that one seed names: seed · 1,000,003 + k.

    So seed 0 gives 0, 1, 2, …, and two sets of up to a million images share none.

    Args:
        seed: An integer ≥ 0.
        count: How many, an integer ≥ 0.
        first: The number ≥ 0 of the first image in its set.

    Raises:
        ArgumentError: Anything that is not an integer ≥ 0.
    """
    seed, count, first = (
        checks.integer(name, value, 0) for name, value in (("seed", seed), ("count", count), ("first", first))
    )
    return [seed * STRIDE + k for k in range(first, first + count)]


class ImageGenerators:
    """One generator an image, on the CPU, whatever the device: then the numbers are the same everywhere."""

    def __init__(self, seeds: Sequence[int]) -> None:
        numbers = [checks.integer("seeds", seed, 0) for seed in seeds]
        if numbers and max(numbers) >= 2**63:
            raise ArgumentError(f"seeds must be integers in [0, 2^63); got {max(numbers)}")
        self.generators = [torch.Generator().manual_seed(seed) for seed in numbers]

    def stacked(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """(B, *shape) of draws (1, *shape), one of each generator."""
        return torch.cat([draw(generator) for generator in self.generators])

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal draws like (B, *shape)."""
        shape = (1, *like.shape[1:])
        noise = self.stacked(lambda g: torch.randn(shape, dtype=like.dtype, generator=g))
        return sent(noise, like.device)
