"""A field of a few charges and the output of a network for it, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.ops.dispatch import status

BACKENDS = [name for name in ("reference", "cpu") if status()[name] == "ok"]


DOUBLE = torch.float64


FIELD: dict[str, Callable[..., Tensor]] = {
    "posterior_mean": pf.posterior_mean,
    "poisson_field": lambda *a: pf.poisson_field(*a)[0],
    "score": pf.score,
    "log_density": pf.log_density,
    "field_divergence": pf.field_divergence,
    "field_step": lambda x, r, *a: pf.field_step(x, r, 0.6 * r, *a),
}


def problem(batch: int = 3, dim: int = 4) -> tuple[Tensor, Tensor, pf.Charges]:
    charges = pf.Charges(torch.randn(9, dim, dtype=DOUBLE), torch.rand(9) + 0.2)
    return torch.randn(batch, dim, dtype=DOUBLE), torch.rand(batch, dtype=DOUBLE) + 0.4, charges


def network(batch: int = 3, dim: int = 4) -> tuple[Tensor, Tensor]:
    return 0.2 * torch.randn(batch, dim, dtype=DOUBLE), -torch.rand(batch, dtype=DOUBLE) - 0.5
