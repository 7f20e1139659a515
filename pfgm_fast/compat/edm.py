"""Checkpoints of NVlabs/edm and Newbeeer/pfgmpp: `training-state-*.pt` and `network-snapshot-*.pkl`, without their code.

What the networks are is read from the weights' names and shapes; what those do not tell (dropout, σ_data, D, half precision) from the
arguments that the file records for every object. The file's source text is never read: see `unpickler`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from pfgm_fast.compat.unpickler import StandIn, StoredTensor, load
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.nn import EDM, IDDPM, VE, VP, Preconditioned, UNetConfig, unet

EXPECTED = (
    "expected a training state (.pt with 'net' and 'ema') or network snapshot (.pkl with 'ema') of NVlabs/edm or "
    "Newbeeer/pfgmpp: EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond over a SongUNet or DhariwalUNet"
)
PRECONDITIONINGS: dict[str, type[Preconditioned]] = {
    "EDMPrecond": EDM,
    "VPPrecond": VP,
    "VEPrecond": VE,
    "iDDPMPrecond": IDDPM,
}
ARCHITECTURES = {"SongUNet": "ncsnpp", "DhariwalUNet": "adm"}
_SETTINGS = {
    "EDMPrecond": {"sigma_data": "sigma_data"},
    "VPPrecond": {"beta_d": "beta_d", "beta_min": "beta_min", "M": "steps", "epsilon_t": "t_min"},
    "VEPrecond": {},
    "iDDPMPrecond": {"C_1": "c_1", "C_2": "c_2", "M": "steps"},
}
"""Class → their attribute → our argument."""

_LAYER = re.compile(r"^(enc|dec)\.(\d+)x(\d+)_(\w+)\.")
_DEFAULT_DROPOUT = 0.10
"""Of both UNets, where a file does not record one."""


def load_checkpoint(path: str | Path, which: str = "ema") -> Preconditioned:
    """The denoiser of a file, `(x, sigma, labels=None)` → D(x; σ), in evaluation mode, float32, on the CPU.

    which: "ema", the averaged weights that their samplers use, or "net", the trained ones (training states only).
    The result has sigma_min, sigma_max, aug_dim (D of PFGM++, ∞ of EDM), label_dim; `.half_precision` is "float16" where the file says so.
    Raises: CheckpointError for a file that is truncated, of another kind, or holds anything but such a network; it says what was found.
    """
    return network(load(path), str(path), which)


def network(loaded: Any, path: str, which: str = "ema") -> Preconditioned:
    """As `load_checkpoint`, of what `unpickler.load` found in the file."""
    if which not in ("ema", "net"):
        raise ArgumentError(f"which must be 'ema' or 'net'; got {which!r}")
    if not is_ours(loaded):
        raise CheckpointError(f"{path} holds {described(loaded)}; {EXPECTED}")
    top = loaded if isinstance(loaded, StandIn) else loaded.get(which)
    if not isinstance(top, StandIn):
        raise CheckpointError(f"{path} holds no network {which!r}, but {described(loaded)}; {EXPECTED}")
    try:
        return _build(top)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; {EXPECTED}") from None
    except (
        ArgumentError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
    ) as error:
        raise CheckpointError(f"{path}: {type(error).__name__}: {error}; {EXPECTED}") from error


def is_ours(loaded: Any) -> bool:
    """Whether a loaded file holds such a network, alone or by the names net and ema."""
    parts = [loaded] if isinstance(loaded, StandIn) else []
    if isinstance(loaded, dict):
        parts = [loaded[name] for name in ("ema", "net") if isinstance(loaded.get(name), StandIn)]
    return bool(parts)


def described(loaded: Any) -> str:
    """What a file holds, in few words."""
    if isinstance(loaded, dict):
        found = [f"{str(k)[:40]!r} ({_kind(v)})" for k, v in list(loaded.items())[:6]]
        return f"a dict of {', '.join(found)}{', …' if len(loaded) > 6 else ''}" if found else "an empty dict"
    return f"a {_kind(loaded)}"


def _kind(value: Any) -> str:
    return value.name if isinstance(value, StandIn) else type(value).__name__


def state_of(module: StandIn, prefix: str = "") -> dict[str, StoredTensor]:
    """Name → tensor of a module's parameters and buffers, by dotted names. Raises: CheckpointError for what is no module."""
    state = module.state
    if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict):
        raise CheckpointError(f"{prefix or 'the network'} is a {module.name} without parameters")
    found: dict[str, StoredTensor] = {}
    for part in ("_parameters", "_buffers"):
        for name, value in state.get(part, {}).items():
            if isinstance(value, StoredTensor):
                found[f"{prefix}{name}"] = value
            elif value is not None:
                raise CheckpointError(f"{prefix}{name} is a {_kind(value)}, not a tensor")
    for name, value in state["_modules"].items():
        if isinstance(value, StandIn):
            found |= state_of(value, f"{prefix}{name}.")
        elif value is not None:
            raise CheckpointError(f"{prefix}{name} is a {_kind(value)}, not a module")
    return found


