"""Runs of version 1 (before 2260e3f): their networks' names, layouts and parameter order, brought to today's.

Their DDPM++ was the same function of other names, but for q, k, v, which stood one after the other (today they alternate), and for
classes, which were added to the embedded noise level (today: to its features): `label_embedding="late"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pfgm_fast.nn import UNetConfig

_BLOCK = {
    "norm_in": "norm0", "conv_in": "conv0", "embed": "affine", "norm_out": "norm1", "conv_out": "conv1", "skip": "skip",
}  # fmt: skip
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "out": "proj"}
_PAIR = ("weight", "bias")


def config_today(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config.json; one of version 1 is known by its network, which names no architecture."""
    network = values.get("network")
    if isinstance(network, dict) and "architecture" not in network and network.get("classes"):
        values = {**values, "network": {"label_embedding": "late", **network}}
    return values


def tensors_today(tensors: dict[str, Tensor], config: UNetConfig, parameters: list[str]) -> dict[str, Tensor]:
    """A checkpoint's tensors by today's names; those of today as they are. parameters: today's names in the optimizer's order.

    Buffers of today's network that version 1 did not have (resampling filters) are not among them.
    """
    if "net.embed_in.weight" not in tensors:
        return tensors
    names = dict(old_names(config))
    order = {str(i): name for i, name in enumerate(names)}
    place = {name: str(i) for i, name in enumerate(parameters)}
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "net" and rest in names:
            out[f"net.{names[rest]}"] = _layout(names[rest])(value)
        elif kind == "ema":
            which, _, rest = rest.partition(".")
            out[f"ema.{which}.{names[rest]}"] = _layout(names[rest])(value)
        elif kind == "adam":
            index, _, moment = rest.partition(".")
            new = names[order[index]]
            out[f"adam.{place[new]}.{moment}"] = _layout(new)(value)
        else:
            out[name] = value
    return out


def old_names(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """(name then, name today) of every parameter of DDPMpp, in the order of the parameters then."""
    for old, new in (("embed_in", "map_layer0"), ("embed_out", "map_layer1")):
        yield from _pairs(old, f"unet.{new}")
    levels = [(wide, f"{h}x{w}", h in config.attention) for wide, (h, w) in config.levels]
    yield from _pairs("stem", f"unet.enc.{levels[0][1]}_conv")
    features, at = config.width, 0
    for level, (wide, size, attends) in enumerate(levels):
        if level:
            yield from _block(f"down.{at}", f"unet.enc.{size}_down", True)
            at += 1
        for index in range(config.blocks):
            new = f"unet.enc.{size}_block{index}"
            yield from _block(f"down.{at}", new, features != wide)
            features, at = wide, at + 1
            if attends:
                yield from _attention(f"down.{at}", new)
                at += 1
    lowest, at, up = levels[-1][1], 0, []
    for level, (_, size, attends) in reversed(list(enumerate(levels))):
        for index in range(config.blocks + 1):
            up += _block(f"up.{at}", f"unet.dec.{size}_block{index}", True)
            at += 1
        if attends:
            up += _attention(f"up.{at}", f"unet.dec.{size}_block{config.blocks}")
            at += 1
        if level:
            up += _block(f"up.{at}", f"unet.dec.{levels[level - 1][1]}_up", True)
            at += 1
    yield from up
    yield from _block("middle.0", f"unet.dec.{lowest}_in0", False)
    yield from _attention("middle.1", f"unet.dec.{lowest}_in0")
    yield from _block("middle.2", f"unet.dec.{lowest}_in1", False)
    yield from _pairs("norm", f"unet.dec.{levels[0][1]}_aux_norm")
    yield from _pairs("head", f"unet.dec.{levels[0][1]}_aux_conv")
    if config.classes:
        yield "classes.weight", "unet.map_label.weight"


def _pairs(old: str, new: str) -> list[tuple[str, str]]:
    return [(f"{old}.{part}", f"{new}.{part}") for part in _PAIR]


def _parts(old: str, new: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [pair for then, today in names.items() for pair in _pairs(f"{old}.{then}", f"{new}.{today}")]


def _block(old: str, new: str, skip: bool) -> list[tuple[str, str]]:
    return _parts(old, new, {k: v for k, v in _BLOCK.items() if skip or k != "skip"})


def _attention(old: str, new: str) -> list[tuple[str, str]]:
    return _parts(old, new, _ATTENTION)


def _layout(name: str) -> Callable[[Tensor], Tensor]:
    """What is done with a parameter, or a moment of it, of this name today; counts of steps (no dimension) stay."""

    def alternate(value: Tensor) -> Tensor:  # q, k, v of C channels each → channel, then q, k, v
        return value.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1) if value.dim() else value

    def transpose(value: Tensor) -> Tensor:
        return value.T if value.dim() else value

    if name.endswith(("qkv.weight", "qkv.bias")):
        return alternate
    return transpose if name == "unet.map_label.weight" else lambda value: value
