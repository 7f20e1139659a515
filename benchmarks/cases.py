"""The CPU table of docs/benchmarks.md: one set-up a case. Queries are of the training distribution unless the case says spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks import images
from benchmarks.images import Images
from pfgm_fast.methods import PFGM, PFGMpp

SPREAD = 285
"""m of the perturbation where all weights are spread: ‖x‖ is then thousands, and every charge counts."""


@dataclass(frozen=True)
class Case:
    """bars, aims: how many times faster than the best exact peer ours must be, wants to be; by the charges' dtype."""

    name: str
    batch: int
    load: Callable[[], Images]
    bars: dict[str, float]
    aims: dict[str, float] = field(default_factory=dict)
    aug_dim: float = 1.0
    noise: str = "PFGM"  # or "PFGM of the data", "PFGM++", "log-uniform", "spread"
    authors: bool = True  # whether the broadcast formula is asked for where it fits


INFINITE = math.inf
CASES = (
    Case("128 × 4096 × 3072", 128, partial(images.cifar10, 4096), {"float32": 2.6, "uint8": 3.5}, {"float32": 4.0, "uint8": 5.0}),
    Case("128 × 4096 × 3072, D = 2048", 128, partial(images.cifar10, 4096), {"float32": 2.0, "uint8": 3.0}, {"float32": 4.0, "uint8": 5.0}, 2048.0, "log-uniform", authors=False),
    Case("128 × 4096 × 3072, D = ∞", 128, partial(images.cifar10, 4096), {"float32": 2.0, "uint8": 3.0}, {"float32": 4.0, "uint8": 5.0}, INFINITE, "log-uniform", authors=False),
    Case("128 × 4096 × 3072, dequantised", 128, partial(images.dequantised_cifar10, 4096), {"float32": 2.0}, {"float32": 2.6}, authors=False),
    Case("128 × 50000 × 3072", 128, partial(images.cifar10, 50000), {"uint8": 4.5}, {"uint8": 6.0}),
    Case("128 × 50000 × 3072, D = 2048", 128, partial(images.cifar10, 50000), {"uint8": 8.0}, {"uint8": 12.0}, 2048.0, "PFGM++"),
    Case("64 × 60000 × 784", 64, partial(images.mnist, 60000), {"float32": 2.5}, {"float32": 3.5}),
    Case("16 × 2048 × 12288", 16, partial(images.doubled_cifar10, 2048), {"float32": 3.5}, {"float32": 5.0}, authors=False),
    Case("512 × 1797 × 64", 512, images.digit_bytes, {"float32": 1.8, "uint8": 1.8}, {"float32": 2.5, "uint8": 2.5}, noise="PFGM of the data"),
    Case("256 × 1797 × 64", 256, images.digit_bytes, {"float32": 1.8, "uint8": 1.8}, {"float32": 2.5, "uint8": 2.5}, noise="PFGM of the data", authors=False),
    Case("4096 × 4096 × 2", 4096, partial(images.toy, 4096), {"float32": 4.5}, {"float32": 8.0}, noise="PFGM of the data"),
    Case("4096 × 4096 × 2, D = 128", 4096, partial(images.toy, 4096), {"float32": 4.5}, {"float32": 8.0}, 128.0, "log-uniform", authors=False),
    Case("4096 × 4096 × 2, D = 2048", 4096, partial(images.toy, 4096), {"float32": 4.5}, {"float32": 8.0}, 2048.0, "log-uniform", authors=False),
    Case("4096 × 4096 × 2, D = ∞", 4096, partial(images.toy, 4096), {"float32": 4.5}, {"float32": 8.0}, INFINITE, "log-uniform", authors=False),
    Case("128 × 4096 × 3072, spread", 128, partial(images.cifar10, 4096), {"float32": 1.0, "uint8": 1.0}, {"float32": 1.3, "uint8": 1.3}, noise="spread", authors=False),
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Queries x (B, N), r (B,); `charges` by dtype; `values` (M, N) floats, what peers take; `what` the data is."""

    case: Case
    x: Tensor
    r: Tensor
    charges: dict[str, pf.Charges]
    values: Tensor
    what: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.x), *self.values.shape


def prepare(case: Case) -> Prepared:
    """Build a case; the same on every machine that has its data."""
    loaded = case.load()
    charges = pf.Charges(loaded.values)
    values = charges.values()
    by_dtype = {"float32": pf.Charges(values)}
    if charges.dtype == torch.uint8:
        by_dtype["uint8"] = charges
    picked = torch.randint(len(charges), (case.batch,), generator=torch.Generator().manual_seed(0))
    x, r = _perturb(case, by_dtype["float32"], values[picked])
    return Prepared(case, x, r, by_dtype, values, loaded.what)


def _perturb(case: Case, charges: pf.Charges, y: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if case.noise == "PFGM":
        return PFGM().perturb(y, generator)
    if case.noise == "PFGM of the data":
        return PFGM.from_data(charges).perturb(y, generator)
    if case.noise == "PFGM++":
        method = PFGMpp(aug_dim=case.aug_dim)
        x, sigma = method.perturb(y, generator)
        return x, sigma * math.sqrt(case.aug_dim)
    if case.noise == "log-uniform":  # σ from 0.002 to 80: what PFGM++ and diffusion sample over
        sigma = (0.002 * (80 / 0.002) ** torch.rand(len(y), generator=generator)).to(y.dtype)
        direction = torch.randn(y.shape, generator=generator)
        if math.isinf(case.aug_dim):
            return y + sigma[:, None] * direction, sigma
        # the kernel (‖ρ‖² + r²)^(−(N + D)/2) is a Gaussian over the root of a chi-squared variable of D degrees, over D
        chi = torch.randn(len(y), int(case.aug_dim), generator=generator).square().mean(1).sqrt()
        return y + (sigma / chi)[:, None] * direction, sigma * math.sqrt(case.aug_dim)
    spread = PFGM().sigma * (1 + PFGM().tau) ** SPREAD
    return y + spread * torch.randn(y.shape, generator=generator), torch.full((len(y),), spread)
