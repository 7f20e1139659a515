"""`pfgm-fast sample|evaluate FILE`: another program's checkpoint in a run's place."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pfgm_fast.cli import main
from pfgm_fast.nn import UNetConfig, denoiser
from tests import score_sde_reference as reference
from tests.edm_files import as_theirs, write_snapshot, write_state


@pytest.fixture
def snapshot(tmp_path):
    """A conditional network for the digits, without training."""
    net = denoiser(UNetConfig(1, 8, 8, (1, 2), 1, (4,), classes=10)).eval()
    write_snapshot(tmp_path / "network-snapshot-1.pkl", as_theirs(net, {}, {"pfgmpp": True, "D": 128}))
    return tmp_path / "network-snapshot-1.pkl"


def drawn(path, out, *more: str) -> np.ndarray:
    arguments = [
        "sample",
        str(path),
        "--count",
        "4",
        "--steps",
        "2",
        "--solver",
        "heun",
        "--out",
        str(out),
        *more,
    ]
    assert main(arguments) == 0
    return np.load(out)["images"]


def test_sample_takes_every_kind_of_file(snapshot, tmp_path) -> None:
    out = tmp_path / "x.npz"
    assert drawn(snapshot, out).shape == (4, 1, 8, 8)
    assert drawn(snapshot, out, "--labels", "3,1").shape == (4, 1, 8, 8)
    spec = {
        "channels": 1,
        "out": 2,
        "size": 8,
        "width": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (4,),
    }
    spec |= {"fourier": False, "pyramid": None, "progressive": False}
    for channels, shape in (
        (2, (4, 1, 8, 8)),
        (1, (4, 1, 8, 12)),
    ):  # PFGM's, and VP's on images that are not square
        torch.save(
            reference.checkpoint(reference.modules({**spec, "out": channels})), tmp_path / "checkpoint_1.pth"
        )
        size = f"{shape[2]}x{shape[3]}"
        assert drawn(tmp_path / "checkpoint_1.pth", out, "--image-size", size).shape == shape


def test_the_average_or_the_weights(tmp_path) -> None:
    nets = [denoiser(UNetConfig(1, 8, 8, (1,), 1, ())) for _ in range(2)]
    with torch.no_grad():
        for net in nets:
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
    write_state(tmp_path / "training-state-1.pt", *(as_theirs(net, {}, {}) for net in nets))
    first, second = (
        drawn(tmp_path / "training-state-1.pt", tmp_path / "x.npz", "--ema", k) for k in ("0", "-1")
    )
    assert (first != second).any()


def test_evaluate_takes_a_file_with_data(tmp_path) -> None:
    net = denoiser(UNetConfig(1, 8, 8, (1,), 1, ()))
    write_snapshot(tmp_path / "network-snapshot-1.pkl", as_theirs(net, {}, {}))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels)
    out = tmp_path / "figures.json"
    common = ["evaluate", str(tmp_path / "network-snapshot-1.pkl"), "--count", "16", "--steps", "2"]
    common += ["--json", str(out), "--data", str(tmp_path / "data.npz")]
    assert main([*common, "--likelihood", "2", "--invert", "2", "--tolerance", "1e-1"]) == 0
    figures = json.loads(out.read_text())
    assert figures["energy_distance"] > 0
    assert figures["bits_per_dim_images"] == 2
    assert figures["inversion_evaluations"] > 1


def test_one_line_for_what_cannot_be(snapshot, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pkl").write_text("hello")
    for arguments, message in (
        (["evaluate", str(snapshot)], "holds no data: name what to compare with by --data"),
        (["sample", str(snapshot), "--snapshot", "3"], "holds one average and no snapshots"),
        (["sample", str(snapshot), "--labels", "10"], "--labels must be in [0, 10)"),
        (["sample", str(tmp_path / "text.pkl")], "cannot be read"),
        (["sample", str(tmp_path), "--image-size", "8"], "a run knows its own"),
    ):
        assert main([*arguments, "--count", "2"]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
