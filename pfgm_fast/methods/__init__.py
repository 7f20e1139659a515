"""A method is one file: its hyper-parameters, prior, perturbation, target, loss and the flow that samples it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods.base import Method
from pfgm_fast.methods.pfgm import PFGM
from pfgm_fast.methods.pfgmpp import EDM, PFGMpp
from pfgm_fast.methods.vesde import VESDE
from pfgm_fast.methods.vpsde import VPSDE, SubVPSDE

METHODS: dict[str, type[Any]] = {kind.name: kind for kind in (PFGM, PFGMpp, EDM, VESDE, VPSDE, SubVPSDE)}


OLD_NAMES = {"data_std": "sigma_data", "log_mean": "P_mean", "log_std": "P_std"}


def todays_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as earlier versions or JSON wrote them, all or some, by the names and numbers of today."""
    values = {OLD_NAMES.get(k, k): math.inf if v == "inf" else v for k, v in given.items()}
    if OLD_NAMES.keys() & given.keys():
        values.setdefault("c_noise_scale", 250.0)
    return values


def from_dict(given: dict[str, Any]) -> Method:
    """A method from `to_dict()`'s result, also as earlier versions wrote it (their PFGM++ networks were given 250 ln σ).

    Raises: ArgumentError for an unknown name or hyper-parameter.
    """
    values = todays_names(given)
    name = values.pop("name", None)
    if name not in METHODS:
        raise ArgumentError(f"the method must be one of {', '.join(METHODS)}; got {name!r}")
    try:
        return METHODS[name](**values)
    except TypeError as error:
        raise ArgumentError(f"method {name!r}: {error}") from None


__all__ = [
    "EDM",
    "METHODS",
    "PFGM",
    "VESDE",
    "VPSDE",
    "Method",
    "PFGMpp",
    "SubVPSDE",
    "from_dict",
    "todays_names",
]
