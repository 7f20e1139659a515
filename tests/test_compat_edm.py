"""Files of EDM and PFGM++: what the authors' implementation computed, and files of other arguments written here."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys
import types

import numpy as np
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import compat
from pfgm_fast.compat import edm
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.nn import UNetConfig, denoiser
from tests.edm_files import SOURCE, as_theirs, write_snapshot, write_state

NAMES = ["pfgmpp_ddpmpp", "pfgmpp_ncsnpp", "edm_ddpmpp_cond", "edm_adm_cond", "vp_ddpmpp", "ve_ncsnpp"]
FILES = ["{}.pkl", "training-state-{}.pt"]


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "fixtures" / "edm"


def arrays(folder, name: str) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(folder / f"{name}.npz").items()}


def heun(net, x: torch.Tensor, sigmas: list[float], labels: torch.Tensor | None) -> torch.Tensor:
    """EDM's algorithm 2 without churn, float64 between evaluations, written out."""

    def slope(x, sigma):
        return (x - net(x.float(), torch.tensor(sigma), labels).double()) / sigma

    for now, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        first = slope(x, now)
        ahead = x + (after - now) * first
        x = x + (after - now) * (first + slope(ahead, after)) / 2 if after else ahead
    return x


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES, ids=["snapshot", "state"])
def test_fixtures(folder, name: str, file: str) -> None:
    """Networks to 1e-5 an image, EDM's trajectory to 1e-4; D, σ's ends and labels as the index says."""
    index, given = json.loads((folder / "index.json").read_text())[name], arrays(folder, name)
    net = edm.load_checkpoint(folder / file.format(name))
    labels = given.get("labels")
    with torch.no_grad():
        found = net(given["x"], given["sigma"], labels)
        error = (found - given["denoised"]).flatten(1).norm(dim=1)
        assert float((error / given["denoised"].flatten(1).norm(dim=1)).max()) <= 1e-5
        if labels is not None:
            torch.testing.assert_close(net(given["x"], given["sigma"], labels.argmax(1)), found)
        low, high, steps = (float(given[k]) for k in ("sigma_min", "sigma_max", "sampler_steps"))
        ends = [low ** (1 / 7), high ** (1 / 7)]
        sigmas = [(ends[1] + i / (steps - 1) * (ends[0] - ends[1])) ** 7 for i in range(int(steps))]
        some = None if labels is None else labels[: len(given["sampler_x0"])]
        x = heun(net, given["sampler_x0"].double(), sigmas, some)
    assert float((x - given["sampler_x"]).norm() / given["sampler_x"].norm()) <= 1e-4
    ours = dataclasses.replace(edm.method_of(net), sigma_min=low, sigma_max=high)
    x0 = given["sampler_x0"].double()
    out = pf.sample(net, tuple(x0.shape), "heun", int(steps), x0=x0, method=ours, labels=some)
    assert out.nfe == int(given["sampler_nfe"]) == 11
    assert float((out.x - given["sampler_x"]).norm() / given["sampler_x"].norm()) <= 1e-4
    assert net.aug_dim == (index["D"] or math.inf)
    assert net.label_dim == index["precond_kwargs"]["label_dim"]
    assert net.model.config.dropout == index["model_kwargs"].get("dropout", 0.1)
    assert net.model.config.label_dropout == index["model_kwargs"].get("label_dropout", 0)
    assert sum(p.numel() for p in net.parameters()) == index["parameters"]
    assert not net.training


