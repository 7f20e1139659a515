"""Field lines: they end on the data as the data are distributed, and what cannot be drawn is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pfgm_fast as pf
from pfgm_fast.errors import ArgumentError
from pfgm_fast.plots import animation, image_grid, trajectories
from pfgm_fast.plots.lines import _hemisphere


def heart(count, seed=0):
    t = 2 * math.pi * torch.rand(count, generator=torch.Generator().manual_seed(seed))
    across = 16 * t.sin() ** 3
    return torch.stack([across, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()], 1) / 10


def test_lines_end_on_the_charges_and_begin_where_they_were_asked_to():
    charges = heart(500)
    starts = torch.cat([8 * torch.randn(40, 2), torch.linspace(1, 9, 40)[:, None]], 1)
    lines = pf.plots.trace_lines(starts, charges, 1e-3, 300)
    assert lines.shape == (301, 40, 3) and torch.equal(lines[0], starts)
    torch.testing.assert_close(lines[-1, :, 2], torch.full((40,), 1e-3), rtol=1e-3, atol=0)
    missed = torch.cdist(lines[-1, :, :2], charges).min(1).values
    assert float(missed.median()) < 3e-3 and float(missed.max()) < 0.05  # the charges' own spacing is 0.02


def test_lines_of_one_charge_are_rays():
    charges = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    starts = torch.tensor([[4.0, 2.0, 5.0], [-3.0, -2.0, 1.0]], dtype=torch.float64)
    lines = pf.plots.trace_lines(starts, charges, 0.01, 200)
    away = (lines[..., :2] - charges) / lines[..., 2:]
    torch.testing.assert_close(away, away[:1].expand_as(away), rtol=1e-9, atol=0)


def test_the_hemisphere_flows_onto_the_data_evenly():
    """Gauss's law: two clusters of 3:1 charges catch lines 3:1."""
    clusters = torch.tensor([[-1.0, 0.0]] * 300 + [[1.0, 0.0]] * 100) + 1e-3 * torch.randn(400, 2)
    starts = 40 * _hemisphere(2000, 0)
    ends = pf.plots.trace_lines(starts.float(), clusters, 1e-3, 200)[-1]
    share = float((ends[:, 0] < 0).float().mean())
    assert share == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("view", ["3d", "plane", "half-plane"])
def test_each_view_is_written_as_a_picture(tmp_path, view):
    pf.plots.field_lines(heart(200), tmp_path / "lines.png", view=view, lines=20, title="a heart")
    picture = Image.open(tmp_path / "lines.png")
    assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": "4d"}, "view must be one of 3d, plane, half-plane"),
        ({"lines": 0}, "lines must be an integer"),
        ({"height": -1.0}, "height"),
        ({"view": "plane", "z": 0.0}, "z must be"),
        ({"charges": torch.zeros(4, 3)}, r"draws charges \(M, 2\)"),
        ({"charges": torch.zeros(4, 1, 2)}, r"draws charges \(M, 2\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(pf.ArgumentError, match=message):
        pf.plots.field_lines(**{"charges": heart(10), **change})


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (torch.ones(3, 2), r"starts must be \(L, 3\)"),
        (torch.zeros(3, 3), "every start must lie above z_min"),
    ],
)
def test_starts_are_checked(starts, message):
    with pytest.raises(pf.ArgumentError, match=message):
        pf.plots.trace_lines(starts, heart(10))


def _walk(*shape: int) -> list[tuple[float, torch.Tensor]]:
    """Five states, the first of them far away."""
    generator = torch.Generator().manual_seed(0)
    last = torch.rand(shape, generator=generator) * 2 - 1
    return [(float(z), last + z * torch.randn(shape, generator=generator)) for z in (40, 10, 3, 1, 0)]


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 6, 10), (50, 2)], ids=str)
def test_an_animation_has_its_frames_and_ends_on_the_samples(tmp_path: Path, shape: tuple[int, ...]) -> None:
    walk, path = _walk(*shape), tmp_path / "way.gif"
    animation(walk, path, walk[-1][1] if len(shape) == 2 else None, frames=3, seconds=0.9)
    with Image.open(path) as made:
        assert made.n_frames == 3 and made.info["loop"] == 0
        made.seek(2)
        assert made.info["duration"] == 1500
        last = np.asarray(made.convert("RGB")).astype(int)
    if len(shape) == 4:
        wanted = image_grid(walk[-1][1])
        assert last.shape == wanted.shape and np.abs(last - wanted).mean() < 4  # 256 colours
    else:
        assert ((last - [0, 114, 178]) ** 2).sum(2).min() < 300


def test_what_cannot_be_animated_is_refused(tmp_path: Path) -> None:
    bad = {
        "empty": dict(path_taken=[]),
        "can be animated": dict(path_taken=_walk(4, 3)),
        "not finite": dict(path_taken=[(1.0, torch.full((2, 2), float("nan")))]),
        "frames": dict(path_taken=_walk(4, 2), frames=0),
        "seconds": dict(path_taken=_walk(4, 2), seconds=0),
        "points": dict(path_taken=_walk(4, 2), data=torch.zeros(4, 3)),
    }
    for word, arguments in bad.items():
        with pytest.raises(ArgumentError, match=word):
            animation(path=tmp_path / "x.gif", **arguments)
    assert not (tmp_path / "x.gif").exists()


def test_trajectories_of_points_are_drawn_over_the_data(tmp_path: Path) -> None:
    walk = _walk(30, 2)
    trajectories(walk, walk[-1][1], tmp_path / "paths.png")
    with Image.open(tmp_path / "paths.png") as made:
        colors = np.asarray(made.convert("RGB")).reshape(-1, 3).tolist()
    assert [213, 94, 0] in colors  # the samples
    with pytest.raises(ArgumentError, match="shape"):
        trajectories(walk, torch.zeros(5, 3), tmp_path / "paths.png")
