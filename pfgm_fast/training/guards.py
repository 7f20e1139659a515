"""What a run refuses before it begins: networks that do not fit the images, folders of other runs or data, weights that are not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pfgm_fast import data
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError, NonFiniteError
from pfgm_fast.methods import METHODS, PFGM, Method
from pfgm_fast.methods import from_dict as method_from_dict
from pfgm_fast.nn import UNetConfig
from pfgm_fast.nn.augment import AUGMENT_DIM
from pfgm_fast.training import checkpoint as checkpoints
from pfgm_fast.training.config import DataRecord, RunConfig, differences, image_shape
from pfgm_fast.training.settings import fields_of as settings_of

AUGMENTED = ("pfgmpp", "edm")
"""Methods whose networks can be told an augmentation."""


def fits(config: RunConfig, images: data.ImageSet | data.ImageStream) -> None:
    """Raises: ArgumentError where network, images, labels, augmentation and method do not go together."""
    network = config.network
    if images.shape != image_shape(network):
        raise ArgumentError(
            f"the network is for images of {'×'.join(map(str, image_shape(network)))}, "
            f"{images.name} has {'×'.join(map(str, images.shape))} (channels×height×width): "
            "give --size, other data, or leave the preset out for a network that fits"
        )
    if config.train.augment:
        name = (config.method or {}).get("name", PFGM.name)
        if name not in AUGMENTED or (
            config.own_network is None
            and (config.preconditioning is None or network.augment_dim != AUGMENT_DIM)
        ):
            raise ArgumentError(
                f"augment needs a network that is told the augmentation, of method {' or '.join(AUGMENTED)}: "
                f"--set method.name=edm preconditioning=edm network.augment_dim={AUGMENT_DIM}"
            )
    if config.train.conditional and network.classes < 1:
        raise ArgumentError("conditional training needs a network with classes (UNetConfig.classes)")
    if config.train.conditional and images.labels is not None and int(images.labels.max()) >= network.classes:
        raise ArgumentError(
            f"the network has {network.classes} classes, {images.name} a label {int(images.labels.max())}"
        )


def with_own_network(
    config: RunConfig, net: torch.nn.Module, images: data.ImageSet | data.ImageStream
) -> RunConfig:
    """The config of a run whose network is the caller's: `network` then says no more than the images' shape and the classes."""
    if not isinstance(net, torch.nn.Module):
        raise ArgumentError(f"net must be a torch.nn.Module; got {type(net).__name__}")
    channels, height, width = images.shape
    classes = images.num_classes if config.train.conditional else 0
    network = UNetConfig(channels, (height, width), 4, (1,), 1, (), dropout=0.0, classes=classes)
    return replace(config, network=network, own_network=type(net).__qualname__)


def method_for(settings: dict[str, Any] | None, charges: Charges, whole: bool = True) -> Method:
    """The method of a run's settings: what they do not give follows from the data by its rules (`from_data`), where it has any.

    whole: charges are all the data. Of a part the largest norm says nothing of the rest: PFGM's data_radius is then that of the pixels' box.
    """
    given = {"name": PFGM.name} if settings is None else dict(settings)
    if not whole and given.get("name") == PFGM.name:
        given.setdefault("data_radius", "box")
    kind = METHODS.get(given.get("name", ""))
    rules = getattr(kind, "from_data", None)
    if kind is None or rules is None or given.keys() >= settings_of(kind).keys():
        return method_from_dict(given)
    return rules(charges, **{k: v for k, v in given.items() if k != "name"})


def settings_of_run(folder: Path, given: dict[str, Any] | None) -> dict[str, Any] | None:
    """The method's settings as given, over those of the run that the folder holds: what followed from its data is not computed again,
    for another number of threads, or another device, may round it differently."""
    before = RunConfig.load(folder).method if checkpoints.available(folder) else None
    asked = {"name": PFGM.name} if given is None else given
    return given if before is None or before.get("name") != asked.get("name") else before | asked


def newest(folder: Path) -> int | None:
    paths = checkpoints.available(folder)
    return checkpoints.step_of(paths[-1]) if paths else None


def same_data(folder: Path, record: DataRecord) -> None:
    """Raises: CheckpointError where a folder's run was trained on other data."""
    if not checkpoints.available(folder):
        return
    before = RunConfig.load(folder).dataset
    if before is not None and before.digest != record.digest:
        raise checkpoints.CheckpointError(
            f"{folder} was trained on other data: on {before.description}; given was {record.description}. "
            "Give the run's own data by --data (wherever they lie now), or choose another folder"
        )


SAMPLING_ALONE = ("data_radius",)
"""Hyper-parameters that training does not see: a run from before there were any goes on with today's."""


def same_run(folder: Path, config: RunConfig, looked_at: bool = True) -> None:
    """A folder's checkpoint belongs to its config; only how long to go on and what to report may change. looked_at: the data have been,
    which fill in the method; before that the rest is compared, so that a difference is said as such and not as what follows from it."""
    if not checkpoints.available(folder):
        return
    before = RunConfig.load(folder)
    if not looked_at:
        config = replace(config, method=before.method, dataset=before.dataset, data=before.data)
    if before.method is not None:  # of an earlier version: what it did not know has today's default
        known, now = method_from_dict(before.method).to_dict(), config.method or {}
        unseen = [k for k in SAMPLING_ALONE if k in now and k not in before.method]
        before = replace(before, method=known | {k: now[k] for k in unseen})
    found = differences(before, config)
    if found:
        raise checkpoints.CheckpointError(
            f"{folder} holds a run with {'; with '.join(found)}: resume with its own settings, or choose another folder"
        )


@torch.no_grad()
def refuse_nonfinite(*modules: torch.nn.Module, step: int, folder: Path) -> None:
    """Raises: NonFiniteError where a weight is not finite; one look of the host."""
    norms = [n for module in modules for n in torch._foreach_norm(list(module.parameters()))]
    if not bool(torch.stack([n.float() for n in norms]).isfinite().all()):
        raise NonFiniteError(
            f"step {step}: weights are not finite, no checkpoint is written; those in {folder} stay. "
            "Begin another run with a smaller train.lr"
        )
