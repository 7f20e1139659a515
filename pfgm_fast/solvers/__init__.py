"""A solver is one file that knows no method: solve(flow, x, steps, on_step) → x. It sees a flow (methods.base.Flow)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pfgm_fast.errors import ArgumentError
from pfgm_fast.solvers import euler, heun, rk45, stochastic

STOCHASTIC: dict[str, Callable[..., Tensor]] = {
    "euler_maruyama": stochastic.euler_maruyama,
    "reverse_diffusion": stochastic.reverse_diffusion,
    "predictor_corrector": stochastic.predictor_corrector,
}
"""Solvers that draw noise, with the keyword `generator`, and need a stochastic method."""

SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler.solve,
    "heun": heun.solve,
    "rk45": rk45.solve,
    **STOCHASTIC,
}


def solver(name: str) -> Callable[..., Tensor]:
    """Raises: ArgumentError for an unknown name."""
    if name not in SOLVERS:
        raise ArgumentError(f"solver must be one of {', '.join(SOLVERS)}; got {name!r}")
    return SOLVERS[name]


__all__ = ["SOLVERS", "STOCHASTIC", "solver"]
