"""A method is one file: its hyper-parameters, prior, perturbation, target, loss and the flow that samples it."""

from __future__ import annotations

from typing import Any

from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods.base import Method
from pfgm_fast.methods.pfgm import PFGM
from pfgm_fast.methods.pfgmpp import PFGMpp
from pfgm_fast.methods.vesde import VESDE
from pfgm_fast.methods.vpsde import VPSDE, SubVPSDE

METHODS: dict[str, type[Any]] = {kind.name: kind for kind in (PFGM, PFGMpp, VESDE, VPSDE, SubVPSDE)}


def from_dict(values: dict[str, Any]) -> Method:
    """A method from `to_dict()`'s result. Raises: ArgumentError for an unknown name or hyper-parameter."""
    values = dict(values)
    name = values.pop("name", None)
    if name not in METHODS:
        raise ArgumentError(f"the method must be one of {', '.join(METHODS)}; got {name!r}")
    try:
        return METHODS[name](**values)
    except TypeError as error:
        raise ArgumentError(f"method {name!r}: {error}") from None


__all__ = ["METHODS", "PFGM", "VESDE", "VPSDE", "Method", "PFGMpp", "SubVPSDE", "from_dict"]
