"""Derivatives of the operators in closed form, as weighted sums over the charges.

With ρ_j = y_j − x, c_j = (N + D)/d²_j (1/σ² for D = ∞), g = Σ w c ρ, s = Σ w c, e = Σ w ρ = m − x and S_k(u) = Σ w c^k (ρ·u) ρ:

    ∂ℓ_j/∂x = c_j ρ_j            ∂ℓ_j/∂r = −c_j r             (D = ∞: +‖ρ_j‖²/σ³)
    J_mᵀ u = S_1(u) − g (e·u)    (∂m/∂r)·u = −r (Σ w c (ρ·u) − s e·u)
    ∇²ℓ u  = (1 + 2/(N + D)) S_2(u) − g (g·u) − s u            (D = ∞: S_2(u) − g (g·u) − s u)

Charges and their weights are data: they have no gradient. Derivatives are first-order (`once_differentiable`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends import reference
from pfgm_fast.ops.schema import Query

QUERY_LENGTH = len(Query._fields)
QUERY_TENSORS = Query._fields.index("divisor")


def _rows(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _outer(scale: Tensor, rows: Tensor) -> Tensor:
    return scale[:, None] * rows


def _save_query(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.tensors = [value if isinstance(value, Tensor) else None for value in inputs[:QUERY_TENSORS]]
    ctx.save_for_backward(*(value for value in ctx.tensors if value is not None))
    ctx.present = [value is not None for value in ctx.tensors]
    del ctx.tensors
    ctx.numbers = inputs[QUERY_TENSORS:QUERY_LENGTH]


def _query(ctx: Any) -> Query:
    saved = iter(ctx.saved_tensors)
    return Query._make((*(next(saved) if there else None for there in ctx.present), *ctx.numbers))


def _log_derivative(query: Query, want: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the relative log-sum-exp with respect to x and r, times want (B,).

    In r: (1 + ‖ρ‖²/r²)^(−p) gives (N + D)/r − r s = t/r, and exp(−‖ρ‖²/(2σ²)) gives Σ w ‖ρ‖²/σ³ = t/σ.
    """
    x, r = query.x, query.r
    gradient, _, _, trace, _ = torch.ops.pfgm_fast.score(*query)
    want = want.to(x.dtype)
    return _outer(want, gradient), want * trace / r


def _mean_transpose(ctx: Any, query: Query, u: Tensor) -> tuple[Tensor, Tensor]:
    """J_mᵀ u (B, N) and (∂m/∂r)·u (B,)."""
    r, aug_dim = query.r, query.aug_dim
    u = u.contiguous()
    gradient, field, rate, trace, _ = torch.ops.pfgm_fast.score(*query)
    moment, projection = torch.ops.pfgm_fast.second_moment(*query, u, 1)
    along = -_rows(field, u)  # e·u
    by_x = moment - _outer(along, gradient)
    if not math.isinf(aug_dim):
        return by_x, -r * (projection - rate * along)
    if not ctx.needs_input_grad[1]:
        return by_x, torch.zeros_like(r)
    return by_x, _gaussian_cubic(query, u) / r**3 - trace / r * along


def _gaussian_cubic(query: Query, u: Tensor) -> Tensor:
    """Σ w ‖ρ‖² (ρ·u) (B,), which only ∂m/∂σ at D = ∞ needs: σ³ ∂w_j/∂σ = w_j (‖ρ_j‖² − Σ w ‖ρ‖²).

    No kernel has this moment; it is summed by the reference, row by row, and only where r wants a gradient.
    """
    x, r, charges, log_weights, _, _, divisor, offset, aug_dim = query
    out = torch.empty_like(r)
    for i in range(x.shape[0]):
        seen = reference.row(x[i], r[i], charges, log_weights, divisor, offset, aug_dim)
        parts = reference.chunks(charges, divisor, offset, x.dtype)
        projected = torch.cat([(y - x[i]) @ u[i] for _, y in parts])
        out[i] = (seen.weights * seen.squares * projected).sum()
    return out


def _pad(count: int, by_x: Tensor, by_r: Tensor) -> tuple[Any, ...]:
    return (by_x, by_r, *([None] * (count - 2)))


