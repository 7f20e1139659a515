"""Checkpoints of score_sde_pytorch and of Poisson_flow, which is made of it: numbered modules as a `UNet` of this package.

Both list the network's layers in the order of their making, `all_modules.0` on, without names. Here each is recognised by the names of its
parameters, the architecture by their shapes, and the weights are put under our names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.compat.unpickler import StoredTensor, load
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.nn import NCSNpp, UNetConfig
from pfgm_fast.nn.layers import UNetBlock

_NAME = re.compile(r"^(?:module\.)?all_modules\.(\d+)\.(.+)$")
_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "skip": "Conv_2",
}
"""Our name → theirs, of a residual block's parts."""

Size = int | tuple[int, int] | None
Module = dict[str, Any]
"""Name within a module → tensor, or anything else with a shape."""


def is_ours(loaded: Any) -> bool:
    """Whether a loaded file has the form of these programs' checkpoints."""
    model = loaded.get("model") if isinstance(loaded, dict) else None
    return isinstance(model, dict) and any(_NAME.match(str(name)) for name in model)


def read(path: str | Path, expected: str) -> Any:
    """What the file holds. Raises: CheckpointError, with what was expected."""
    try:
        return load(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {expected}") from None


def modules_of(loaded: Any, path: str | Path, expected: str, ema: bool) -> list[Module]:
    """The numbered modules of a loaded file, in order, with the averaged weights or the trained ones. Raises: CheckpointError."""
    if not isinstance(loaded, dict) or not isinstance(loaded.get("model"), dict):
        raise CheckpointError(f"{path} holds no 'model'; {expected}")
    model = {str(name): value for name, value in loaded["model"].items() if _NAME.match(str(name))}
    if not model or not all(isinstance(value, StoredTensor) for value in model.values()):
        raise CheckpointError(f"{path}: 'model' holds no tensors 'all_modules.…'; {expected}")
    if ema:
        average = loaded.get("ema")
        shadow = average.get("shadow_params") if isinstance(average, dict) else None
        trained = [
            name for name in model if not name.endswith("all_modules.0.W")
        ]  # W is fixed: no average of it
        names = list(model) if isinstance(shadow, list) and len(shadow) == len(model) else trained
        if not isinstance(shadow, list) or [getattr(v, "shape", None) for v in shadow] != [
            model[n].shape for n in names
        ]:
            raise CheckpointError(f"{path}: 'ema' does not hold the model's parameters in order; {expected}")
        model |= dict(zip(names, shadow, strict=True))
    return grouped(model.items())


def grouped(pairs: Iterable[tuple[str, Any]]) -> list[Module]:
    """Modules in order, of a state dict's names and values; other names are passed over. Raises: CheckpointError for a gap."""
    modules: dict[int, Module] = {}
    for name, value in pairs:
        match = _NAME.match(name)
        if match:
            modules.setdefault(int(match[1]), {})[match[2]] = value
    # Activations and shared layers hold no parameters: their numbers are missing.
    return [modules[number] for number in sorted(modules)]


def _kind(module: Module) -> str:
    if "NIN_0.W" in module:
        return "attention"
    if "GroupNorm_1.weight" in module:
        return "block"
    if "W" in module:
        return "fourier"
    if "Conv2d_0.weight" in module or "Conv_0.weight" in module:
        return "pyramid"
    weight = module.get("weight")
    return {1: "norm", 2: "linear", 4: "conv"}.get(len(weight.shape) if weight is not None else 0, "unknown")


def infer_config(modules: list[Module], image_size: Size = None) -> UNetConfig:
    """The UNet whose modules have these names and shapes; output channels are those of the last convolution.

    image_size: N or (H, W), which they do not tell; None: as if attention were at 16 × 16, as in every published configuration, else 32.
    The down path is read block by block: a residual block whose 1×1 skip keeps the number of channels is a down-sampling. The middle
    (block, attention, block) ends it. The FIR filter, which is nowhere in the file, is taken to go with the Fourier embedding or
    with residual input, as in every published configuration. Raises: CheckpointError where the modules are no such UNet's.
    """
    kinds = [_kind(module) for module in modules]
    try:
        fourier = kinds[0] == "fourier"
        first = int(fourier)
        if kinds[first : first + 3] != ["linear", "linear", "conv"]:
            raise CheckpointError(
                f"the weights are not those of a DDPM++: the first modules are {', '.join(kinds[: first + 3])}"
            )
        embedding = modules[first]["weight"].shape
        width, channels = modules[first + 2]["weight"].shape[:2]
        levels, blocks, attention, encoder = [width], [0], set(), "standard"
        features, at = width, first + 3
        while True:
            if kinds[at] != "block":
                raise CheckpointError(f"module {at} is {kinds[at]} where a block was expected")
            out, into = modules[at]["Conv_0.weight"].shape[:2]
            skip, attends = "Conv_2.weight" in modules[at], kinds[at + 1] == "attention"
            if skip and into == out == features:  # down-sampling
                levels.append(out)
                blocks.append(0)
                at += 1
                if kinds[at] == "pyramid":
                    weight = next(value for name, value in modules[at].items() if name.endswith("weight"))
                    encoder = "residual" if weight.shape[-1] == 3 else "skip"
                    at += 1
                continue
            beside = modules[at + 3].get("Conv_0.weight") if at + 3 < len(modules) else None
            if attends and not skip and beside is not None and beside.shape[1] > features:
                break  # this was the middle: the up path begins with the skip's features beside
            levels[-1] = features = out
            blocks[-1] += 1
            if attends:
                attention.add(len(levels) - 1)
            at += 2 if attends else 1
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the weights are not those of a DDPM++ ({error!r} at a module)") from error
    if len(set(blocks)) != 1 or any(level % width for level in levels):
        raise CheckpointError(f"levels of {levels} features with {blocks} blocks are no DDPM++")
    if image_size is None:
        image_size = 16 << min(attention) if attention else 32
    height = image_size if isinstance(image_size, int) else image_size[0]
    heads = [i for i, kind in enumerate(kinds) if kind == "norm"]
    return UNetConfig(
        channels,
        image_size,
        width,
        tuple(level // width for level in levels),
        blocks[0],
        tuple(height >> level for level in sorted(attention)),
        embedding="fourier" if fourier else "positional",
        encoder=encoder,
        decoder="skip" if len(heads) > 1 else "standard",
        noise_multiplier=embedding[1] // width,
        embedding_multiplier=embedding[0] // width,
        resample_filter=(1, 3, 3, 1) if fourier or encoder != "standard" else (1, 1),
    )


def output_channels(modules: list[Module]) -> int:
    """Channels of the last convolution. Raises: CheckpointError where the last module is none."""
    weight = modules[-1].get("weight") if modules else None
    if weight is None or len(weight.shape) != 4:
        raise CheckpointError("the last module is no convolution")
    return int(weight.shape[0])


def unet_state(net: NCSNpp, modules: list[Module]) -> dict[str, Tensor]:
    """The state dict of `net` (which may be on the meta device) from the modules. Raises: CheckpointError where they do not fit."""
    state: dict[str, Tensor] = {}
    left = iter(modules)
    try:
        if net.map_noise is not None:
            state["map_noise.freqs"] = _value(next(left)["W"])
        for name in ("map_layer0", "map_layer1"):
            _take(state, name, next(left))
        for part in ("enc", "dec"):
            for name, layer in getattr(net, part).items():
                _fill(state, f"{part}.{name}", layer, name, left)
    except (StopIteration, KeyError) as error:
        raise CheckpointError(f"a module lacks {error}" if error.args else "it has too few modules") from None
    except RuntimeError as error:  # parts of one module that do not go together
        raise CheckpointError(f"the parts of a module differ in size ({error})") from None
    rest = sum(1 for _ in left)
    if rest:
        raise CheckpointError(f"{rest} modules are left over")
    taps = torch.tensor(net.config.resample_filter, dtype=torch.float32)
    for name in net.state_dict():
        if name.endswith("resample_filter"):
            state[name] = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    return state


def _fill(state: dict[str, Tensor], place: str, layer: Any, name: str, left: Iterator[Module]) -> None:
    if isinstance(layer, UNetBlock):
        module = next(left)
        for mine, theirs in _BLOCK.items():
            if mine != "skip" or layer.skip is not None:
                _take(state, f"{place}.{mine}", module, f"{theirs}.")
        if layer.heads:
            _attention(state, place, next(left))
    elif not name.endswith(("aux_down", "aux_up")):  # those have no parameters, and no module there
        module = next(left)
        prefix = next((p for p in ("Conv2d_0.", "Conv_0.") if f"{p}weight" in module), "")
        _take(state, place, module, prefix)


def _attention(state: dict[str, Tensor], place: str, module: Module) -> None:
    _take(state, f"{place}.norm2", module, "GroupNorm_0.")
    # Their NIN multiplies from the right, W (in, out); three of them are one 1×1 convolution here, q, k, v side by side.
    weights = torch.stack([_value(module[f"NIN_{k}.W"]).T for k in range(3)], 1)
    state[f"{place}.qkv.weight"] = weights.flatten(0, 1)[..., None, None]
    state[f"{place}.qkv.bias"] = torch.stack([_value(module[f"NIN_{k}.b"]) for k in range(3)], 1).flatten()
    state[f"{place}.proj.weight"] = _value(module["NIN_3.W"]).T[..., None, None]
    state[f"{place}.proj.bias"] = _value(module["NIN_3.b"])


def _take(state: dict[str, Tensor], place: str, module: Module, prefix: str = "") -> None:
    for part in ("weight", "bias"):
        state[f"{place}.{part}"] = _value(module[f"{prefix}{part}"])


def _value(value: Any) -> Tensor:
    return value.read() if isinstance(value, StoredTensor) else value


def config_of(modules: list[Module], image_size: Size, **given: Any) -> UNetConfig:
    """`infer_config` with what the user knows better. Raises: CheckpointError, also for an image_size that does not fit."""
    try:
        return replace(infer_config(modules, image_size), **given)
    except ArgumentError as error:
        raise CheckpointError(f"{error}; is image_size right?") from None


def is_pfgm(modules: list[Module]) -> bool:
    """Whether the network has one more output channel than the image: PFGM's v_z. Raises: CheckpointError for no network."""
    stem = next((m["weight"] for m in modules if _kind(m) == "conv"), None)
    return stem is not None and output_channels(modules) == stem.shape[1] + 1
