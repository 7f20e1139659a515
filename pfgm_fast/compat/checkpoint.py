"""Checkpoints of the authors' PFGM code (GitHub Newbeeer/Poisson_flow) as networks of this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfgm_fast.errors import CheckpointError
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.nn.layers import Attention, ResidualBlock

EXPECTED = (
    "expected a checkpoint of Newbeeer/Poisson_flow: a dict with 'model' (names 'module.all_modules.…') and "
    "'ema' (with 'shadow_params', the parameters in order)"
)
_NAME = re.compile(r"^(?:module\.)?all_modules\.(\d+)\.(.+)$")
_RESIDUAL = {
    "norm_in": "GroupNorm_0",
    "conv_in": "Conv_0",
    "embed": "Dense_0",
    "norm_out": "GroupNorm_1",
    "conv_out": "Conv_1",
    "skip": "Conv_2",
}

Modules = dict[int, dict[str, Any]]
"""Number of the authors' module → name within → tensor (or its shape)."""


def load_checkpoint(path: str | Path, image_size: int, ema: bool = True) -> DDPMpp:
    """The network of an authors' checkpoint, in evaluation mode, on the CPU.

    The architecture is inferred from names and shapes; image_size, which they do not tell, is given. ema: the averaged weights, which
    their samplers use, instead of the trained ones.
    Raises: CheckpointError for a file that is not one, is truncated, or is of another architecture than their DDPM++.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except Exception as error:  # zip, pickle and format errors all mean one thing
        raise CheckpointError(f"{path} cannot be read ({error}); {EXPECTED}") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("model"), dict):
        raise CheckpointError(f"{path} holds no 'model'; {EXPECTED}")
    names = [name for name in loaded["model"] if _NAME.match(name)]
    values = [loaded["model"][name] for name in names]
    if ema:
        shadow = loaded.get("ema", {}).get("shadow_params") if isinstance(loaded.get("ema"), dict) else None
        if not isinstance(shadow, list) or [v.shape for v in shadow] != [v.shape for v in values]:
            raise CheckpointError(f"{path}: 'ema' does not hold the model's parameters in order; {EXPECTED}")
        values = shadow
    modules = _grouped(zip(names, values, strict=True))
    net = DDPMpp(infer_config({i: _shapes(m) for i, m in modules.items()}, image_size))
    with torch.no_grad():
        for index, layer in enumerate(net.blocks_in_order()):
            _fill(layer, modules[index], f"{path}: module {index}")
    return net.eval()


def _grouped(pairs: Any) -> Modules:
    modules: Modules = {}
    for name, value in pairs:
        match = _NAME.match(name)
        if match:
            modules.setdefault(int(match[1]), {})[match[2]] = value
    return modules


def _shapes(module: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.items()}


def infer_config(modules: dict[int, dict[str, tuple[int, ...]]], image_size: int) -> UNetConfig:
    """The DDPM++ whose modules have these shapes: module number → name → shape.

    The down path is read block by block: a residual block whose 1×1 skip keeps the number of channels is a down-sampling; a NIN is an
    attention. The middle (residual, attention, residual) ends it. Raises: CheckpointError where that fails.
    """
    try:
        width, channels = modules[2]["weight"][:2]
        levels, blocks, attention = [width], [0], set()
        features, index = width, 3
        while True:
            block = modules[index]
            if "NIN_0.W" in block:
                raise CheckpointError(
                    f"module {index} is an attention where a block was expected; {EXPECTED}"
                )
            out, into = block["Conv_0.weight"][:2]
            attends = "NIN_0.W" in modules.get(index + 1, {})
            skip = "Conv_2.weight" in block
            if skip and into == out and into == features:  # down-sampling
                levels.append(out)
                blocks.append(0)
                index += 1
                continue
            after = modules.get(index + 3, {}).get("Conv_0.weight", (0, 0))
            if (
                attends and not skip and after[1] > features
            ):  # this was the middle: the up path begins with a skip beside
                break
            levels[-1] = features = out
            blocks[-1] += 1
            if attends:
                attention.add(image_size >> (len(levels) - 1))
            index += 2 if attends else 1
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"the weights are not those of a DDPM++ ({error!r} at a module); {EXPECTED}"
        ) from error
    if len(set(blocks)) != 1 or any(level % width for level in levels):
        raise CheckpointError(f"levels of {levels} features with {blocks} blocks are no DDPM++; {EXPECTED}")
    config = UNetConfig(
        channels, image_size, width, tuple(level // width for level in levels), blocks[0], tuple(attention)
    )
    return config


def _fill(layer: nn.Module, module: dict[str, Tensor], where: str) -> None:
    if isinstance(layer, ResidualBlock):
        for mine, theirs in _RESIDUAL.items():
            part = getattr(layer, mine)
            if part is not None:
                _copy(part.weight, module[f"{theirs}.weight"], where)
                _copy(part.bias, module[f"{theirs}.bias"], where)
    elif isinstance(layer, Attention):
        _copy(layer.norm.weight, module["GroupNorm_0.weight"], where)
        _copy(layer.norm.bias, module["GroupNorm_0.bias"], where)
        # Their NIN multiplies from the right, W (in, out); three of them are one 1×1 convolution here.
        weights = torch.cat([module[f"NIN_{k}.W"].T for k in range(3)])
        _copy(layer.qkv.weight, weights[..., None, None], where)
        _copy(layer.qkv.bias, torch.cat([module[f"NIN_{k}.b"] for k in range(3)]), where)
        _copy(layer.out.weight, module["NIN_3.W"].T[..., None, None], where)
        _copy(layer.out.bias, module["NIN_3.b"], where)
    else:
        _copy(layer.weight, module["weight"], where)
        _copy(layer.bias, module["bias"], where)


def _copy(mine: Any, theirs: Tensor, where: str) -> None:
    if mine.shape != theirs.shape:
        raise CheckpointError(
            f"{where} has shape {tuple(theirs.shape)}, the network needs {tuple(mine.shape)}; is image_size right?"
        )
    mine.copy_(theirs)
