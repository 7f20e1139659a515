"""Parts of the charges, one result: the field operators over blocks of charges, merged exactly and in a fixed order.

Each part k gives an operator's outputs over its own charges, normalised by its own weights, and lse_k (float64). All outputs are
weighted means over charges, so those of all charges are Σ_k W_k · output_k with W_k = exp(lse_k − lse), lse = log Σ_k exp lse_k.
Fields stay sums of differences: x itself is the common anchor, and Σ_k W_k (x − m_k) never subtracts two rounded means. Sums in
float64, in the parts' order: the result depends on the division by rounding alone, on threads not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.checks import has_tangent
from pfgm_fast.errors import DerivativeError
from pfgm_fast.ops import front
from pfgm_fast.ops.schema import Query


def evaluate(op: str, query: Query, operators: Any = None) -> tuple[Tensor, ...]:
    """An operator's outputs, the last of them lse (B,) float64. operators: `Charges.operators`; None: of charges in memory."""
    outputs = getattr(operators or front, op)(*query)
    return outputs if isinstance(outputs, tuple) else (outputs,)


class Merge:
    """The running sum over parts. Keeps one accumulator an output, float64, whatever the number of parts."""

    def __init__(self) -> None:
        self._peak: Tensor | None = None  # (B,) the largest lse so far: no weight below exceeds 1
        self._total = torch.empty(0)  # (B,) Σ_k exp(lse_k − peak)
        self._sums: list[Tensor] = []  # (B, ...) Σ_k exp(lse_k − peak) output_k
        self._dtypes: list[torch.dtype] = []

    def add(self, *outputs: Tensor) -> None:
        """One part: an operator's outputs (B, ...), then its lse (B,); lse = −∞ is a part without charges."""
        *values, lse = outputs
        if self._peak is None:
            self._peak = torch.full_like(lse, -torch.inf)
            self._total = torch.zeros_like(lse)
            self._sums = [torch.zeros_like(value, dtype=torch.float64) for value in values]
            self._dtypes = [value.dtype for value in values]
        peak = torch.maximum(self._peak, lse)
        finite = torch.where(peak == -torch.inf, 0.0, peak)
        old, new = (self._peak - finite).exp(), (lse - finite).exp()
        self._total = self._total * old + new
        for total, value in zip(self._sums, values, strict=True):
            column = (slice(None), *[None] * (value.dim() - 1))
            total.mul_(old[column]).add_(value.double() * new[column])
        self._peak = peak

    def result(self) -> tuple[Tensor, ...]:
        """Outputs in their parts' dtypes, and lse. At least one part must have been added."""
        assert self._peak is not None
        values = [
            (total / self._total[(slice(None), *[None] * (total.dim() - 1))]).to(dtype)
            for total, dtype in zip(self._sums, self._dtypes, strict=True)
        ]
        return (*values, self._peak + self._total.log())


class MergedOperators:
    """The field operators under their own names, over charges that are in parts. over_parts: an operator's name and a query → its
    outputs over all parts, lse last."""

    def __init__(self, over_parts: Callable[[str, Query], tuple[Tensor, ...]]) -> None:
        self._over_parts = over_parts
        self.normalize_field = front.normalize_field  # which sees no charges

    def _run(self, op: str, query: Query) -> tuple[Tensor, ...]:
        wanted = torch.is_grad_enabled() and (query.x.requires_grad or query.r.requires_grad)
        if wanted or has_tangent(query.x) or has_tangent(query.r):
            raise DerivativeError(
                "charges in a file or on several ranks give no derivatives by x or r: call under torch.no_grad(), "
                "or use pf.score and pf.field_divergence, which are exact"
            )
        with torch.no_grad():
            return self._over_parts(op, query)

    def posterior_mean(self, *query: object) -> tuple[Tensor, ...]:
        return self._run("posterior_mean", Query(*query))  # type: ignore[arg-type]

    def poisson_field(self, *query: object) -> tuple[Tensor, ...]:
        return self._run("poisson_field", Query(*query))  # type: ignore[arg-type]

    def score(self, *query: object) -> tuple[Tensor, ...]:
        return self._run("score", Query(*query))  # type: ignore[arg-type]

    def log_density(self, *query: object) -> Tensor:
        return self._run("log_density", Query(*query))[-1]  # type: ignore[arg-type]

    def field_step(self, *arguments: object) -> Tensor:
        *parts, r_next = arguments
        query = Query(*parts)  # type: ignore[arg-type]
        field, _ = self._run("poisson_field", query)
        return query.x + ((r_next - query.r) / query.r)[:, None] * field  # type: ignore[operator]
