"""Networks: UNets of the score-SDE line and ADM, PFGM's network over them, the preconditionings that make denoisers of them, and what their
training adds: the average of the weights, augmentation with labels."""

from __future__ import annotations

from typing import Any

from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn.adm import ADM
from pfgm_fast.nn.augment import Augmentation, AugmentPipe, augmented_posterior_mean
from pfgm_fast.nn.average import EMA, ema_decay
from pfgm_fast.nn.config import UNetConfig
from pfgm_fast.nn.ddpmpp import DDPMpp, unet
from pfgm_fast.nn.ncsnpp import NCSNpp
from pfgm_fast.nn.preconditioning import EDM, IDDPM, PRECONDITIONINGS, VE, VP, Guided, Preconditioned, SubVP


def denoiser(config: UNetConfig, preconditioning: str = "edm", **settings: Any) -> Preconditioned:
    """D(x; σ) of a UNetConfig. preconditioning: edm, vp, subvp, ve, iddpm (which predicts variances too); settings: its arguments.

    Raises: ArgumentError for another name.
    """
    if preconditioning not in PRECONDITIONINGS:
        raise ArgumentError(
            f"preconditioning must be one of {', '.join(PRECONDITIONINGS)}; got {preconditioning!r}"
        )
    out = 2 * config.channels if preconditioning == "iddpm" else config.channels
    return PRECONDITIONINGS[preconditioning](unet(config, out), **settings)


__all__ = [
    "ADM",
    "EDM",
    "EMA",
    "IDDPM",
    "PRECONDITIONINGS",
    "VE",
    "VP",
    "AugmentPipe",
    "Augmentation",
    "DDPMpp",
    "Guided",
    "NCSNpp",
    "Preconditioned",
    "SubVP",
    "UNetConfig",
    "augmented_posterior_mean",
    "denoiser",
    "ema_decay",
    "unet",
]
