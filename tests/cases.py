"""The one table of shapes and hard cases on which every backend is compared with the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Relative L2 error of the unit direction (x − m, r) against float64: the package's bar, for float32."""


@dataclass(frozen=True)
class Case:
    """Queries x (B, N), r (B,), charges (M, N), D; `weights` (M,) or None."""

    x: Tensor
    r: Tensor
    charges: Tensor
    aug_dim: float = 1.0
    weights: Tensor | None = None


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _perturbed(charges: Tensor, batch: int, radii: Tensor) -> Tensor:
    values = charges / 127.5 - 1 if charges.dtype == torch.uint8 else charges
    picked = values[torch.arange(batch) % len(values)]
    noise = _normal(*picked.shape, seed=7)
    return picked + radii[:, None] * noise / math.sqrt(picked.shape[1])


def _plain(batch: int, count: int, dim: int, aug_dim: float = 1.0) -> Callable[[], Case]:
    def build() -> Case:
        charges = _normal(count, dim, seed=1)
        radii = torch.logspace(-2, 1.5, batch)
        return Case(_perturbed(charges, batch, radii), radii * 0.5, charges, aug_dim)

    return build


def _byte_case(batch: int, count: int, dim: int, aug_dim: float = 1.0) -> Callable[[], Case]:
    def build() -> Case:
        charges = _bytes(count, dim, seed=2)
        radii = torch.logspace(-2, 2, batch)
        return Case(_perturbed(charges, batch, radii), radii / math.sqrt(dim) + 1e-3, charges, aug_dim)

    return build


def _near_duplicates(dim: int) -> Callable[[], Case]:
    def build() -> Case:
        base = _normal(16, dim, seed=3)
        charges = (base.repeat(4, 1) + 1e-3 * _normal(64, dim, seed=4)).contiguous()
        radii = torch.logspace(-4, 0, 12)
        return Case(_perturbed(charges, 12, radii), radii, charges)

    return build


def _duplicates() -> Case:
    base = _normal(8, 40, seed=5)
    radii = torch.logspace(-3, 1, 9)
    return Case(_perturbed(base, 9, radii), radii, base.repeat(5, 1).contiguous())


def _on_a_charge() -> Case:
    charges = _normal(33, 48, seed=6)
    return Case(charges[:7].clone(), torch.logspace(-4, 1, 7), charges)


def _radii(dim: int) -> Callable[[], Case]:
    def build() -> Case:
        charges = _normal(50, dim, seed=8)
        radii = torch.logspace(-6, 5, 23)
        return Case(_perturbed(charges, 23, radii), radii, charges)

    return build


def _weighted(aug_dim: float) -> Callable[[], Case]:
    def build() -> Case:
        charges = _normal(37, 20, seed=9)
        return Case(
            _normal(11, 20, seed=10),
            0.3 + _uniform(11, seed=11),
            charges,
            aug_dim,
            0.01 + _uniform(37, seed=12),
        )

    return build


def _spread() -> Case:
    charges = _bytes(300, 192, seed=13)
    return Case(300 * _normal(20, 192, seed=14) / math.sqrt(192), torch.full((20,), 40.0), charges)


CASES: dict[str, Callable[[], Case]] = {
    "one-charge": _plain(5, 1, 12),
    "one-dimension": _plain(9, 30, 1),
    "plane": _plain(33, 65, 2),
    "small-odd": _plain(7, 13, 5),
    "sixteen": _plain(6, 40, 16),
    "digits-size": _plain(19, 150, 64),
    "mnist-size": _plain(6, 70, 784),
    "odd-sizes": _plain(17, 131, 97),
    "one-query": _plain(1, 300, 257),
    "large-n": _plain(3, 12, 4099),
    "bytes-plane": _byte_case(5, 40, 3),
    "bytes": _byte_case(18, 100, 192),
    "bytes-odd": _byte_case(13, 67, 771),
    "bytes-one": _byte_case(1, 65, 3072),
    "bytes-pfgmpp": _byte_case(9, 80, 300, 2048.0),
    "near-duplicates-2": _near_duplicates(2),
    "near-duplicates-100": _near_duplicates(100),
    "duplicates": _duplicates,
    "on-a-charge": _on_a_charge,
    "all-radii-2": _radii(2),
    "all-radii-80": _radii(80),
    "D=0.5": _plain(8, 60, 30, 0.5),
    "D=128": _plain(8, 60, 30, 128.0),
    "D=1e5": _plain(8, 60, 30, 1e5),
    "D=inf": _plain(8, 60, 30, math.inf),
    "weights": _weighted(1.0),
    "weights-inf": _weighted(math.inf),
    "spread": _spread,
}


def direction(field: Tensor, r: Tensor) -> Tensor:
    """Unit vectors of (x − m, r), (B, N + 1), in float64."""
    joined = torch.cat([field.double(), r.double()[:, None]], 1)
    return joined / joined.norm(dim=1, keepdim=True)


def direction_error(field: Tensor, expected: Tensor, r: Tensor) -> float:
    """The worst row's relative L2 error of the unit direction."""
    return float((direction(field, r) - direction(expected, r)).norm(dim=1).max())
