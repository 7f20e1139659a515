"""EDM's recipe in the trainer: presets, preconditioned networks, augmentation, averages by half-life; what is left to learn."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.charges import Charges
from pfgm_fast.cli import main
from pfgm_fast.data import ImageSet
from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods import from_dict
from pfgm_fast.methods.pfgmpp import EDM, PFGMpp
from pfgm_fast.nn import EMA, AugmentPipe, ema_decay
from pfgm_fast.presets import PRESETS, adapted
from pfgm_fast.studies.optimal_loss import edm_weight, optimal_loss
from pfgm_fast.training import RunConfig, Trainer, load_network, loss_picture
from pfgm_fast.training.log import read
from pfgm_fast.training.networks import build
from pfgm_fast.training.optimal import OptimalLoss, Perfect

RECIPES = [name for name, config in PRESETS.items() if config.preconditioning is not None]
PUBLISHED = {  # images, batch, lr, dropout, augmentation, half-life, D, network
    "cifar10-pfgmpp-128": (200e6, 512, 1e-3, 0.13, 0.12, 5e5, 128, "fourier"),
    "cifar10-pfgmpp-2048": (200e6, 512, 1e-3, 0.13, 0.12, 5e5, 2048, "fourier"),
    "cifar10-edm": (200e6, 512, 1e-3, 0.13, 0.12, 5e5, math.inf, "positional"),
    "ffhq64": (200e6, 256, 2e-4, 0.05, 0.15, 5e5, 128, "positional"),
    "afhq64": (200e6, 256, 2e-4, 0.25, 0.15, 5e5, 128, "positional"),
    "imagenet64": (2500e6, 4096, 1e-4, 0.10, 0.0, 5e7, math.inf, None),
}


def pictures(shape: tuple[int, ...] = (3, 16, 16), count: int = 24, classes: int = 3) -> ImageSet:
    """Smooth, so that an augmented image is like others."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    return ImageSet("synthetic", (255 * images).byte(), torch.arange(count) % classes)


def shrunk(name: str, images: ImageSet, **train: Any) -> RunConfig:
    """The preset for other images, its network and batch small."""
    config = adapted(PRESETS[name], images)
    network = replace(
        config.network, width=64 if config.network.architecture == "adm" else 8, blocks=1,
        multipliers=(1, 2), attention=(8,),
    )  # fmt: skip
    given = {
        "steps": 2, "batch": 8, "log_every": 1, "sample_every": 0, "checkpoint_every": 1, "warmup": 1,
        "precision": "float32", "reservoir": None if config.train.reservoir is None else 12, **train,
    }  # fmt: skip
    return replace(config, network=network, train=replace(config.train, **given))


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_recipes(name: str) -> None:
    config = PRESETS[name]
    images, batch, lr, dropout, augment, half_life, dim, embedding = PUBLISHED[name]
    train, method = config.train, from_dict(config.method or {})
    assert isinstance(method, PFGMpp) and method.aug_dim == dim and not method.stable
    assert (train.batch, train.lr, train.augment, train.ema_half_life) == (batch, lr, augment, (half_life,))
    assert abs(train.steps * batch - images) < batch and abs(train.warmup * batch - 10e6) < batch
    assert config.network.dropout == dropout
    assert config.network.architecture == ("adm" if embedding is None else "ncsnpp")
    assert embedding is None or config.network.embedding == embedding
    with torch.device("meta"):
        net = build(config, method)
    assert net.sigma_max == method.sigma_max and net.model.config == config.network


