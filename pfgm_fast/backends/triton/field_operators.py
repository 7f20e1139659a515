"""The backend's functions for the field operators: outputs are allocated here, `field.serve` fills them."""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast.backends.triton.call import FieldCall
from pfgm_fast.backends.triton.field import serve
from pfgm_fast.ops.schema import Query


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape[0], dtype=dtype, device=x.device)


def _vector_and_lse(op: str, query: Query) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(query.x), _rows(query.x, torch.float64)
    serve(FieldCall(op, *query, out=out, lse=lse))
    return out, lse


def posterior_mean(query: Query) -> tuple[Tensor, Tensor]:
    """`reference.posterior_mean`"""
    return _vector_and_lse("posterior_mean", query)


def poisson_field(query: Query) -> tuple[Tensor, Tensor]:
    """`reference.poisson_field`"""
    return _vector_and_lse("poisson_field", query)


def score(query: Query) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.score`"""
    x = query.x
    gradient, field = torch.empty_like(x), torch.empty_like(x)
    rate, trace, lse = _rows(x, x.dtype), _rows(x, x.dtype), _rows(x, torch.float64)
    serve(FieldCall("score", *query, out=field, gradient=gradient, rate=rate, trace=trace, lse=lse))
    return gradient, field, rate, trace, lse


def log_density(query: Query) -> Tensor:
    """`reference.log_density`"""
    lse = _rows(query.x, torch.float64)
    serve(FieldCall("log_density", *query, lse=lse))
    return lse


def second_moment(query: Query, u: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """`reference.second_moment`"""
    moment, projection = torch.empty_like(query.x), _rows(query.x, query.x.dtype)
    serve(FieldCall("second_moment", *query, u=u.contiguous(), power=power, out=moment, rate=projection))
    return moment, projection


def field_step(query: Query, r_next: Tensor) -> Tensor:
    """`reference.field_step`: the last kernel writes x' at once, the field is never in memory."""
    out = torch.empty_like(query.x)
    serve(FieldCall("field_step", *query, r_next=r_next.contiguous(), out=out))
    return out
