"""The network that a run's config describes."""

from __future__ import annotations

import math

from torch import nn

from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods import PFGM, Method
from pfgm_fast.nn import DDPMpp, denoiser
from pfgm_fast.training.config import RunConfig


def build(config: RunConfig, method: Method) -> nn.Module:
    """Freshly initialised: `DDPMpp`, the method's raw network, or with `config.preconditioning` a denoiser D(x; σ) for the method's data.

    Raises: ArgumentError where the preconditioning asks for what the method does not say.
    """
    kind = config.preconditioning
    if kind is None:
        return DDPMpp(config.network)
    if kind != "edm":
        net = denoiser(config.network, kind)
        net.aug_dim = aug_dim_of(method)
        return net
    known = {name: getattr(method, name, None) for name in ("sigma_data", "sigma_min", "sigma_max")}
    if known["sigma_data"] is None:
        raise ArgumentError(
            f"preconditioning edm needs sigma_data, which method {method.name} does not have: take pfgmpp or edm, or none"
        )
    return denoiser(config.network, kind, aug_dim=aug_dim_of(method), **known)


def aug_dim_of(method: Method) -> float:
    """D of the field that a method's denoiser belongs to: 1 of PFGM, ∞ of diffusion."""
    return 1.0 if isinstance(method, PFGM) else float(getattr(method, "aug_dim", math.inf))