VARIANTS = {
    "three levels, two attentions": ("edm", UNetConfig(3, 16, 8, (1, 2, 2), 2, (8, 4), augment_dim=9)),
    "labels without augmentation": ("edm", UNetConfig(1, 8, 8, (1, 1), 1, (), classes=5, label_dropout=0.2)),
    "skip and skip": ("vp", UNetConfig(3, 16, 8, (1, 2, 2), 1, (4,), encoder="skip", decoder="skip")),
    "one level": ("vp", UNetConfig(2, 4, 8, (2,), 1, (4,))),
    "NCSN++, four levels": ("ve", UNetConfig.ncsnpp(3, 16, 8, (1, 1, 2, 2), 1, (8,), dropout=0.2)),
    "wide noise, odd multiplier": (
        "edm",
        UNetConfig(3, 12, 8, (1, 3), 1, (6,), noise_multiplier=3, embedding_multiplier=2),
    ),
    "ADM with heads": (
        "edm",
        UNetConfig(3, 8, 32, (2, 4), 1, (8, 4), classes=7, augment_dim=9, architecture="adm"),
    ),
    "iDDPM over ADM": ("iddpm", UNetConfig(3, 8, 64, (1, 2), 1, (4,), 0.3, architecture="adm")),
    "iDDPM over NCSN++": ("iddpm", UNetConfig.ncsnpp(1, 8, 8, (1, 2), 1, ())),
}


def randomised(kind: str, config: UNetConfig, **settings):
    """A network whose every parameter matters: those that begin at zero would hide an error."""
    net = denoiser(config, kind, **settings)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_come_back(tmp_path, name: str) -> None:
    """Every architecture and preconditioning, written as their programs do: configuration, settings and outputs return."""
    kind, config = VARIANTS[name]
    net = randomised(kind, config)
    attributes = {"sigma_min": net.sigma_min, "sigma_max": net.sigma_max, "use_fp16": kind == "edm"}
    kwargs = {"dropout": config.dropout, "label_dropout": config.label_dropout}
    if config.architecture == "adm":
        kwargs["model_channels"] = config.width
    marker = tmp_path / "ran"
    theirs = as_theirs(net, kwargs, attributes, SOURCE.format(marker=marker))
    write_snapshot(tmp_path / "network-snapshot-1.pkl", theirs, "edm.torch_utils.persistence")
    write_state(tmp_path / "training-state-1.pt", theirs, theirs)
    write_state(tmp_path / "old.pt", theirs, theirs, zip=False)
    x, sigma = torch.randn(3, *config.shape), torch.tensor([0.1, 1.0, 20.0])
    labels = torch.arange(3) if config.classes else None
    augment = torch.randn(3, config.augment_dim) if config.augment_dim else None
    for file in ("network-snapshot-1.pkl", "training-state-1.pt", "old.pt"):
        back = edm.load_checkpoint(tmp_path / file)
        assert back.model.config == UNetConfig(
            **{**config.to_dict(), "resample_filter": back.model.config.resample_filter}
        )
        assert (back.sigma_min, back.sigma_max, type(back)) == (net.sigma_min, net.sigma_max, type(net))
        assert back.half_precision == ("float16" if kind == "edm" else None)
        with torch.no_grad():
            torch.testing.assert_close(
                back(x, sigma, labels, augment_labels=augment), net(x, sigma, labels, augment_labels=augment)
            )
    assert not marker.exists()


def test_net_and_ema_are_told_apart(tmp_path) -> None:
    config = UNetConfig(1, 4, 4, (1,), 1, ())
    nets = [randomised("edm", config, sigma_data=0.7) for _ in range(2)]
    attributes = {"sigma_data": 0.7, "pfgmpp": True, "D": 64}
    write_state(tmp_path / "state.pt", *(as_theirs(net, {}, attributes) for net in nets))
    for which, net in zip(("net", "ema"), nets, strict=True):
        back = edm.load_checkpoint(tmp_path / "state.pt", which)
        assert torch.equal(back.model.map_layer0.weight, net.model.map_layer0.weight)
        assert (back.sigma_data, back.aug_dim) == (0.7, 64.0)
    write_snapshot(tmp_path / "snap.pkl", as_theirs(nets[0], {}, attributes))
    with pytest.raises(CheckpointError, match="holds no network 'net'"):
        edm.load_checkpoint(tmp_path / "snap.pkl", "net")
    with pytest.raises(ArgumentError, match="which must be"):
        edm.load_checkpoint(tmp_path / "snap.pkl", "mean")


