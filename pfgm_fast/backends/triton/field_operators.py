"""The backend's functions for the field operators: outputs are allocated here, `field.serve` fills them."""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast.backends.triton.field import Call, serve


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape[0], dtype=dtype, device=x.device)


def _vector_and_lse(op: str, x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim):
    out, lse = torch.empty_like(x), _rows(x, torch.float64)
    serve(Call(op, x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim, out=out, lse=lse))
    return out, lse


def posterior_mean(
    x, r, charges, log_weights, center, sq_norms, neighbor_distance, source, divisor, offset, aug_dim
):
    """`reference.posterior_mean`"""
    return _vector_and_lse(
        "posterior_mean", x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim
    )


def poisson_field(
    x, r, charges, log_weights, center, sq_norms, neighbor_distance, source, divisor, offset, aug_dim
):
    """`reference.poisson_field`"""
    return _vector_and_lse(
        "poisson_field", x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim
    )


def score(x, r, charges, log_weights, center, sq_norms, neighbor_distance, source, divisor, offset, aug_dim):
    """`reference.score`"""
    gradient, field = torch.empty_like(x), torch.empty_like(x)
    rate, trace, lse = _rows(x, x.dtype), _rows(x, x.dtype), _rows(x, torch.float64)
    serve(
        Call(
            "score", x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim,
            out=field, gradient=gradient, rate=rate, trace=trace, lse=lse,
        )
    )  # fmt: skip
    return gradient, field, rate, trace, lse


def log_density(
    x, r, charges, log_weights, center, sq_norms, neighbor_distance, source, divisor, offset, aug_dim
):
    """`reference.log_density`"""
    lse = _rows(x, torch.float64)
    serve(
        Call("log_density", x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim, lse=lse)
    )
    return lse


def second_moment(
    x,
    r,
    charges,
    log_weights,
    center,
    sq_norms,
    neighbor_distance,
    source,
    divisor,
    offset,
    aug_dim,
    u,
    power,
):
    """`reference.second_moment`"""
    moment, projection = torch.empty_like(x), _rows(x, x.dtype)
    serve(
        Call(
            "second_moment", x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim,
            u=u.contiguous(), power=power, out=moment, rate=projection,
        )
    )  # fmt: skip
    return moment, projection


def field_step(
    x, r, charges, log_weights, center, sq_norms, neighbor_distance, source, divisor, offset, aug_dim, r_next
):
    """`reference.field_step`: the last kernel writes x' at once, the field is never in memory."""
    out = torch.empty_like(x)
    serve(
        Call(
            "field_step", x, r, charges, log_weights, center, sq_norms, divisor, offset, aug_dim,
            r_next=r_next.contiguous(), out=out,
        )
    )  # fmt: skip
    return out
