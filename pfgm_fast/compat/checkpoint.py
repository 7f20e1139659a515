"""Checkpoints of the authors' PFGM code (GitHub Newbeeer/Poisson_flow) as networks of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pfgm_fast.compat import modules as numbered
from pfgm_fast.compat.edm import fill
from pfgm_fast.errors import CheckpointError
from pfgm_fast.nn import DDPMpp, UNetConfig

EXPECTED = (
    "expected a checkpoint of Newbeeer/Poisson_flow: a dict with 'model' (names 'module.all_modules.…') and "
    "'ema' (with 'shadow_params', the parameters in order)"
)


def load_checkpoint(path: str | Path, image_size: numbered.Size = None, ema: bool = True) -> DDPMpp:
    """The network of an authors' checkpoint, in evaluation mode, on the CPU.

    The architecture is inferred from names and shapes; image_size, which they do not tell, is given (None: where attention would be
    at 16 × 16). ema: the averaged weights, which their samplers use, instead of the trained ones.
    Raises: CheckpointError for a file that is not one, is truncated, or is of another architecture than their DDPM++.
    """
    return network(numbered.read(path, EXPECTED), path, image_size, ema)


def network(loaded: Any, path: str | Path, image_size: numbered.Size = None, ema: bool = True) -> DDPMpp:
    """As `load_checkpoint`, of what `unpickler.load` found in the file."""
    modules = numbered.modules_of(loaded, path, EXPECTED, ema)
    try:
        return build(modules, numbered.config_of(modules, image_size))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; {EXPECTED}") from error


def build(modules: list[numbered.Module], config: UNetConfig) -> DDPMpp:
    """The network of modules that fit it. Raises: CheckpointError where they do not, or have no channel for v_z."""
    if numbered.output_channels(modules) != config.channels + 1:
        raise CheckpointError(
            f"the network has {numbered.output_channels(modules)} output channels, PFGM's has {config.channels + 1}"
        )
    with torch.device("meta"):
        net = DDPMpp(config)
    state = numbered.unet_state(net.unet, modules)  # type: ignore[arg-type]
    return fill(net, {f"unet.{name}": value for name, value in state.items()})
