"""Writes files in the formats of NVlabs/edm and Newbeeer/pfgmpp from networks of this package, as their programs would have."""

from __future__ import annotations

import pickle
import types
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pfgm_fast.nn import EDM, IDDPM, VE, VP, Preconditioned
from pfgm_fast.nn.layers import FourierEmbedding, GroupNormSiLU, ResampleConv, UNetBlock

SOURCE = "import pathlib; pathlib.Path('{marker}').touch()"
"""Source text of a module, which a reader must not run."""

_CLASSES = {
    EDM: "EDMPrecond",
    VP: "VPPrecond",
    VE: "VEPrecond",
    IDDPM: "iDDPMPrecond",
    nn.Linear: "Linear",
    nn.Conv2d: "Conv2d",
    GroupNormSiLU: "GroupNorm",
    FourierEmbedding: "FourierEmbedding",
    ResampleConv: "Conv2d",
    UNetBlock: "UNetBlock",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("a reader called the file's own function")


@contextmanager
def _importable(function: str = "torch_utils.persistence"):
    """Their modules exist while a file is written, since pickle looks every name up."""
    import sys

    parts = function.split(".")
    made = []
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        module = types.ModuleType(name)
        made.append(name)
        sys.modules[name] = module
    vars(sys.modules[function])["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    before = _reconstruct_persistent_obj.__module__
    _reconstruct_persistent_obj.__module__ = function
    try:
        yield
    finally:
        _reconstruct_persistent_obj.__module__ = before
        for name in made:
            del sys.modules[name]


class _Persistent:
    """Pickled as a call of torch_utils.persistence with a module's state."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,)


def persistent(name: str, state: dict[str, Any], source: str = "") -> _Persistent:
    return _Persistent(
        {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}
    )


def as_theirs(
    net: Preconditioned, kwargs: dict[str, Any], attributes: dict[str, Any], source: str = ""
) -> Any:
    """A network of ours as their object. kwargs: recorded arguments of the top; attributes: of the top besides."""
    model_kwargs = {k: v for k, v in kwargs.items() if k in ("dropout", "label_dropout", "model_channels")}

    def convert(module: nn.Module, name: str) -> Any:
        state: dict[str, Any] = {"training": False, **{hook: {} for hook in _HOOKS}}
        state["_parameters"] = {k: v for k, v in module._parameters.items() if v is not None}
        state["_buffers"] = dict(module._buffers)
        state["_non_persistent_buffers_set"] = set()
        state["_modules"] = {k: convert(v, k) for k, v in module._modules.items() if v is not None}
        if isinstance(module, nn.ModuleDict):
            plain = nn.ModuleDict()
            plain.__dict__.update(state)
            return plain
        if isinstance(module, nn.Dropout):
            return module
        state["_init_args"], state["_init_kwargs"] = (), {}
        if name == "model":
            state["_init_kwargs"] = model_kwargs
            kind = "DhariwalUNet" if net.model.config.architecture == "adm" else "SongUNet"
            return persistent(kind, state, source)
        if name == "":
            state |= attributes
            state["_init_kwargs"] = kwargs
        return persistent(_CLASSES[type(module)], state, source)

    return convert(net, "")


def write_snapshot(path: Any, ema: Any, module: str = "torch_utils.persistence", **more: Any) -> None:
    """network-snapshot-*.pkl."""
    with _importable(module), open(path, "wb") as file:
        pickle.dump({"ema": ema, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {}, **more}, file)


def write_state(path: Any, net: Any, ema: Any, zip: bool = True, **more: Any) -> None:
    """training-state-*.pt, in torch.save's format or in that of before 1.6."""
    with _importable():
        torch.save({"net": net, "ema": ema, "optimizer_state": {"state": {}}, **more}, path,
                   _use_new_zipfile_serialization=zip)  # fmt: skip