def test_sizes_of_the_networks_are_the_released_ones() -> None:
    """EDM's paper, table 7: 56 M (CIFAR-10), 62 M (FFHQ), 296 M (ImageNet)."""
    for name, millions in (("cifar10-edm", 56), ("ffhq64", 62), ("imagenet64", 296)):
        with torch.device("meta"):
            net = build(PRESETS[name], from_dict(PRESETS[name].method or {}))
        assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions, name
    scaled = from_dict(PRESETS["lsun256-pfgmpp"].method or {})
    assert isinstance(scaled, PFGMpp) and scaled.sigma_max == 380
    assert math.exp(scaled.P_mean + 1.2) == pytest.approx(4.75)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_is_read(name: str, tmp_path: Path) -> None:
    images = pictures()
    config = shrunk(name, images)
    trainer = Trainer(config, tmp_path, images=images)
    before = [p.clone() for p in trainer.net.parameters()]
    trainer.run(progress=False)
    assert sum(not torch.equal(a, b) for a, b in zip(before, trainer.net.parameters(), strict=True)) > 5
    assert [float(row["loss"]) > 0 for row in read(tmp_path)] == [True, True]
    net, method, _ = load_network(tmp_path)
    labels = torch.tensor([0, 2]) if config.train.conditional else None
    assert pf.sample(net, (2, 3, 16, 16), "heun", 3, method=method, labels=labels).x.isfinite().all()


def run_of(folder: Path, images: ImageSet, until: int | None = None, **train: Any) -> Trainer:
    config = shrunk("cifar10-pfgmpp-128-conditional", images, steps=5, **train)
    config = replace(
        config,
        method={**(config.method or {}), "stable": True},
        network=replace(config.network, label_dropout=0.3),
    )
    trainer = Trainer(config, folder, images=images)
    trainer.run(until, progress=False)
    return trainer


@pytest.mark.parametrize(
    "train",
    [
        {"augment": 0.4, "augment_group": 2, "field_charges": 12},
        {"augment": 0.4, "reservoir": 12, "optimal_every": 2},
        {"accumulate": 2, "ema_half_life": (20.0, 300.0), "ema_ramp_up": None},
    ],
    ids=["augmented reference batch", "augmented reservoir", "whole set"],
)
def test_a_stopped_run_goes_on_to_the_bit(train: dict[str, Any], tmp_path: Path) -> None:
    """With dropout, withheld labels, augmentation, stable targets of each class, averages by half-life."""
    images = pictures()
    whole = run_of(tmp_path / "whole", images, **train)
    run_of(tmp_path / "parts", images, until=3, **train)
    torch.manual_seed(77)  # another process
    parts = run_of(tmp_path / "parts", images, **train)
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for i in range(whole.config.train.averages):
        mine, theirs = (t.ema_network(i).state_dict().values() for t in (whole, parts))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    for a, b in zip(read(tmp_path / "whole"), read(tmp_path / "parts"), strict=True):
        assert a["loss"] == b["loss"] and a.get("optimal_loss") == b.get("optimal_loss")


def test_averages_have_the_half_life_in_images(tmp_path: Path) -> None:
    images = pictures()
    trainer = run_of(tmp_path, images, until=0, ema_half_life=(16.0,), ema_ramp_up=None)
    first = next(trainer.net.parameters()).detach().clone()
    trainer.run(until=1, progress=False)
    moved = next(trainer.net.parameters()).detach()
    expected = torch.lerp(first, moved, 1 - ema_decay(8, 0, 16.0, None))
    torch.testing.assert_close(next(trainer.ema_network().parameters()).detach(), expected)
    assert isinstance(trainer.averages[0], EMA) and int(trainer.averages[0].seen) == 8


