"""Draws by image: each image has a generator of its own, so image k does not depend on its batch, nor on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pfgm_fast.errors import ArgumentError

STRIDE = 1_000_003


def image_seeds(seed: int, count: int, first: int = 0) -> list[int]:
    """Seeds of `count` images, from number `first` on, of a set that one seed names: seed · 1,000,003 + k.

    So seed 0 gives 0, 1, 2, …, and two sets of up to a million images share none. Raises: ArgumentError for a negative number.
    """
    for name, value in (("seed", seed), ("count", count), ("first", first)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ArgumentError(f"{name} must be an integer ≥ 0; got {value!r}")
    return [seed * STRIDE + k for k in range(first, first + count)]


class ImageGenerators:
    """One generator an image, on the CPU, whatever the device: then the numbers are the same everywhere."""

    def __init__(self, seeds: Sequence[int]) -> None:
        for seed in seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
                raise ArgumentError(f"seeds must be integers in [0, 2^63); got {seed!r}")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def stacked(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """(B, *shape) of draws (1, *shape), one of each generator."""
        return torch.cat([draw(generator) for generator in self.generators])

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal draws like (B, *shape)."""
        shape = (1, *like.shape[1:])
        noise = self.stacked(lambda g: torch.randn(shape, dtype=like.dtype, generator=g))
        return noise.to(like.device)
