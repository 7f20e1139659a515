"""One Euler step of the sampler: fused (ours, in place), in plain PyTorch, and one `x + v` as the yardstick."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pfgm_fast as pf
from benchmarks.compare import BAR, compare
from benchmarks.report import Row
from pfgm_fast import peers

SHAPES = {(64, 3072): 2.5, (16, 196608): None}
"""(B, N) → how many times one `x + v` the fused step may take at most."""


@pytest.mark.parametrize("z", [1.0, 10.0], ids=lambda z: f"z={z:g}")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_euler_step(shape: tuple[int, int], z: float, benchmark: Any, rows: list[Row]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    vx = 0.3 * torch.randn(shape, generator=generator)
    vz = -torch.rand(shape[0], generator=generator) - 0.5
    out, z_next = torch.empty_like(x), 0.9 * z
    exact = peers.plain_euler(x.double(), vx.double(), vz.double(), z, z_next)
    got = pf.euler_step(x, vx, vz, z, z_next, out=out)
    error = float(((got - exact).norm(dim=1) / exact.norm(dim=1)).max())
    taken = compare(
        benchmark,
        lambda: pf.euler_step(x, vx, vz, z, z_next, out=out),
        {
            "plain PyTorch": lambda: peers.plain_euler(x, vx, vz, z, z_next),
            "x + v": lambda: torch.add(x, vx, out=out),
        },
        seconds=2.0,
        most=2000,
    )
    case = f"{shape[0]} × {shape[1]}, z = {z:g}, {'v_z substituted' if z < 5 else 'v_z of the network'}"
    names = {"ours": "ours, fused, in place"}
    found: list[Row] = []
    for name, times in taken.items():
        row: Row = {"kind": "step", "case": case, "what": names.get(name, name)}
        row |= {"ms": times.median * 1e3, "of_add": taken["x + v"].ratio_to(times)}
        if name == "ours":
            row |= {"error": error, "bar": SHAPES[shape], "of": "of_add", "below": True}
        found.append(row)
    rows.extend(found)
    benchmark.extra_info["rows"] = found
    assert error <= BAR