def test_refusals_say_what_was_found(tmp_path) -> None:
    net = randomised("edm", UNetConfig(1, 4, 4, (1,), 1, ()))
    with pytest.raises(CheckpointError, match="there is no file"):
        edm.load_checkpoint(tmp_path / "none.pkl")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError, match=r"a dict of 'weights' \(StoredTensor\).*expected a training state"
    ):
        edm.load_checkpoint(tmp_path / "other.pt")
    write_snapshot(tmp_path / "whole.pkl", as_theirs(net, {}, {}))
    whole = (tmp_path / "whole.pkl").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.99):
        (tmp_path / "cut.pkl").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError, match=r"cut.pkl cannot be read"):
            edm.load_checkpoint(tmp_path / "cut.pkl")
    theirs = as_theirs(net, {}, {})
    del theirs.meta["state"]["_modules"]["model"].meta["state"]["_modules"]["map_layer0"]
    write_snapshot(tmp_path / "lacking.pkl", theirs)
    with pytest.raises(CheckpointError, match="map_layer0"):
        edm.load_checkpoint(tmp_path / "lacking.pkl")
    theirs = as_theirs(net, {}, {})
    theirs.meta["class_name"] = "Generator"
    write_snapshot(tmp_path / "gan.pkl", theirs)
    with pytest.raises(CheckpointError, match=r"the network is a Generator.*EDMPrecond"):
        edm.load_checkpoint(tmp_path / "gan.pkl")


def test_load_any_gives_network_and_method(tmp_path) -> None:
    """PFGM++ of the file's D within the file's σ."""
    net = randomised("edm", UNetConfig(1, 4, 4, (1,), 1, ()))
    write_snapshot(tmp_path / "snap.pkl", as_theirs(net, {}, {"pfgmpp": True, "D": 128}))
    back, method = compat.load_any(tmp_path / "snap.pkl")
    assert (method.aug_dim, back.aug_dim) == (128.0, 128.0)
    out = pf.sample(back, (2, 1, 4, 4), "heun", 3, method=method)
    assert out.x.isfinite().all()
    torch.save({"anything": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"'anything' \(int\).*score_sde_pytorch"):
        compat.load_any(tmp_path / "other.pt")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_networks_pickled_as_plain_classes(tmp_path, monkeypatch, protocol: int) -> None:
    """Without EDM's persistence: objects of training.networks, of which only names and states are taken; and no recorded arguments."""
    config = UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.25, classes=2, label_dropout=0.5)
    net = randomised("edm", config)
    module = types.ModuleType("training.networks")
    monkeypatch.setitem(sys.modules, "training", types.ModuleType("training"))
    monkeypatch.setitem(sys.modules, "training.networks", module)

    def plain(value):
        if not hasattr(value, "meta"):
            return value
        name, state = value.meta["class_name"], dict(value.meta["state"])
        if not hasattr(module, name):
            setattr(module, name, type(name, (), {"__module__": "training.networks"}))
        state["_modules"] = {k: plain(v) for k, v in state["_modules"].items()}
        for part in ("_init_args", "_init_kwargs"):
            state.pop(part)
        if name == "SongUNet":
            state["label_dropout"] = 0.5
            state["_modules"]["enc"]._modules = {
                k: plain(v) for k, v in state["_modules"]["enc"]._modules.items()
            }
            state["_modules"]["dec"]._modules = {
                k: plain(v) for k, v in state["_modules"]["dec"]._modules.items()
            }
        if name == "UNetBlock":
            state["dropout"] = 0.25
        made = getattr(module, name)()
        made.__dict__.update(state)
        return made

    top = plain(as_theirs(net, {}, {"sigma_data": 0.5}))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"ema": top}, protocol))
    back = edm.load_checkpoint(tmp_path / "plain.pkl")
    assert back.model.config == UNetConfig(**{**config.to_dict(), "resample_filter": (0.5, 0.5)})
    x = torch.randn(2, *config.shape)
    with torch.no_grad():
        torch.testing.assert_close(back(x, 1.0, torch.tensor([0, 1])), net(x, 1.0, torch.tensor([0, 1])))
