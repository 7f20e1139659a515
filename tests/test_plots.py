"""Field lines: they end on the data as the data are distributed, and what cannot be drawn is refused."""

import math

import pytest
import torch
from PIL import Image

import pfgm_fast as pf
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
