"""One call of a field operator, and the memory that its kernels pass on to one another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.common import FIELD_OPS
from pfgm_fast.backends.triton.runtime import cdiv


@dataclass(frozen=True)
class FieldCall:
    """One call of a field operator; every array is contiguous."""

    op: str
    x: Tensor  # (B, N) float32
    r: Tensor  # (B,) float32
    charges: Tensor  # (M, N) float32 or uint8
    log_weights: Tensor | None  # (M,) float64
    center: Tensor | None  # (N,) float32
    sq_norms: Tensor | None  # (M,) float64
    divisor: float
    offset: float
    aug_dim: float
    u: Tensor | None = None  # (B, N): second_moment
    power: int = 0
    r_next: Tensor | None = None  # (B,): field_step
    out: Tensor | None = None  # (B, N): x − m, m, the step's result, or the moment
    gradient: Tensor | None = None  # (B, N): score
    rate: Tensor | None = None  # (B,): score, second_moment
    trace: Tensor | None = None  # (B,): score
    lse: Tensor | None = None  # (B,) float64

    @property
    def bytes(self) -> bool:
        return self.charges.dtype == torch.uint8

    @property
    def sizes(self) -> tuple[int, int, int]:
        """B, M, N."""
        return self.x.shape[0], self.charges.shape[0], self.x.shape[1]

    @property
    def constants(self) -> tuple[float, float, float]:
        """divisor, offset and D as kernels take them (D = ∞ is their GAUSSIAN)."""
        return self.divisor, self.offset, 1.0 if math.isinf(self.aug_dim) else float(self.aug_dim)

    @property
    def kind(self) -> dict[str, Any]:
        return {"OP": FIELD_OPS[self.op], "GAUSSIAN": math.isinf(self.aug_dim)}

    @property
    def ends_in_weights(self) -> bool:
        """Whether `weights` serves every row: nothing is left for a second product."""
        return self.op in ("log_density", "score", "second_moment")

    def rows(self, part: slice) -> FieldCall:
        """The same call for some of its rows."""
        cut = {
            name: getattr(self, name)[part]
            for name in ("x", "r", "u", "r_next", "out", "gradient", "rate", "trace", "lse")
            if getattr(self, name) is not None
        }
        return replace(self, **cut)


@dataclass(frozen=True)
class Scratch:
    """What the kernels of one call pass on; (B, stride) arrays have a row of whole tiles of charges."""

    stride: int
    tiles: int
    gaps: Tensor  # (B, stride) float32
    least: Tensor  # (B, tiles) float64
    terms: Tensor | None  # (2, B, stride) float16: a dense row's weights, for bytes
    occupied: Tensor  # (B, tiles) int8: where a dense row has weight
    support: Tensor  # (B, stride) int32
    second: Tensor | None  # (B, stride) float32
    counts: Tensor  # (B,) int32
    dense_rows: Tensor  # (B,) int32
    dense_count: Tensor  # (1,) int32
    anchors: Tensor  # (B,) int64
    numbers: Tensor  # (3, B) float64: totals, error_bounds, reaches
    residual: Tensor | None  # (B,) float32: bytes

    @staticmethod
    def bytes_a_pair(call: FieldCall) -> int:
        return 12 if call.bytes or call.ends_in_weights else 8

    @staticmethod
    def of(call: FieldCall) -> Scratch:
        batch, count, _ = call.sizes
        tiles = cdiv(count, configs.CHARGES)
        stride = tiles * configs.CHARGES
        coefficients = call.op in ("score", "second_moment")

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=call.x.device)

        return Scratch(
            stride=stride,
            tiles=tiles,
            gaps=empty(batch, stride, dtype=torch.float32),
            least=empty(batch, tiles, dtype=torch.float64),
            terms=empty(2, batch, stride, dtype=torch.float16)
            if call.bytes and not call.ends_in_weights
            else None,
            occupied=empty(batch, tiles, dtype=torch.int8),
            support=empty(batch, stride, dtype=torch.int32),
            second=empty(batch, stride, dtype=torch.float32) if coefficients else None,
            counts=empty(batch, dtype=torch.int32),
            dense_rows=empty(batch, dtype=torch.int32),
            dense_count=empty(1, dtype=torch.int32),
            anchors=empty(batch, dtype=torch.int64),
            numbers=empty(3, batch, dtype=torch.float64),
            residual=empty(batch, dtype=torch.float32) if call.bytes else None,
        )