def _build(top: StandIn) -> Preconditioned:
    if top.name not in PRECONDITIONINGS:
        raise CheckpointError(f"the network is a {top.name}")
    tensors = state_of(top)
    model = top.state["_modules"].get("model")
    if not isinstance(model, StandIn) or model.name not in ARCHITECTURES:
        raise CheckpointError(
            f"the {top.name} is over a {_kind(model) if model is not None else 'missing model'}"
        )
    recorded = {**_kept(model), **_recorded(top), **_recorded(model)}
    shapes = {name.removeprefix("model."): t.shape for name, t in tensors.items() if name != "u"}
    config = infer_config(ARCHITECTURES[model.name], shapes, recorded, _filter(tensors))
    attributes = {**_recorded(top), **top.state}
    settings = {
        ours: attributes[theirs] for theirs, ours in _SETTINGS[top.name].items() if theirs in attributes
    }
    for name in ("sigma_min", "sigma_max"):
        if isinstance(attributes.get(name), (int, float)):
            settings[name] = float(attributes[name])
    if top.name == "EDMPrecond" and attributes.get("pfgmpp"):
        settings["aug_dim"] = float(attributes["D"])
    if attributes.get("use_fp16"):
        settings["half"] = "float16"
    out = 2 * config.channels if top.name == "iDDPMPrecond" else config.channels
    with torch.device("meta"):
        net = PRECONDITIONINGS[top.name](unet(config, out), **settings)
    return fill(net, tensors)


def fill(net: Any, tensors: dict[str, Any]) -> Any:
    """A module on the meta device with these tensors (or StoredTensors) in float32, in evaluation mode. Raises: CheckpointError where names or shapes differ."""
    mine = net.state_dict()
    lacking, more = sorted(set(mine) - set(tensors)), sorted(set(tensors) - set(mine))
    if lacking or more:
        names = f"lacks {lacking[0]}" if lacking else f"has {more[0]} besides"
        raise CheckpointError(
            f"of the weights' names {len(lacking)} are missing and {len(more)} unknown: the file {names}"
        )
    for name, value in mine.items():
        if tuple(tensors[name].shape) != tuple(value.shape):
            raise CheckpointError(
                f"{name} has shape {tuple(tensors[name].shape)}, the network needs {tuple(value.shape)}"
            )
    values = {k: (v.read() if isinstance(v, StoredTensor) else v).float() for k, v in tensors.items()}
    if not all(v.is_contiguous() for v in values.values()):
        values = {k: v.contiguous() for k, v in values.items()}
    net.load_state_dict(values, assign=True)
    return net.eval().requires_grad_(True)


def _recorded(module: StandIn) -> dict[str, Any]:
    """The keyword arguments that the file says a module was made with."""
    given = module.state.get("_init_kwargs")
    return dict(given) if isinstance(given, dict) else {}


