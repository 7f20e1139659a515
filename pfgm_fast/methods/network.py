"""What may stand for a network, and the one place that calls it.

- `net(x, condition[, labels])`, x (B, *shape), condition (B,): the raw network of a method, for instance `nn.DDPMpp`. It returns
  (v_x (B, *shape), v_z (B,)), or v_x alone (a tensor, or what has one as `.sample`). What x and the condition are, the method says:
  PFGM: x, z → its normalised field; v_z, where it is not given, follows from ‖v_x‖.
  PFGM++ and EDM: c_in x, c_noise = ln(σ)/4 → F, of which the denoiser is made.
  VE, VP, sub-VP: x, 999 t → s(t) times the score, that is −ε.
- a denoiser D(x, sigma[, labels]) → E[y | x] (B, *shape), σ (B,): any module with `sigma_min` and `sigma_max` (those of `compat.edm`,
  `IdealDenoiser`), or whatever else is wrapped in `Denoiser`. It serves every method.

labels (B,) int64, or one-hot (B, classes), are passed where they are given. A module gets everything in its parameters' dtype, so that
a solver may keep x in float64.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pfgm_fast.errors import ArgumentError

Network = Callable[..., Any]
"""net(x (B, *shape), condition (B,)[, labels]), or a denoiser."""

CONTRACT = (
    "a network is called as net(x (B, *shape), condition (B,)[, labels]) and returns (v_x, v_z), v_x of x's shape and v_z (B,), "
    "or v_x alone; a denoiser D(x, sigma[, labels]) of x's shape is given as pf.Denoiser(net)"
)


class Denoiser(nn.Module):
    """Marks net(x (B, *shape), sigma (B,)[, labels]) → E[y | x] (B, *shape) as a denoiser, so that `sample` takes it with any method.

    Args:
        net: What is called; values and σ > 0 in units of the data.
        sigma_min, sigma_max: The noise it was trained for, σ ≥ 0; sampling stays within.
        aug_dim: The D ∈ (0, ∞] for which it was made (there r = σ√D); None: it is not said.

    Raises:
        ArgumentError: At the first call in `sample`: an output that is not of x's shape.
    """

    def __init__(
        self,
        net: Network,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        aug_dim: float | None = None,
    ) -> None:
        super().__init__()
        self.net, self.sigma_min, self.sigma_max, self.aug_dim = net, sigma_min, sigma_max, aug_dim

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Any:
        return self.net(x, sigma) if labels is None else self.net(x, sigma, labels)


def is_denoiser(net: Any) -> bool:
    """A module with the noise range of EDM's; also inside DistributedDataParallel and its like."""
    inner = getattr(net, "module", net)
    return all(hasattr(inner, name) for name in ("sigma_min", "sigma_max"))


def own_aug_dim(net: Any) -> float | None:
    """The D for which a denoiser was made, where it says so."""
    return getattr(getattr(net, "module", net), "aug_dim", None) if is_denoiser(net) else None


def check_network(net: Any, labels: Any = None) -> None:
    """Raises: ArgumentError for what cannot be called with x, a condition and, where they are given, labels."""
    given = (None,) * (2 if labels is None else 3)
    try:
        inspect.signature(net.forward if isinstance(net, nn.Module) else net).bind(*given)
    except TypeError as error:
        raise ArgumentError(f"net {type(net).__name__}: {error}; {CONTRACT}") from None
    except ValueError:  # a callable of C without a signature
        pass


def call_network(
    net: Network,
    x: Tensor,  # (B, *shape)
    condition: Tensor,  # (B,)
    labels: Tensor | None = None,  # (B,) or (B, classes)
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """v_x (B, *shape) and v_z (B,) or None, in the network's own dtype. more: further keywords of the network. Raises: ArgumentError, with the contract, for anything else."""
    dtype = _dtype_of(net) or x.dtype
    arguments = (x.to(dtype), condition.to(dtype))
    out = net(*arguments, **more) if labels is None else net(*arguments, labels, **more)
    out = getattr(out, "sample", out)  # of the diffusers library's output classes
    first, second = (out, None) if isinstance(out, Tensor) else _pair(out)
    if first.shape != x.shape or (second is not None and second.shape != condition.shape):
        got = " and ".join(str(tuple(v.shape)) for v in (first, second) if v is not None)
        raise ArgumentError(f"the network returned {got} for x {tuple(x.shape)}; {CONTRACT}")
    return first, second


def call_denoiser(
    net: Network, x: Tensor, sigma: Tensor, labels: Tensor | None = None, **more: Any
) -> Tensor:
    """D(x; σ) (B, *shape) in x's dtype."""
    return call_network(net, x, sigma, labels, **more)[0].to(x.dtype)


def _pair(out: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(out, (tuple, list)) and 1 <= len(out) <= 2 and all(isinstance(v, Tensor) for v in out):
        return out[0], (out[1] if len(out) == 2 else None)
    raise ArgumentError(f"the network returned {type(out).__name__}; {CONTRACT}")


def _dtype_of(net: Any) -> torch.dtype | None:
    parameters = net.parameters() if isinstance(net, nn.Module) else iter(())
    return next((p.dtype for p in parameters if p.is_floating_point()), None)


@contextmanager
def evaluation_mode(net: Any) -> Iterator[None]:
    """A module is in evaluation mode within, and as it was afterwards; anything else is left alone."""
    training = isinstance(net, nn.Module) and net.training
    if training:
        net.eval()
    try:
        yield
    finally:
        if training:
            net.train()
