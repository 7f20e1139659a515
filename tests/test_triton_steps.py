"""The Triton kernels of the fused steps in Triton's interpreter, against the reference in float64, and how rows are cut."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.backends import reference

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]
KINDS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float64),
    (torch.float64, torch.bfloat16),
]
"""Dtypes of x and of the network's output."""
SHAPES = [(1, 1), (7, 2), (5, 17), (3, 3071), (2, 4099)]
LONG = [(1, 20_011), (3, 20_011), (1, 33_000)]
"""One row is cut into segments, several are swept: to the interpreter two rows fill the device."""
CLOSE = {
    torch.float32: {"rtol": 3e-6, "atol": 3e-6},
    torch.float64: {"rtol": 1e-13, "atol": 1e-13},
}


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Memory from torch.empty is NaN, so that what no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    with pf.use_backend("triton"):
        yield
    torch.use_deterministic_algorithms(False)


def _networks(shape: tuple[int, int], dtype: torch.dtype, size: float = 0.3) -> list[Tensor]:
    """v_x, v_z, v_x', v_z' of about n = ‖v_x‖/√N = size."""
    vx, vx_next = (size * torch.randn(2, *shape)).to(dtype)
    vz, vz_next = (-torch.rand(2, shape[0]) - 0.1).to(dtype)
    return [vx, vz, vx_next, vz_next]


def _close(got: Tensor, expected: Tensor, close: dict[str, Any]) -> None:
    """Beside the largest number of the result: x and v may cancel in an element."""
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got.double(), expected, rtol=5 * close["rtol"], atol=close["atol"] * size)


def _check_all(x: Tensor, network: list[Tensor], z: Tensor, z_next: Tensor, *constants: float) -> None:
    """Every step of x against the reference in float64."""
    close: dict[str, Any] = CLOSE[x.dtype]
    vx, vz = network[:2]
    exact = [value.double() for value in network]
    at, then = z.double(), z_next.double()
    ops = torch.ops.pfgm_fast
    euler = ops.euler_step(x, vx, vz, z, z_next, *constants)
    expected = reference.euler_step(x.double(), *exact[:2], at, then, *constants)
    torch.testing.assert_close(euler.double(), expected, **close)
    heun = ops.heun_step(x, *network, z, z_next, *constants)
    expected = reference.heun_step(x.double(), *exact, at, then, *constants)
    torch.testing.assert_close(heun.double(), expected, **close)
    drift = ops.drift(vx, vz, z, *constants)
    assert drift.dtype == z.dtype
    torch.testing.assert_close(drift.double(), reference.drift(*exact[:2], at, *constants), **close)
    radii = z.expand(x.shape[0]).contiguous()
    got = ops.normalize_field(x, radii, constants[0])
    expected_field = reference.normalize_field(x.double(), radii.double(), constants[0])
    torch.testing.assert_close([v.double() for v in got], list(expected_field), **close)
    ball = 0.7 * math.sqrt(
        x.shape[1]
    )  # some rows imply a mean outside, some one on a line that misses the ball
    _close(
        ops.euler_step(x, vx, vz, z, z_next, *constants, ball),
        reference.euler_step(x.double(), *exact[:2], at, then, *constants, ball),
        close,
    )
    _close(
        ops.heun_step(x, *network, z, z_next, *constants, ball),
        reference.heun_step(x.double(), *exact, at, then, *constants, ball),
        close,
    )
    _close(
        ops.drift(vx, vz, z, *constants, x, ball),
        reference.drift(*exact[:2], at, *constants, x.double(), ball),
        close,
    )
    in_place = x.clone()
    ops.euler_step.out(in_place, vx, vz, z, z_next, *constants, out=in_place)
    assert torch.equal(in_place, euler)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_against_float64(shape: tuple[int, int], kind: tuple[torch.dtype, torch.dtype]) -> None:
    x, network = torch.randn(shape, dtype=kind[0]), _networks(shape, kind[1])
    rows = torch.linspace(1.0, 9.0, shape[0]).to(x.dtype)  # on both sides of z_exp
    for z in (torch.tensor(30.0, dtype=x.dtype), torch.tensor(2.0, dtype=x.dtype), rows):
        _check_all(x, network, z, 0.8 * z, 5.0, 5.0)


@pytest.mark.parametrize("shape", LONG, ids=str)
@pytest.mark.parametrize("kind", [KINDS[1], KINDS[4]], ids=str)
def test_long_rows_against_float64(shape: tuple[int, int], kind: tuple[torch.dtype, torch.dtype]) -> None:
    x, network = torch.randn(shape, dtype=kind[0]), _networks(shape, kind[1])
    rows = torch.linspace(4.0, 6.5, shape[0]).to(x.dtype)  # z_exp between z and z' too
    _check_all(x, network, rows, 0.7 * rows, 5.0, 5.0)
    _check_all(x, network, torch.tensor(30.0, dtype=x.dtype), 0.8 * rows, 5.0, 5.0)