def _posterior_mean_backward(ctx: Any, want_mean: Tensor, want_lse: Tensor) -> tuple[Any, ...]:
    query = _query(ctx)
    by_x, by_r = _mean_transpose(ctx, query, want_mean)
    lse_x, lse_r = _log_derivative(query, want_lse)
    return _pad(QUERY_LENGTH, by_x + lse_x, by_r + lse_r)


def _poisson_field_backward(ctx: Any, want_field: Tensor, want_lse: Tensor) -> tuple[Any, ...]:
    query = _query(ctx)
    by_x, by_r = _mean_transpose(ctx, query, want_field)
    lse_x, lse_r = _log_derivative(query, want_lse)
    return _pad(QUERY_LENGTH, want_field - by_x + lse_x, lse_r - by_r)


def _log_density_backward(ctx: Any, want: Tensor) -> tuple[Any, ...]:
    by_x, by_r = _log_derivative(_query(ctx), want)
    return _pad(QUERY_LENGTH, by_x, by_r)


def _field_step_backward(ctx: Any, want: Tensor) -> tuple[Any, ...]:
    query, r_next = _query(ctx), ctx.r_next
    r = query.r
    factor = (r_next - r) / r
    field, _ = torch.ops.pfgm_fast.poisson_field(*query)
    by_x, by_r = _mean_transpose(ctx, query, want)
    along = _rows(field, want)
    return (
        want + _outer(factor, want - by_x),
        -r_next / (r * r) * along - factor * by_r,
        *([None] * (QUERY_LENGTH - 2)),
        along / r,
    )


def _field_step_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save_query(ctx, inputs, output)
    ctx.r_next = inputs[QUERY_LENGTH]


def _score_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save_query(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[1:])


def _score_backward(ctx: Any, want: Tensor, *_: Tensor) -> tuple[Any, ...]:
    query = _query(ctx)
    x, r, aug_dim = query.x, query.r, query.aug_dim
    want = want.contiguous()
    gradient, _, rate, _, _ = torch.ops.pfgm_fast.score(*query)
    moment, projection = torch.ops.pfgm_fast.second_moment(*query, want, 2)
    factor = 1.0 if math.isinf(aug_dim) else 1 + 2 / (x.shape[1] + aug_dim)
    along = _rows(gradient, want)
    by_x = factor * moment - _outer(along, gradient) - _outer(rate, want)
    if math.isinf(aug_dim):  # g = (m − x)/σ²
        mean_by_r = _mean_transpose(ctx, query, want)[1]
        by_r = mean_by_r / (r * r) - 2 * along / r
    else:
        by_r = -r * (factor * projection - rate * along)
    return _pad(QUERY_LENGTH, by_x, by_r)


def _not_differentiable(name: str) -> Any:
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(f"pfgm_fast::{name} has no derivative: it is itself part of one")

    return backward


def _recompute(name: str) -> tuple[Any, Any]:
    """Autograd of a step through the reference's formula: a step is cheap, its derivative is nobody's hot path."""
    function = getattr(reference, name)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tensors_at = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensors_at))

    def backward(ctx: Any, *wants: Tensor) -> tuple[Any, ...]:
        arguments = list(ctx.others)
        leaves = [value.detach().requires_grad_() for value in ctx.saved_tensors]
        for i, leaf in zip(ctx.tensors_at, leaves, strict=True):
            arguments[i] = leaf
        with torch.enable_grad():
            outputs: Any = function(*arguments)
        results = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = torch.autograd.grad(results, leaves, wants, allow_unused=True)
        result: list[Any] = [None] * len(arguments)
        for i, gradient in zip(ctx.tensors_at, gradients, strict=True):
            result[i] = gradient
        return tuple(result)

    return setup, backward


def register(library: torch.library.Library) -> None:
    """Attach every operator's derivative; those without one raise at backward instead of giving none."""
    field = {
        "posterior_mean": (_save_query, _posterior_mean_backward),
        "poisson_field": (_save_query, _poisson_field_backward),
        "log_density": (_save_query, _log_density_backward),
        "score": (_score_setup, _score_backward),
        "field_step": (_field_step_setup, _field_step_backward),
        "second_moment": (None, _not_differentiable("second_moment")),
    }
    steps = {name: _recompute(name) for name in ("normalize_field", "drift", "euler_step", "heun_step")}
    for name, (setup, backward) in {**field, **steps}.items():
        torch.library.register_autograd(f"pfgm_fast::{name}", backward, setup_context=setup, lib=library)