def test_the_network_is_told_the_augmentation_and_the_target_is_moved_alike() -> None:
    images = pictures(count=20)
    charges = images.charges(labels=True)
    drawn = AugmentPipe(0.5).draw(8, torch.Generator().manual_seed(3))
    index = torch.arange(8)
    told = []

    class Recorder(torch.nn.Module):
        sigma_min, sigma_max = 0.0, math.inf

        def forward(self, x: Any, sigma: Any, labels: Any = None, augment_labels: Any = None) -> Any:
            told.append(augment_labels)
            return x * 0

    for stable in (False, True):
        method = EDM(stable=stable)
        y = drawn.apply(charges.values(index))
        x, sigma = method.perturb(y, torch.Generator().manual_seed(9))
        got = method.loss(
            Recorder(),
            charges.values(index),
            index,
            charges,
            torch.Generator().manual_seed(9),
            index % 3,
            augmentation=drawn,
        )
        target = y
        if stable:
            rows = []
            for i in range(8):
                own = charges.values()[images.labels == i % 3]  # type: ignore[index]
                moved = drawn.rows(torch.full((len(own),), i)).apply(own)
                rows.append(pf.posterior_mean(x[i : i + 1], sigma[i : i + 1], moved, math.inf))
            target = torch.cat(rows)
        weight = torch.tensor([edm_weight(float(s), 0.5) for s in sigma])
        expected = weight * target.square().flatten(1).mean(1)
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=1e-6)
        half = method.loss(  # of a process that shares the batch
            Recorder(), charges.values(index), index, charges, torch.Generator().manual_seed(9), index % 3,
            slice(2, 6), drawn,
        )  # fmt: skip
        torch.testing.assert_close(half, got[2:6], rtol=1e-4, atol=1e-6)
        assert torch.equal(told.pop(), drawn.labels[2:6])
        assert told[-1] is not None and torch.equal(told[-1], drawn.labels)


def test_augmentation_needs_a_network_that_is_told(tmp_path: Path) -> None:
    images = pictures()
    config = shrunk("cifar10-edm", images)
    for wrong in (
        replace(config, preconditioning=None),
        replace(config, network=replace(config.network, augment_dim=0)),
        replace(config, method={"name": "ve"}, preconditioning="ve"),
    ):
        with pytest.raises(ArgumentError, match=r"augment needs a network that is told.*augment_dim=9"):
            Trainer(wrong, tmp_path, images=images)
    with pytest.raises(ArgumentError, match="needs sigma_data, which method ve"):
        build(replace(config, preconditioning="edm"), from_dict({"name": "ve"}))