@pytest.mark.parametrize("gamma", [0.1, 7.3])
@pytest.mark.parametrize("z_exp", [0.0, 1.0, 1.7])
def test_constants_in_full_precision(gamma: float, z_exp: float) -> None:
    """γ and z_exp are float64 to float64 tensors; z = z_exp is not below it."""
    x, network = torch.randn(4, 33).double(), _networks((4, 33), torch.float64)
    z = torch.tensor([z_exp - 1e-9, z_exp, z_exp + 1e-9, 3.0]).double().clamp(min=0.5)
    _check_all(x, network, z, 0.9 * z, gamma, z_exp)


def test_z_and_z_next_may_differ_in_shape_and_stride() -> None:
    x, network = torch.randn(5, 19), _networks((5, 19), torch.float32)
    spaced = torch.linspace(3.0, 8.0, 10)[::2]
    _check_all(x, network, spaced, torch.tensor(2.5), 5.0, 5.0)
    _check_all(x, network, torch.tensor(7.0), spaced, 5.0, 5.0)


@pytest.mark.parametrize("shape", [(3, 16), (2, 20_000), (1, 20_000)], ids=str)
@pytest.mark.parametrize("norm", [0.0, 1.0, 1.0 + 1e-6, 5.0, 1e15])
def test_never_nan_whatever_the_network_says(shape: tuple[int, int], norm: float) -> None:
    vx, vz = torch.full(shape, norm), -torch.ones(shape[0])
    assert pf.euler_step(torch.zeros(shape), vx, vz, 1.0, 0.5).isfinite().all()


@pytest.mark.parametrize("shape", [(3, 16), (3, 20_000), (1, 20_000)], ids=str)
def test_nan_stays_in_its_row(shape: tuple[int, int]) -> None:
    x, (vx, vz, *_) = torch.randn(shape), _networks(shape, torch.float32)
    vx[0, 3] = math.nan
    got = pf.euler_step(x, vx, vz, 1.0, 0.5)
    assert got[0].isnan().all()
    assert got[1:].isfinite().all()


@pytest.mark.parametrize("shape", [(9, 100), (2, 20_011), (1, 40_003)], ids=str)
def test_the_same_twice(shape: tuple[int, int]) -> None:
    x, (vx, vz, *_) = torch.randn(shape), _networks(shape, torch.bfloat16)
    first = pf.euler_step(x, vx, vz, 2.0, 1.5)
    assert torch.equal(pf.euler_step(x, vx, vz, 2.0, 1.5), first)


def test_sums_of_long_rows_do_not_drift() -> None:
    """‖v‖² of 196,608 equal numbers, where adding one by one in float32 would err by 1e-4."""
    vx = torch.full((1, 196_608), 0.1)
    got, _ = torch.ops.pfgm_fast.normalize_field(vx, torch.tensor([0.5]), 5.0)
    expected, _ = reference.normalize_field(vx.double(), torch.tensor([0.5]).double(), 5.0)
    torch.testing.assert_close(got.double(), expected, rtol=3e-7, atol=0.0)


def test_channels_last_and_empty_batches() -> None:
    x, vx, vz = torch.randn(3, 4, 5, 6), 0.3 * torch.randn(3, 4, 5, 6), -torch.ones(3)
    expected = pf.euler_step(x, vx, vz, 2.0, 1.5)
    last = vx.to(memory_format=torch.channels_last)
    assert torch.equal(pf.euler_step(x.to(memory_format=torch.channels_last), last, vz, 2.0, 1.5), expected)
    assert pf.euler_step(x[:0], vx[:0], vz[:0], 2.0, 1.5).shape == (0, 4, 5, 6)


@pytest.mark.parametrize("words", [1, 2, 3, 6])
@pytest.mark.parametrize("dim", [1, 2, 3, 64, 784, 2049, 3072, 8193, 12_288, 16_384, 16_385, 196_608])
def test_a_tile_of_whole_rows_fits_registers_or_is_refused(dim: int, words: int) -> None:
    from pfgm_fast.backends.triton.steps import row_tile

    tile = row_tile(dim, words)
    if tile is None:
        assert dim > 4096
        return
    assert dim <= tile.block < 2 * dim or dim == 1
    assert tile.rows * tile.block // tile.threads * words <= 96
    assert tile.rows == 1 or tile.rows * tile.block == 2048
