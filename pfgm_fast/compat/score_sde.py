"""Checkpoints of yang-song/score_sde_pytorch (`checkpoint_N.pth`): NCSN++ and DDPM++, continuous, for VE, VP and sub-VP.

The architecture is inferred as far as names and shapes tell it; what they do not (image size, sub-VP instead of VP, the FIR filter, whether
the data were in [0, 1]) are arguments with the published configurations' values as defaults.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pfgm_fast.compat import modules as numbered
from pfgm_fast.compat.edm import fill
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.nn import VE, VP, NCSNpp, Preconditioned, SubVP

EXPECTED = (
    "expected a checkpoint of yang-song/score_sde_pytorch: a dict with 'model' (names 'module.all_modules.…') of an NCSN++ or "
    "DDPM++ with BigGAN blocks, and 'ema' (with 'shadow_params')"
)


def load_checkpoint(
    path: str | Path,
    image_size: numbered.Size = None,
    sde: str | None = None,
    *,
    ema: bool = True,
    centered: bool | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    resample_filter: tuple[float, ...] | None = None,
) -> Preconditioned:
    """The denoiser of a file, `(x, sigma)` → D(x; σ) for data in [−1, 1], in evaluation mode, on the CPU.

    image_size: None: where attention would be at 16 × 16, as in the published configurations.
    sde: "ve", "vp" or "subvp"; None: VE where the noise level goes through Fourier features, else VP.
    centered: whether the network was trained on data in [−1, 1] (config.data.centered); None: in [0, 1] for VE, as published. Their σ is of
    those data, and a [0, 1] network is given σ/2, its input scaled as it does itself.
    sigma_min, sigma_max: VE's, of their data (published: 0.01, and 50 for CIFAR-10); beta_min, beta_max: VP's.
    resample_filter: None: (1, 3, 3, 1) with Fourier features or an input pyramid, else (1, 1).
    Raises: CheckpointError for a file of another kind or architecture, or a PFGM network (`compat.poisson_flow`).
    """
    options = {
        "sde": sde,
        "centered": centered,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "beta_min": beta_min,
        "beta_max": beta_max,
        "resample_filter": resample_filter,
    }
    return network(numbered.read(path, EXPECTED), path, image_size, ema, **options)


def network(
    loaded: Any, path: str | Path, image_size: numbered.Size = None, ema: bool = True, **options: Any
) -> Preconditioned:
    """As `load_checkpoint`, of what `unpickler.load` found in the file."""
    modules = numbered.modules_of(loaded, path, EXPECTED, ema)
    taps = options.pop("resample_filter", None)
    try:
        config = numbered.config_of(modules, image_size, **({"resample_filter": taps} if taps else {}))
        if numbered.output_channels(modules) != config.channels:
            raise CheckpointError(
                f"the network has {numbered.output_channels(modules)} output channels for {config.channels} of the image"
            )
        with torch.device("meta"):
            net = _preconditioned(NCSNpp(config), **options)
        state = numbered.unet_state(net.model, modules)  # type: ignore[arg-type]
        return fill(net, {f"model.{name}": value for name, value in state.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; {EXPECTED}") from error


def _preconditioned(
    net: NCSNpp,
    sde: str | None = None,
    centered: bool | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
) -> Preconditioned:
    """Their score as our denoiser: VE's output is the score times σ, VP's is −ε at the condition 999 t."""
    if sde is None:
        sde = "ve" if net.config.embedding == "fourier" else "vp"
    if sde == "ve":
        # x in [0, 1] becomes 2x − 1 in their network: the input is that of [−1, 1], where σ is twice theirs.
        unit = 1.0 if centered else 2.0
        ends = {"sigma_min": unit * (sigma_min or 0.01), "sigma_max": unit * (sigma_max or 50.0)}
        return VE(net, noise_scale=1 / unit, **ends)
    if sde not in ("vp", "subvp"):
        raise ArgumentError(f"sde must be ve, vp or subvp; got {sde!r}")
    if centered is False:
        raise ArgumentError("VP and sub-VP networks are trained on data in [−1, 1] (centered)")
    if not math.isfinite(beta_max) or beta_max <= beta_min:
        raise ArgumentError(f"beta_max must be > beta_min; got {beta_max}, {beta_min}")
    return (VP if sde == "vp" else SubVP)(net, beta_d=beta_max - beta_min, beta_min=beta_min)


__all__ = ["load_checkpoint"]