def _kept(model: StandIn) -> dict[str, Any]:
    """What its objects keep of those arguments: label_dropout itself, dropout each of its blocks."""
    kept = {"label_dropout": model.state.get("label_dropout", 0)}
    encoder = model.state["_modules"].get("enc")
    blocks = encoder.state.get("_modules", {}).values() if isinstance(encoder, StandIn) else ()
    dropouts = [
        block.state["dropout"] for block in blocks if isinstance(block, StandIn) and "dropout" in block.state
    ]
    return kept | ({"dropout": dropouts[0]} if dropouts else {})


def _filter(tensors: dict[str, StoredTensor]) -> tuple[float, ...]:
    """Taps of the resampling filter, which is stored as their outer product of sum 1."""
    for name, value in tensors.items():
        if name.endswith("resample_filter"):
            return tuple(value.read().double().sum((0, 1, 2)).tolist())
    return (1.0, 1.0)


def infer_config(
    architecture: str,
    shapes: dict[str, tuple[int, ...]],  # of the UNet's parameters and buffers
    recorded: dict[str, Any],  # arguments that shapes do not tell: dropout, label_dropout, augment_dim
    filter: tuple[float, ...],
) -> UNetConfig:
    """The UNet whose weights have these names and shapes. Raises: CheckpointError, KeyError where they are no UNet's."""
    layers: dict[str, dict[tuple[int, int], set[str]]] = {"enc": {}, "dec": {}}
    for name in shapes:
        match = _LAYER.match(name)
        if match:
            layers[match[1]].setdefault((int(match[2]), int(match[3])), set()).add(match[4])
    sizes = sorted(layers["enc"], reverse=True)
    if not sizes or sorted(layers["dec"], reverse=True) != sizes:
        raise CheckpointError(f"its layers have the resolutions {sizes}")
    at = [f"{height}x{width}" for height, width in sizes]
    width, channels = shapes[f"enc.{at[0]}_conv.weight"][:2]
    outs = [shapes[f"enc.{where}_block0.conv0.weight"][0] for where in at]
    if architecture == "adm":  # its first convolution has the first level's width already
        width = int(recorded.get("model_channels", shapes["map_layer0.weight"][1]))
    if any(out % width for out in outs):
        raise CheckpointError(f"its levels have {outs} features, no multiples of {width}")
    noise, embedding = shapes["map_layer0.weight"][1], shapes["map_layer0.weight"][0]
    kinds = {kind for level in layers["enc"].values() for kind in level}
    attends = tuple(
        size[0] for size, where in zip(sizes, at, strict=True) if _attends(shapes, "enc", where, 0)
    )
    classes = shapes["map_label.weight"][1] if "map_label.weight" in shapes else 0
    augment = shapes["map_augment.weight"][1] if "map_augment.weight" in shapes else 0
    return UNetConfig(
        channels=channels,
        image_size=sizes[0],
        width=width,
        multipliers=tuple(out // width for out in outs),
        blocks=sum(kind.startswith("block") for kind in layers["enc"][sizes[0]]),
        attention=attends,
        dropout=float(recorded.get("dropout", _DEFAULT_DROPOUT)),
        classes=classes,
        label_dropout=float(recorded.get("label_dropout", 0.0)),
        augment_dim=augment,
        architecture=architecture,
        embedding="fourier" if "map_noise.freqs" in shapes else "positional",
        encoder="skip" if "aux_skip" in kinds else "residual" if "aux_residual" in kinds else "standard",
        decoder="skip" if any("aux_up" in level for level in layers["dec"].values()) else "standard",
        noise_multiplier=max(1, noise // width),
        embedding_multiplier=embedding // width,
        resample_filter=filter,
    )


def _attends(shapes: dict[str, tuple[int, ...]], part: str, at: str, block: int) -> bool:
    return f"{part}.{at}_block{block}.qkv.weight" in shapes


def method_of(net: Preconditioned) -> Any:
    """The method that samples such a network: PFGM++ of its D; for EDM, VP and VE D = ∞ in σ."""
    from pfgm_fast.methods import PFGMpp

    low, high = max(0.002, net.sigma_min), min(80.0, net.sigma_max)
    return PFGMpp(aug_dim=net.aug_dim, sigma_min=low, sigma_max=high)


__all__ = ["load_checkpoint"]
