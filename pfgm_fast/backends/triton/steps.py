"""The fused steps: which kernel of `rows` serves a call, and its launch. `reference` defines each function.

A row that fits a program's registers is read once, in one launch. A longer one is read twice: by one program in one launch
where there are rows enough to fill the device, else by a program a segment in two launches. Nothing reads z on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends.reference import SLACK
from pfgm_fast.backends.triton import configs, step_kernels
from pfgm_fast.backends.triton.runtime import Compilation, Launch, cdiv, device_guard, recorded, tl, triton

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
LANES = 64 if torch.version.hip else 32
"""Threads of a warp."""
SMALL_TILE = 2048
"""Elements of the rows that one program shares where rows are short."""
LONGEST = 16384
"""Elements of the longest row that a program keeps, if its registers hold it."""


@dataclass(frozen=True)
class Tile:
    """What a program has in registers at a time: `rows` rows of `block` elements, in `threads` threads."""

    rows: int
    block: int
    threads: int

    @property
    def warps(self) -> int:
        return self.threads // LANES


SWEEP_THREADS = 512
"""Threads of a program of `sweep_kernel`; each may have 128 registers."""
SEGMENT = Tile(1, 4096, 256)
"""What a program of `square_kernel` or `segment_kernel` takes in all."""


def row_tile(dim: int, words: int) -> Tile | None:
    """The tile of whole rows, or None where they do not fit. words: 4-byte registers that an element takes, over all arrays.

    16 elements a thread (8 where each takes many registers, 32 in the longest rows): enough loads in flight, and behind
    `SMALL_TILE` at most 64 registers of data.
    """
    block = triton.next_power_of_2(dim)
    if block <= SMALL_TILE:
        return Tile(SMALL_TILE // block, block, SMALL_TILE // 16)
    threads = min(512, block // (16 if words <= 4 else 8))
    if block > LONGEST or block // threads * words > 64:
        return None
    return Tile(1, block, threads)


def sweep_tile(words: int, sums: int) -> Tile:
    """What a program of `sweep_kernel` takes at a time. words: as above, of one array; sums: that it forms at once.

    8 elements a thread; 4 where each takes two registers, or has several sums beside it.
    """
    return Tile(1, SWEEP_THREADS * (8 if words == sums == 1 else 4), SWEEP_THREADS)


def _stride(z: Tensor | None) -> int:
    return z.stride(0) if z is not None and z.dim() == 1 and z.shape[0] > 1 else 0


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def _launch(
    v: Tensor,  # (B, N), any floating dtype
    vz: Tensor,  # (B,)
    z: Tensor,  # () or (B,)
    out: Tensor,  # (B, N), float32 or float64, contiguous
    gamma: float,
    z_exp: float,
    *,
    x: Tensor | None = None,  # (B, N), out's dtype
    z_next: Tensor | None = None,  # () or (B,)
    v_next: Tensor | None = None,  # (B, N)
    vz_next: Tensor | None = None,  # (B,)
    normalize: bool = False,
    radius: float | None = None,  # of the charges, with x
) -> None:
    """Writes out = [x +] a v [+ b v'] [+ c x], and vz where `normalize`, as `step_factors.factors` has a, b and c."""
    count, dim = v.shape
    if count == 0:
        return
    vectors = {"v": _contiguous(v), "v_next": _contiguous(v_next)}
    arrays = {"x": _contiguous(x), **vectors, "out": out, "vz": vz, "vz_next": vz_next}
    numbers = {
        "z": z,
        "z_next": z_next,
        "z_stride": _stride(z),
        "z_next_stride": _stride(z_next),
        "dim": dim,
        "z_exp": z_exp,
    }
    bounded = radius is not None and x is not None
    within = 0.0 if radius is None else radius * (1 + SLACK)
    rule = {"root": math.sqrt(dim), "gamma": gamma, "radius": within}
    kind = {"T": TYPES[out.dtype], "NORMALIZE": normalize, "BOUNDED": bounded}
    words = sum(arrays[name] is not None for name in ("x", "v", "v_next")) * out.element_size() // 4

    def run(kernel: Any, tile: Tile, programs: int, *arguments: dict[str, Any], **constexprs: int) -> None:
        merged = {name: value for some in (numbers, *arguments) for name, value in some.items()}
        constants = {**kind, "BLOCK": tile.block, **constexprs}
        Launch(
            f"{kernel.__name__}-{tile.block}", kernel, lambda _: programs, merged, constants, tile.warps, 1
        ).run()

    sums = (3 if bounded else 1) * (1 if v_next is None else 2)

    with device_guard(out):
        tile = row_tile(dim, words)
        if tile is not None:
            programs = cdiv(count, tile.rows)
            run(step_kernels.row_kernel, tile, programs, arrays, rule, {"rows": count}, ROWS=tile.rows)
        elif count >= configs.of_device(out.device)[1]:  # enough to fill the device
            run(step_kernels.sweep_kernel, sweep_tile(out.element_size() // 4, sums), count, arrays, rule)
        else:
            segments = cdiv(dim, SEGMENT.block)
            partial = {"partial": out.new_empty((sums, count, segments)), "rows": count}
            read = {"x": arrays["x"] if bounded else None, **vectors}
            run(step_kernels.square_kernel, SEGMENT, count * segments, read, partial)
            run(step_kernels.segment_kernel, SEGMENT, count * segments, arrays, rule, partial)


def normalize_field(field: Tensor, r: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """v_x (B, N), v_z (B,) = −√N (field, r)/(‖(field, r)‖ + γ)."""
    vx, vz = torch.empty_like(field, memory_format=torch.contiguous_format), torch.empty_like(r)
    _launch(field, vz, r, vx, gamma, 0.0, normalize=True)
    return vx, vz


def drift(
    vx: Tensor,
    vz: Tensor,
    z: Tensor,
    gamma: float,
    z_exp: float,
    x: Tensor | None = None,
    radius: float | None = None,
) -> Tensor:
    """dx/dz = v_x/v_z (B, N) in z's dtype, v_z substituted below z_exp."""
    out = vx.new_empty(vx.shape, dtype=z.dtype)
    _launch(vx, vz, z, out, gamma, z_exp, x=None if radius is None else x, radius=radius)
    return out


def euler_step(
    x: Tensor,
    vx: Tensor,
    vz: Tensor,
    z: Tensor,
    z_next: Tensor,
    gamma: float,
    z_exp: float,
    radius: float | None = None,
) -> Tensor:
    """x + (z' − z) dx/dz (B, N)."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    euler_step_out(x, vx, vz, z, z_next, gamma, z_exp, radius, out=out)
    return out


def euler_step_out(
    x: Tensor,
    vx: Tensor,
    vz: Tensor,
    z: Tensor,
    z_next: Tensor,
    gamma: float,
    z_exp: float,
    radius: float | None = None,
    *,
    out: Tensor,
) -> None:
    """`euler_step` into out, contiguous, which may be x."""
    _launch(vx, vz, z, out, gamma, z_exp, x=x, z_next=z_next, radius=radius)


def heun_step(
    x: Tensor,
    vx: Tensor,
    vz: Tensor,
    vx_next: Tensor,
    vz_next: Tensor,
    z: Tensor,
    z_next: Tensor,
    gamma: float,
    z_exp: float,
    radius: float | None = None,
) -> Tensor:
    """x + (z' − z)/2 · (dx/dz at z + dx/dz at z') (B, N)."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(vx, vz, z, out, gamma, z_exp, x=x, z_next=z_next, v_next=vx_next, vz_next=vz_next, radius=radius)
    return out


def ahead_of_time(arch: str) -> list[Compilation]:
    """Every tile for `euler_step`, and for each operator and dtype those that need most registers; rows of odd length too."""
    lanes = 64 if arch.startswith("gfx") else 32
    with recorded() as found:
        for dim in [2**k for k in range(15)]:
            _example("euler_step", 2, dim, torch.float32, torch.float32)
        for op in ("normalize_field", "drift", "euler_step", "heun_step"):
            for dim in (771, 3072, 8192, 12_288, 196_608, 70_001):
                for count in (1, 2):  # long rows: segments, sweeps
                    for radius in (None, 10.0):
                        _example(op, count, dim, torch.float32, torch.bfloat16, radius)
                        _example(op, count, dim, torch.float64, torch.float64, radius)
    return [replace(c, num_warps=c.num_warps * LANES // lanes) for c in {repr(c): c for c in found}.values()]


def _example(
    op: str, count: int, dim: int, dtype: torch.dtype, network: torch.dtype, radius: float | None = None
) -> None:
    """A call whose tensors have no memory."""

    def array(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    x, v, vz, z = array(count, dim), array(count, dim, kind=network), array(count, kind=network), array()
    if op == "normalize_field":
        normalize_field(x, array(count), 5.0)
    elif op == "drift":
        drift(v, vz, z, 5.0, 5.0, x, radius)
    elif op == "euler_step":
        euler_step(x, v, vz, z, z, 5.0, 5.0, radius)
    else:
        heun_step(x, v, vz, v, vz, z, z, 5.0, 5.0, radius)
