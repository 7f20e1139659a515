"""The operators' derivatives (`ops.derivatives`) in PyTorch: reverse and forward mode, torch.func's transforms, vmap.

Each operator gets two kernels here. At the dispatch key Autograd it records a Function where a gradient or a tangent is asked
for, and is passed on where not. At functorch's key it hands the same Function to torch.func, whose grad, vjp, jvp and vmap
then take backward, jvp and vmap from it; for vmap, mapped rows are more rows of one batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pfgm_fast.backends import reference
from pfgm_fast.checks import has_tangent
from pfgm_fast.errors import DerivativeError
from pfgm_fast.ops import derivatives
from pfgm_fast.ops.dispatch import chosen_backend, full_precision, use_backend

ROWS = ("x", "r", "u", "r_next")
"""Arguments of the field operators with one row a query; the others are the charges'."""


def _overload(op: str) -> Any:
    name, _, overload = op.partition(".")
    return getattr(getattr(torch.ops.pfgm_fast, name), overload or "default")


def _differentiated(args: tuple[Any, ...]) -> bool:
    """Whether autograd, in either mode, has to know of a call with these arguments."""
    return (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)) or _has_tangent(args)


def _has_tangent(args: tuple[Any, ...]) -> bool:
    return forward_ad._current_level >= 0 and any(isinstance(a, Tensor) and has_tangent(a) for a in args)


@contextlib.contextmanager
def _as_in_forward(backend: str, like: Tensor) -> Iterator[None]:
    """Derivatives run with the backend that was chosen for their forward, whatever thread they run in, and without autocast."""
    with use_backend(backend), full_precision(like.device.type):
        yield


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.there = [isinstance(value, Tensor) for value in inputs]
    ctx.backend = chosen_backend()


def _saved(ctx: Any) -> tuple[Any, ...]:
    tensors = iter(ctx.saved_tensors)
    return tuple(next(tensors) if there else o for there, o in zip(ctx.there, ctx.others, strict=True))


def _field_function(op: str, rule: derivatives.Derivatives) -> type[torch.autograd.Function]:
    overload = _overload(op)
    names = [argument.name for argument in overload._schema.arguments]

    def refuse(asked: list[str]) -> None:
        if refused := [name for name in asked if name not in rule.by]:
            raise DerivativeError(f"{op} has no derivative with respect to {refused[0]}: {rule.refusal}")

    class FieldFunction(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _save(ctx, inputs)
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *wants: Tensor | None) -> Any:
            asked = [name for name, needed in zip(names, ctx.needs_input_grad, strict=True) if needed]
            if all(want is None for want in wants):
                return (None,) * len(names)
            refuse(asked)
            args = _saved(ctx)
            with _as_in_forward(ctx.backend, args[0]):
                found = rule.pull(args, wants, asked)
            return tuple(found.get(name) if name in asked else None for name in names)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            moves = {n: t for n, t in zip(names, tangents, strict=True) if isinstance(t, Tensor)}
            refuse(list(moves))
            args = _saved(ctx)
            # PyTorch calls this with forward mode off, which would make an outer jvp (forward over forward) silently 0.
            with _as_in_forward(ctx.backend, args[0]), forward_ad._set_fwd_grad_enabled(True):
                primals = (forward_ad.unpack_dual(a).primal if isinstance(a, Tensor) else a for a in args)
                found = rule.push(tuple(primals), moves)
            return found if len(found) > 1 else found[0]

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
            """Rows of the mapped dimension become rows of the batch."""
            folded = []
            for name, dim, value in zip(names, in_dims, args, strict=True):
                if name in ROWS:
                    rows = (
                        value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
                    )
                    value = rows.reshape(-1, *rows.shape[2:]).contiguous()
                elif dim is not None:
                    raise DerivativeError(
                        f"{op} cannot be mapped (vmap) over {name}: map over x and r, or loop"
                    )
                folded.append(value)
            found = FieldFunction.apply(*folded)
            if isinstance(found, Tensor):
                return found.reshape(info.batch_size, -1, *found.shape[1:]), 0
            parts = tuple(part.reshape(info.batch_size, -1, *part.shape[1:]) for part in found)
            return parts, (0,) * len(parts)

    FieldFunction.__name__ = FieldFunction.__qualname__ = op
    return FieldFunction