@pytest.mark.parametrize(("name", "kind"), [("ve", "ve"), ("vp", "vp"), ("subvp", "subvp"), ("pfgm", "ve")])
def test_other_methods_train_preconditioned_networks(name: str, kind: Any, tmp_path: Path) -> None:
    images = pictures()
    config = shrunk("cifar10-edm", images, augment=0.0)
    config = replace(
        config, method={"name": name}, preconditioning=kind, network=replace(config.network, augment_dim=0)
    )
    Trainer(config, tmp_path, images=images).run(progress=False)
    net, method, _ = load_network(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one of a denoiser of another D
        assert pf.sample(net, (2, 3, 16, 16), steps=3, method=method).x.isfinite().all()


def test_networks_go_by_their_names(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(
        ["train", "--data", "digits", "--out", str(out), "--steps", "1", *(x for s in (
            "network.width=8", "network=ncsnpp", "network.blocks=1", "method.name=edm", "preconditioning=edm",
            "train.batch=4", "train.sample_every=0",
        ) for x in ("--set", s))]
    ) == 0  # fmt: skip
    config = RunConfig.load(out)
    assert (config.network.embedding, config.network.encoder, config.network.width) == (
        "fourier",
        "residual",
        8,
    )
    assert config.network.resample_filter == (1, 3, 3, 1) and config.preconditioning == "edm"
    assert main(["sample", str(out), "--out", str(tmp_path / "a.png"), "--count", "2", "--steps", "2"]) == 0
    assert (
        main(["evaluate", str(out), "--count", "600", "--steps", "1", "--json", str(tmp_path / "e.json")])
        == 0
    )


@pytest.mark.parametrize("aug_dim", [32.0, math.inf])
def test_a_perfect_network_has_the_studys_optimal_loss(aug_dim: float) -> None:
    """The mean over the run's own σ is that of `studies.optimal_loss` under EDM's weight, integrated over ln σ."""
    charges = Charges(pictures((1, 8, 8), 60).images)
    kind = {"aug_dim": aug_dim} if math.isfinite(aug_dim) else {}
    method = (PFGMpp if kind else EDM)(stable=False, **kind)
    index = torch.arange(60).repeat(60)
    losses = method.loss(
        Perfect(charges, aug_dim), charges.values(index), index, charges, torch.Generator().manual_seed(0)
    )
    nodes = torch.linspace(-4, 4, 33)
    density = (-0.5 * nodes.square()).exp()
    sigmas = (method.P_mean + method.P_std * nodes).exp().tolist()
    points = optimal_loss(charges, sigmas, (aug_dim,), queries=60, effective_queries=0, seed=1)
    values = torch.tensor([edm_weight(p.sigma, 0.5) * p.loss for p in points])
    expected = float((density * values).sum() / density.sum())
    error = float(losses.std()) / math.sqrt(len(losses))
    assert expected > 10 * error  # something is there to be measured
    assert abs(float(losses.mean()) - expected) < 4 * error + 0.05 * expected


@pytest.mark.parametrize("rows", [slice(None), slice(1, 5)], ids=str)
def test_nothing_is_left_to_learn_for_a_perfect_network(rows: slice) -> None:
    """Its loss is measured on the draws, the rows and the augmentation of the update, so the difference is 0, not noise about 0."""
    charges = pictures().charges(labels=True)
    method, index = EDM(stable=False, P_mean=1.0), torch.arange(8)
    drawn = AugmentPipe(0.5).draw(8, torch.Generator().manual_seed(3))
    perfect = Perfect(charges)
    perfect.augmentation = drawn.rows(rows)
    generator = torch.Generator().manual_seed(4)
    given = (charges.values(index), index, charges)
    labels = charges.labels[index] if charges.labels is not None else None
    state = generator.get_state()
    losses = method.loss(perfect, *given, generator, labels, rows, drawn)
    measured = OptimalLoss(method, lambda total: total)
    measured.measure(charges, state, losses, *given, labels, rows=rows, augmentation=drawn)
    best, left = measured.take() or (0.0, 1.0)
    assert left == 0 and best == pytest.approx(float(losses.sum()) / 8) and best > 0
    assert measured.take() is None


@pytest.mark.parametrize("stable", [False, True])
def test_what_is_left_to_learn_is_logged_beside_the_loss(
    stable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring draws nothing: the run is the same to the bit. With exact targets nothing but the loss itself is left."""
    images = pictures()
    config = shrunk("cifar10-edm", images, steps=4)
    config = replace(config, method={**(config.method or {}), "stable": stable, "P_mean": 1.0})
    plain = Trainer(config, tmp_path / "plain", images=images)
    plain.run(progress=False)
    config = replace(config, train=replace(config.train, optimal_every=2))
    Trainer(config, tmp_path / "measured", images=images).run(progress=False)
    rows = read(tmp_path / "measured")
    assert [row["loss"] for row in read(tmp_path / "plain")] == [row["loss"] for row in rows]
    assert [bool(row["optimal_loss"]) for row in rows] == [False, True, False, True]
    for row in rows[1::2]:
        loss, best, left = (float(row[name]) for name in ("loss", "optimal_loss", "left_to_learn"))
        assert loss == pytest.approx(best + left, rel=1e-5)
        assert (best < 1e-3 * loss) if stable else (0.001 * loss < best)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(pf.plots, "loss_curve", lambda *given: drawn.update(given=given))
    loss_picture(tmp_path / "measured", tmp_path / "loss.png")
    assert [at for at, _, _ in drawn["given"][3]] == [2.0, 4.0] and len(drawn["given"][0]) == 4
    monkeypatch.undo()
    loss_picture(tmp_path / "measured", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 5000
