"""A solver is one file that knows no method: solve(flow, x, times, on_step, noise, **options) → x. It sees a flow (flows.Flow)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pfgm_fast.errors import ArgumentError
from pfgm_fast.solvers import (
    ancestral,
    dpm_solver,
    euler,
    euler_maruyama,
    heun,
    predictor_corrector,
    reverse_diffusion,
    rk45,
    unipc,
)

STOCHASTIC: dict[str, Callable[..., Tensor]] = {
    "euler_maruyama": euler_maruyama.solve,
    "reverse_diffusion": reverse_diffusion.solve,
    "predictor_corrector": predictor_corrector.solve,
    "ancestral": ancestral.solve,
}
"""Solvers that always draw noise, and need a stochastic method."""

SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler.solve,
    "heun": heun.solve,
    "dpm_solver++": dpm_solver.solve,
    "unipc": unipc.solve,
    "rk45": rk45.solve,
    **STOCHASTIC,
}

CHURN = ("S_churn", "S_min", "S_max", "S_noise")
OPTIONS: dict[str, tuple[str, ...]] = {
    "euler": CHURN,
    "heun": CHURN,
    "unipc": ("order",),
    "rk45": ("rtol", "atol", "norm", "max_nfe"),
    "predictor_corrector": ("snr",),
}
"""What each solver takes beside the grid."""


def solver(name: str, options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Raises: ArgumentError for an unknown name, or an option that the solver does not have."""
    if name not in SOLVERS:
        raise ArgumentError(f"solver must be one of {', '.join(SOLVERS)}; got {name!r}")
    known = OPTIONS.get(name, ())
    for option in options:
        if option not in known:
            raise ArgumentError(
                f"the solver {name!r} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )
    return SOLVERS[name]


__all__ = ["OPTIONS", "SOLVERS", "STOCHASTIC", "solver"]
