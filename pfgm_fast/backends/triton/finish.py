"""A dense row's output from the parts of its sum; where their precision does not suffice, from its support, directly."""

from __future__ import annotations

from torch import Tensor

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall, Scratch
from pfgm_fast.backends.triton.common import FIELD_STEP, POISSON_FIELD, decode, field_output
from pfgm_fast.backends.triton.runtime import Launch, jit, tl
from pfgm_fast.backends.triton.sparse_row import serve_support, squared_distance

SUM_ERROR = tl.constexpr(2.0**-21)
"""What Σ w (y − c) errs by, in units of ‖y_a − c‖."""
LARGEST_ERROR = tl.constexpr(3e-6)
"""Share of ‖(x − m, r)‖ that rounding may have cost a dense row: above, it is computed from its support."""


@jit(do_not_specialize=["B", "splits"])
def finish_kernel(
    partial,  # (splits, B, N) float32
    dense_rows,  # (B,) int32
    dense_count,  # (1,) int32
    anchors,  # (B,) int64
    counts,  # (B,) int32
    totals,  # (B,) float64
    error_bounds,  # (B,) float64
    reaches,  # (B,) float64
    support,  # (B, stride) int32
    work,  # (B, stride) float32
    x,  # (B, N) float32
    r,  # (B,) float32
    r_next,  # (B,) float32, or None
    charges,  # (M, N)
    center,  # (N,) float32
    log_weights,  # (M,) float64, or None
    out,  # (B, N) float32
    lse,  # (B,) float64, or None
    B,
    N,
    stride,
    splits,
    divisor,
    offset,
    aug_dim,
    OP: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    SPLITS: tl.constexpr,  # at a time
    SUPPORT: tl.constexpr,
    BLOCK: tl.constexpr,
    SCAN: tl.constexpr,
):
    """One program a dense row: merges the splits in order, x − m = (x − y_a) − (Σ w (y − c)/Σ w − (y_a − c)), and the operator's
    output of it. A row is computed again by `sparse_row.serve_support` where the norm of (x − m, r) is so small against what was
    multiplied that rounding could show (SUM_ERROR, LARGEST_ERROR; of weights what `weights` says).

    Cost: reads 4 bytes an element and split and 9 more, writes 4; one launch. Defined by `reference.poisson_field`.
    """
    slot = tl.program_id(0).to(tl.int64)
    if slot < tl.load(dense_count):
        row = tl.load(dense_rows + slot).to(tl.int64)
        anchor = tl.load(anchors + row)
        whole = tl.load(totals + row)
        radius = tl.load(r + row)
        last = tl.load(r_next + row) if OP == FIELD_STEP else 0.0
        columns = tl.arange(0, BLOCK)
        anchor_row, x_row = charges + anchor * N, x + row * N
        lengths = tl.zeros([BLOCK], tl.float64)
        shifts = tl.zeros([BLOCK], tl.float64)
        for k in range(0, N, BLOCK):
            inside = k + columns < N
            here = tl.load(x_row + k + columns, inside, 0.0)
            raw = tl.load(anchor_row + k + columns, inside, 0)
            near = decode(raw, divisor, offset)
            summed = tl.zeros([BLOCK], tl.float64)
            for start in range(0, splits, SPLITS):
                split = start + tl.arange(0, SPLITS)
                place = partial + (split.to(tl.int64) * B + slot)[:, None] * N + (k + columns)[None, :]
                parts = tl.load(place, (split < splits)[:, None] & inside[None, :], 0.0)
                summed += tl.sum(parts.to(tl.float64), 0)
            summed /= whole
            if charges.dtype.element_ty == tl.uint8:
                shift = (raw.to(tl.int32) - 128).to(tl.float64)
                unit = tl.cast(divisor, tl.float64)
            else:
                shift = near.to(tl.float64) - tl.load(center + k + columns, inside, 0.0).to(tl.float64)
                unit = 1.0
            difference = ((summed - shift) / unit).to(tl.float32)
            field = field_output(here, near, difference, radius, last, POISSON_FIELD)
            lengths += tl.where(inside, field * field, 0.0).to(tl.float64)
            shifts += tl.where(inside, shift * shift, 0.0) / (unit * unit)
            tl.store(
                out + row * N + k + columns, field_output(here, near, difference, radius, last, OP), inside
            )
        length = tl.sqrt(tl.sum(lengths, 0) + radius.to(tl.float64) * radius)
        size = tl.sqrt(tl.sum(shifts, 0))
        reach = tl.minimum(tl.load(reaches + row), 2 * size)
        error = size * SUM_ERROR + tl.load(error_bounds + row) * (size + reach) * reach / 8
        if error > length * LARGEST_ERROR:
            tl.debug_barrier()
            serve_support(
                row, anchor, squared_distance(x_row, anchor_row, N, divisor, offset, BLOCK), tl.load(counts + row),
                support + row * stride, work + row * stride, None, x, r, r_next, charges, log_weights, None, out, None,
                None, None, lse, N, divisor, offset, aug_dim, OP, GAUSSIAN, 0, SUPPORT, BLOCK, SCAN,
            )  # fmt: skip


def launch_finish(call: FieldCall, scratch: Scratch, partial: Tensor, rows: configs.Rows) -> None:
    batch, _, dim = call.sizes
    divisor, offset, aug_dim = call.constants
    totals, error_bounds, reaches = scratch.numbers
    Launch(
        f"finish-{call.op}",
        finish_kernel,
        lambda _: batch,
        {
            "partial": partial,
            "dense_rows": scratch.dense_rows,
            "dense_count": scratch.dense_count,
            "anchors": scratch.anchors,
            "counts": scratch.counts,
            "totals": totals,
            "error_bounds": error_bounds,
            "reaches": reaches,
            "support": scratch.support,
            "work": scratch.gaps,
            "x": call.x,
            "r": call.r,
            "r_next": call.r_next,
            "charges": call.charges,
            "center": call.center,
            "log_weights": call.log_weights,
            "out": call.out,
            "lse": call.lse,
            "B": batch,
            "N": dim,
            "stride": scratch.stride,
            "splits": partial.shape[0],
            "divisor": divisor,
            "offset": offset,
            "aug_dim": aug_dim,
        },
        {
            **call.kind,
            **rows.constants(dim, more=dim > configs.LONG_ROW),
            "SPLITS": 4,
            "SCAN": rows.tiles * configs.CHARGES,
        },
        rows.warps,
        1,
        max_registers=rows.registers,
    ).run()
