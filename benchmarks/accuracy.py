"""The hard cases of accuracy, as real as the machine's data allows: tests assert ours, the benchmarks show everybody's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks import images
from pfgm_fast.methods import PFGM
from tests.cases import Case, direction_error

DIMENSIONS = (0.5, 1.0, 2.0, 8.0, 128.0, 2048.0, 1e5, math.inf)
"""D from 0.5 to ∞."""


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _floats(values: Tensor) -> Tensor:
    return pf.Charges(values).values()


def _around(values: Tensor, radii: Tensor, seed: int = 5) -> Tensor:
    """A point at about distance radii[i] from charge i: (len(radii), N)."""
    picked = _floats(values)[torch.arange(len(radii)) * 7 % len(values)]
    return picked + radii[:, None] * _normal(*picked.shape, seed=seed) / math.sqrt(picked.shape[1])


def training(values: Tensor, method: PFGM | None = None, batch: int = 32) -> Case:
    """Queries of the paper's perturbation."""
    floats = _floats(values)
    method = method or PFGM.from_data(pf.Charges(floats))
    picked = torch.randint(len(floats), (batch,), generator=torch.Generator().manual_seed(0))
    x, z = method.perturb(floats[picked], torch.Generator().manual_seed(1))
    return Case(x, z, values)


def near_duplicates(values: Tensor) -> Case:
    """Every charge four times, the copies moved by noise of 1e-3 an element."""
    base = _floats(values[: len(values) // 4])
    copies = (base.repeat(4, 1) + 1e-3 * _normal(4 * len(base), base.shape[1], seed=3)).contiguous()
    radii = torch.logspace(-3, 1.5, 24)
    return Case(_around(copies, radii), radii / math.sqrt(base.shape[1]) + 1e-4, copies)


def duplicates(values: Tensor) -> Case:
    """Every charge four times."""
    copies = values[: len(values) // 4].repeat(4, 1).contiguous()
    radii = torch.logspace(-3, 1.5, 24)
    return Case(_around(copies, radii), radii / math.sqrt(values.shape[1]) + 1e-4, copies)


def radii(values: Tensor) -> Case:
    """r from 1e-6 to 1e5, ‖x − y‖ about r√N for a charge y."""
    r = torch.logspace(-6, 5, 34)
    return Case(_around(values, r * math.sqrt(values.shape[1])), r, values)


def dimensions(aug_dim: float, values: Tensor) -> Case:
    """σ from .002 to 80, r = σ√D (PFGM++, arXiv 2302.04265, section 4)."""
    sigma = torch.logspace(math.log10(0.002), math.log10(80), 24)
    r = sigma if math.isinf(aug_dim) else sigma * math.sqrt(aug_dim)
    return Case(_around(values, sigma * math.sqrt(values.shape[1])), r, values, aug_dim)


def on_charges(values: Tensor) -> Case:
    """x on top of a charge."""
    r = torch.logspace(-6, 1, 15)
    return Case(_floats(values)[: len(r)].clone(), r, values)


SetUp = Callable[[Tensor], Case]

HARD: dict[str, SetUp] = {
    "near-duplicates": near_duplicates,
    "exact duplicates": duplicates,
    "r from 1e-6 to 1e5": radii,
    **{f"D = {d:g}": partial(dimensions, d) for d in DIMENSIONS},
    "query on a charge": on_charges,
}


OWN = "training queries"
SMALL = ("digits", "2-D toy")
"""Data that every machine has."""

DATA: dict[str, tuple[Callable[[], Tensor], SetUp]] = {
    "digits": (lambda: images.digits().values, training),
    "2-D toy": (lambda: images.toy(1024).values, training),
    "CIFAR-10": (lambda: images.cifar10(1024).values, partial(training, method=PFGM())),
    "MNIST": (lambda: images.mnist(1024).values, partial(training, method=PFGM())),
    "64² images": (lambda: images.doubled_cifar10(256).values, partial(training, method=PFGM(), batch=12)),
}
"""name → (charges, how they are queried): floats, or bytes of images or their stand-ins."""


@lru_cache(maxsize=4)
def _charges(data: str) -> Tensor:
    return DATA[data][0]()


def names() -> list[tuple[str, str]]:
    """(data, question) of everything: each data set's own queries, and all hard questions to each."""
    return [(data, question) for data in DATA for question in (OWN, *HARD)]


def build(data: str, question: str) -> Case:
    return (DATA[data][1] if question == OWN else HARD[question])(_charges(data))


def expected(case: Case) -> Tensor:
    """x − m (B, N) in float64, by direct differences, from the values that float32 kernels see."""
    with pf.use_backend("reference"):
        charges = pf.Charges(_floats(case.charges).double(), case.weights)
        return pf.poisson_field(case.x.double(), case.r.double(), charges, case.aug_dim)[0]


def error(got: Tensor, case: Case, exact: Tensor) -> float:
    """Worst relative L2 error of the unit direction; infinite where anything is not finite."""
    worst = direction_error(got, exact, case.r)
    return worst if math.isfinite(worst) else math.inf
