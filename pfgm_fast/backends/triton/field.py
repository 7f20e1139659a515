"""The field operators, as launches: which kernels, which configurations, which scratch memory.

| path | serves | launches |
|---|---|---|
| small_n | N ≤ 16 (not score, second_moment; not few queries that meet very many charges) | 1 |
| bytes | uint8 charges: split_digits, distance_gemm, weights, weighted_sum, finish | 5; log_density, score, second_moment 3 |
| floats | float32 charges: distance_gemm, weights, weighted_sum, finish | 4; log_density, score, second_moment 2 |

Sparse rows are finished by `weights`; `weighted_sum` and `finish` return at once where no row is dense. Nothing waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.backends import reference
from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall, Scratch
from pfgm_fast.backends.triton.common import FIELD_OPS
from pfgm_fast.backends.triton.distance_gemm import launch_distance_gemm_bytes, launch_distance_gemm_floats
from pfgm_fast.backends.triton.finish import launch_finish
from pfgm_fast.backends.triton.runtime import Compilation, device_guard, recorded
from pfgm_fast.backends.triton.small_n import launch_small_n, small_n_serves
from pfgm_fast.backends.triton.split_digits import launch_split_digits
from pfgm_fast.backends.triton.weighted_sum import launch_weighted_sum
from pfgm_fast.backends.triton.weights import launch_weights

SCRATCH = 1 << 30
"""Bytes of pairs at a time, about: larger batches are served in blocks of rows, each a multiple of LEAST_ROWS."""

LEAST_ROWS = 128


def prepared(call: FieldCall) -> FieldCall:
    """With center and sq_norms: those of the caller, or around 0, in plain PyTorch."""
    if call.center is not None and call.sq_norms is not None:
        if call.center.dtype == call.x.dtype:
            return call
        return replace(call, center=call.center.to(call.x.dtype))
    center = torch.zeros_like(call.x[0]) if call.center is None else call.center.to(call.x.dtype)
    parts = reference.chunks(call.charges, call.divisor, call.offset, call.x.dtype)
    norms = torch.cat([(y.double() - center.double()).square_().sum(1) for _, y in parts])
    return replace(call, center=center, sq_norms=norms)


def serve(call: FieldCall) -> None:
    """Fill the call's outputs."""
    batch, count, _ = call.sizes
    if batch == 0:
        return
    with device_guard(call.x):
        table, processors = configs.of_device(call.x.device)
        if small_n_serves(call, processors):
            launch_small_n(call)
            return
        call = prepared(call)
        rows = max(1, SCRATCH // (Scratch.bytes_a_pair(call) * count * LEAST_ROWS)) * LEAST_ROWS
        if batch <= rows:
            serve_rows(call, table, processors)
            return
        for start in range(0, batch, rows):
            serve_rows(call.rows(slice(start, start + rows)), table, processors)


def launch_distance_gemm(call: FieldCall, scratch: Scratch, table: configs.Table, processors: int) -> None:
    if call.bytes:
        launch_distance_gemm_bytes(call, scratch, launch_split_digits(call, scratch), table, processors)
    else:
        launch_distance_gemm_floats(call, scratch, table, processors)


def serve_rows(call: FieldCall, table: configs.Table, processors: int) -> None:
    scratch = Scratch.of(call)
    launch_distance_gemm(call, scratch, table, processors)
    launch_weights(call, scratch, table.rows)
    if not call.ends_in_weights:
        launch_finish(call, scratch, launch_weighted_sum(call, scratch, table, processors), table.rows)


def ahead_of_time(arch: str) -> list[Compilation]:
    """Every kernel of the field operators in every configuration of arch's table, as a launch with aligned arrays would
    compile it, and with sizes that nothing divides."""
    table = configs.TABLES[arch]
    with recorded() as found:
        for dtype in (torch.uint8, torch.float32):
            for shape in (64, 5000, 3072), (37, 5001, 771):
                call = _example("poisson_field", dtype, shape, False, 1.0)
                for i in range(max(len(getattr(table, product)) for product in configs.PRODUCTS)):
                    one = {
                        p: getattr(table, p)[min(i, len(getattr(table, p)) - 1) :][:1]
                        for p in configs.PRODUCTS
                    }
                    launch_distance_gemm(call, Scratch.of(call), replace(table, **one), 100)
                    launch_weighted_sum(call, Scratch.of(call), replace(table, **one), 100)
                serve_rows(call, table, 100)
        long = _example("poisson_field", torch.uint8, (16, 5000, 196_608), False, 1.0)
        serve_rows(long, table, 100)
        for dim in (128, 77):
            serve_rows(_example("field_step", torch.uint8, (64, 5000, dim), True, 1.0), table, 100)
        for op, dtype in zip(FIELD_OPS, (torch.uint8, torch.float32) * 3, strict=True):
            serve_rows(_example(op, dtype, (64, 5000, 3072), True, math.inf), table, 100)
        for dim in (1, 2, 4, 8, 16):
            launch_small_n(_example("poisson_field", torch.float32, (64, 5000, dim), False, 1.0))
        for op in ("posterior_mean", "field_step", "log_density"):
            launch_small_n(_example(op, torch.uint8, (64, 5000, 2), True, math.inf))
    return list({repr(c): c for c in found}.values())


def _example(
    op: str, dtype: torch.dtype, shape: tuple[int, int, int], weighted: bool, aug_dim: float
) -> FieldCall:
    """A call whose tensors have no memory."""
    batch, count, dim = shape

    def array(*size: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    call = FieldCall(
        op,
        array(batch, dim),
        array(batch),
        array(count, dim, kind=dtype),
        array(count, kind=torch.float64) if weighted else None,
        array(dim),
        array(count, kind=torch.float64),
        127.5 if dtype == torch.uint8 else 1.0,
        -1.0,
        aug_dim,
    )
    more: dict[str, Any] = {}
    if op != "log_density":
        more["out"] = array(batch, dim)
    if op not in ("field_step", "second_moment"):
        more["lse"] = array(batch, kind=torch.float64)
    if op in ("score", "second_moment"):
        more["rate"] = array(batch)
    if op == "score":
        more |= {"gradient": array(batch, dim), "trace": array(batch)}
    if op == "second_moment":
        more |= {"u": array(batch, dim), "power": 2}
    if op == "field_step":
        more["r_next"] = array(batch)
    return replace(call, **more)