def _through_formula(
    formula: Callable[..., Any], args: tuple[Any, ...], needed: tuple[bool, ...], wants: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The gradients of a formula, itself differentiable where create_graph asks for it."""
    again = torch.is_grad_enabled()  # create_graph: the gradient is to be differentiated itself
    # Views: what one argument owes to another is not this formula's derivative.
    args = tuple(
        (a.view_as(a) if again else a.detach()).requires_grad_()
        if asked and not again
        else a.view_as(a)
        if asked
        else a
        for a, asked in zip(args, needed, strict=True)
    )
    places = [i for i, asked in enumerate(needed) if asked]
    with torch.enable_grad(), full_precision(wants[0].device.type):
        outputs = formula(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = torch.autograd.grad(
            outputs[: len(wants)], [args[i] for i in places], wants, create_graph=again, allow_unused=True
        )
    result: list[Any] = [None] * len(args)
    for i, gradient in zip(places, found, strict=True):
        result[i] = gradient
    return tuple(result)


def _step_function(op: str, formula: Callable[..., Any]) -> type[torch.autograd.Function]:
    """Reverse mode of a step through the reference's formula: a step is cheap, its derivative is nobody's hot path."""
    overload = _overload(op)

    class StepFunction(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _save(ctx, inputs)

        @staticmethod
        def backward(ctx: Any, *wants: Tensor) -> tuple[Any, ...]:
            return _through_formula(formula, _saved(ctx), ctx.needs_input_grad, wants)

    StepFunction.__name__ = StepFunction.__qualname__ = op
    return StepFunction


class GroupNormSiLU(torch.autograd.Function):
    """Reverse mode of `group_norm_silu` by `group_norm_silu_backward`; where the gradient itself is to be differentiated, through the
    reference's formula. mean and rstd have no derivatives."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        x, weight, bias, groups, eps, silu, add, scale, shift = args
        with torch._C._AutoDispatchBelowAutograd():
            out, mean, rstd = torch.ops.pfgm_fast.group_norm_silu.default(*args)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, weight, bias, mean, rstd, add, scale, shift)
        ctx.groups, ctx.silu, ctx.eps, ctx.backend = groups, silu, eps, chosen_backend()
        return out, mean, rstd

    @staticmethod
    def backward(ctx: Any, *wants: Any) -> tuple[Any, ...]:
        x, weight, bias, mean, rstd, add, scale, shift = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.is_grad_enabled():
            args = (x, weight, bias, ctx.groups, ctx.eps, ctx.silu, add, scale, shift)
            return _through_formula(reference.group_norm_silu, args, need, wants[:1])
        # x's dtype and layout
        want = (
            torch.empty_like(x).copy_(wants[0]) if wants[0].stride() != x.stride() else wants[0].to(x.dtype)
        )
        with _as_in_forward(ctx.backend, x):
            dx, sums = torch.ops.pfgm_fast.group_norm_silu_backward(
                want, x, weight, bias, mean, rstd, ctx.groups, ctx.silu, add, scale, shift
            )
        by_z, by_gain, by_add = sums.unbind(1)
        by_scale = None
        if scale is not None:
            by_scale = torch.addcmul(bias * by_z, weight, by_gain) if need[7] else None
            sums = sums * (1 + scale)[:, None]
        total = sums[:, :2].sum(0) if need[1] or need[2] else (None, None)
        return (
            dx,
            total[1],
            total[0],
            *(None, None, None),
            by_add if need[6] else None,
            by_scale,
            by_z if need[8] else None,
        )


def _register_one(
    library: torch.library.Library,
    op: str,
    function: type[torch.autograd.Function],
    in_forward_mode: Callable[..., Any],
    transformed: Callable[..., Any],
) -> None:
    """The two kernels: in_forward_mode where tangents are about, transformed under torch.func."""
    overload = _overload(op)

    def autograd(keys: Any, *args: Any) -> Any:
        if _has_tangent(args):
            return in_forward_mode(*args)
        if _differentiated(args):
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *args)

    library.impl(op, autograd, "Autograd", with_keyset=True)
    library.impl(op, transformed, "FuncTorchDynamicLayerFrontMode")


def register(library: torch.library.Library) -> None:
    """Attach every operator's derivatives; what an operator does not have raises a DerivativeError."""
    for op, rule in derivatives.FIELD.items():
        function = _field_function(op, rule)
        _register_one(library, op, function, function.apply, function.apply)
    for op in derivatives.STEPS:
        formula = _in_full_precision(getattr(reference, op))
        _register_one(library, op, _step_function(op, formula), formula, formula)
    formula = _in_full_precision(reference.group_norm_silu)
    _register_one(library, "group_norm_silu", GroupNormSiLU, formula, formula)
    library.impl("euler_step.out", _no_transform_into_out, "FuncTorchDynamicLayerFrontMode")


def _no_transform_into_out(*args: Any, out: Tensor) -> None:
    raise DerivativeError("euler_step cannot be transformed by torch.func with out=: leave out away")


def _in_full_precision(formula: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with full_precision(args[0].device.type):
            return formula(*args)

    return call
