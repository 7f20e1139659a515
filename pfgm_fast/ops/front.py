"""The operators as the package calls them: `front.poisson_field(*query)` is `torch.ops.pfgm_fast.poisson_field(*query)`.

Most calls of a training or a sampler are ones that PyTorch's dispatcher, with a kernel of ours in Python at two of its keys, would only
pass on to the backend table. Those go straight to the table, which saves about 10 µs of the host's time each; a fused step takes 5 µs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pfgm_fast.ops import registration as _registration  # noqa: F401 - defines torch.ops.pfgm_fast
from pfgm_fast.ops.dispatch import TABLE, kernel

PLAIN = frozenset({Tensor, nn.Parameter, float, int, bool, NoneType})
"""Types of arguments that mean nothing to PyTorch beyond their values."""


def watched(args: tuple[Any, ...]) -> bool:
    """Whether the dispatcher has more to do than to pass a call on: something compiles, traces, transforms, counts or differentiates
    it, or its tensors are no plain ones on a device of the table."""
    return (
        torch.compiler.is_compiling()
        or not PLAIN.issuperset(map(type, args))
        or args[0].device.type not in TABLE
        or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args))
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    )


def _front(op: str) -> Callable[..., Any]:
    name, _, overload = op.partition(".")
    dispatched, straight = getattr(getattr(torch.ops.pfgm_fast, name), overload or "default"), kernel(op)

    def call(*args: Any) -> Any:
        return dispatched(*args) if watched(args) else straight(*args)

    return call


posterior_mean = _front("posterior_mean")
poisson_field = _front("poisson_field")
score = _front("score")
log_density = _front("log_density")
field_step = _front("field_step")
normalize_field = _front("normalize_field")
drift = _front("drift")
euler_step = _front("euler_step")
heun_step = _front("heun_step")
group_norm_silu = _front("group_norm_silu")

_into = kernel("euler_step.out")


def euler_step_into(*args: Any, out: Tensor) -> None:
    """The operator `euler_step.out`; its kernel keeps every promise of `out=` by itself."""
    (torch.ops.pfgm_fast.euler_step.out if watched((*args, out)) else _into)(*args, out=out)
