"""A query that sees few charges, served by direct differences: what `weights` and `finish` do with a row's support.

Around the anchor a (a charge that is near), with ρ = y − x:
    ‖ρ_j‖² − ‖ρ_a‖² = Σ (y_j − y_a)·(ρ_j + ρ_a),
which errs relative to ‖y_j − y_a‖: near-duplicates keep their digits at any r. Everything else is a sum of Σ w (y_j − y_a).
"""

from __future__ import annotations

from pfgm_fast.backends.triton.common import (
    FIELD_STEP,
    LOG_DENSITY,
    POISSON_FIELD,
    SCORE,
    SECOND_MOMENT,
    anchor_log_weight,
    decode,
    field_output,
    log_one_plus,
)
from pfgm_fast.backends.triton.runtime import jit, tl


@jit
def squared_distance(x_row, charge_row, N, divisor, offset, BLOCK: tl.constexpr):
    """‖y − x‖² in float64, of differences in float32."""
    columns = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for k in range(0, N, BLOCK):
        inside = k + columns < N
        away = decode(tl.load(charge_row + k + columns, inside, 0), divisor, offset)
        away -= tl.load(x_row + k + columns, inside, 0.0)
        total += tl.where(inside, away * away, 0.0).to(tl.float64)
    return tl.sum(total, 0)


@jit
def support_gaps(
    support,  # (count,) int32: the row's charges
    work,  # (count,) float32: their gaps ‖ρ_j‖² − ‖ρ_a‖²
    second,  # (count,) float32: their ρ_j·u, or None
    count,
    x_row,
    u_row,
    charges,
    anchor_row,
    N,
    divisor,
    offset,
    SUPPORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    for start in range(0, count, SUPPORT):
        slot = start + tl.arange(0, SUPPORT)
        there = slot < count
        rows = charges + tl.load(support + slot, there, 0).to(tl.int64)[:, None] * N
        gap = tl.zeros([SUPPORT, BLOCK], tl.float64)
        along = tl.zeros([SUPPORT, BLOCK], tl.float64)
        for k in range(0, N, BLOCK):
            inside = k + columns < N
            here = tl.load(x_row + k + columns, inside, 0.0)
            near = decode(tl.load(anchor_row + k + columns, inside, 0), divisor, offset)
            y = decode(
                tl.load(rows + (k + columns)[None, :], inside[None, :] & there[:, None], 0), divisor, offset
            )
            away = y - here[None, :]
            gap += tl.where(inside[None, :], (y - near[None, :]) * (away + (near - here)[None, :]), 0.0).to(
                tl.float64
            )
            if second is not None:
                direction = tl.load(u_row + k + columns, inside, 0.0)
                along += (away * direction[None, :]).to(tl.float64)
        tl.store(work + slot, tl.sum(gap, 1).to(tl.float32), there)
        if second is not None:
            tl.store(second + slot, tl.sum(along, 1).to(tl.float32), there)
    tl.debug_barrier()


@jit
def log_weight(gap, slot_log_weight, inverse, power, GAUSSIAN: tl.constexpr):
    """log q − p log(1 + gap/d²_a), inverse = 1/d²_a; D = ∞: log q − gap inverse, inverse = 1/(2 r²)."""
    ratio = gap * inverse
    if GAUSSIAN:
        return slot_log_weight - ratio
    else:
        return slot_log_weight - power * log_one_plus(tl.maximum(ratio, -0.999999))


@jit
def own_log_weight(log_weights, support, there, gap):
    """log q of a support's charges (pointers), or zeros like gap."""
    if log_weights is None:
        return tl.zeros_like(gap)
    else:
        return tl.load(log_weights + tl.load(support, there, 0), there, 0.0).to(tl.float32)


@jit
def serve_support(
    row,
    anchor,
    squares,  # float64: ‖ρ_a‖²
    count,
    support,
    work,
    second,
    x,
    r,
    r_next,
    charges,
    log_weights,
    u,
    out,  # (B, N), or None
    gradient,
    rate,
    trace,
    lse,
    N,
    divisor,
    offset,
    aug_dim,
    OP: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    POWER: tl.constexpr,
    SUPPORT: tl.constexpr,
    BLOCK: tl.constexpr,
    SCAN: tl.constexpr,
):
    """All outputs of one query from its support: gaps, weights, and the sums of differences.

    Cost: two sweeps over the support's charges (the second from L2, mostly): 5 and 4 operations an element.
    """
    x_row, anchor_row = x + row * N, charges + anchor * N
    u_row = u if u is None else u + row * N
    support_gaps(
        support, work, second if OP == SECOND_MOMENT else None, count, x_row, u_row, charges, anchor_row, N, divisor, offset,
        SUPPORT, BLOCK,
    )  # fmt: skip
    radius = tl.load(r + row).to(tl.float64)
    r2 = radius * radius
    dims = tl.cast(aug_dim, tl.float64) + N
    base = squares + r2
    inverse = tl.minimum(tl.where(GAUSSIAN, 0.5 / r2, 1 / base), 3e38).to(tl.float32)
    power = (0.5 * dims).to(tl.float32)

    slots = tl.arange(0, SCAN)
    top = tl.full([SCAN], float("-inf"), tl.float32)
    for start in range(0, count, SCAN):
        there = start + slots < count
        gap = tl.load(work + start + slots, there, 0.0)
        own = own_log_weight(log_weights, support + start + slots, there, gap)
        top = tl.maximum(top, tl.where(there, log_weight(gap, own, inverse, power, GAUSSIAN), float("-inf")))
    highest = tl.max(top, 0)
    total = tl.zeros([SCAN], tl.float64)
    rates = tl.zeros([SCAN], tl.float64)
    traces = tl.zeros([SCAN], tl.float64)
    for start in range(0, count, SCAN):
        there = start + slots < count
        gap = tl.load(work + start + slots, there, 0.0)
        own = own_log_weight(log_weights, support + start + slots, there, gap)
        weight = tl.exp(log_weight(gap, own, inverse, power, GAUSSIAN) - highest)
        weight = tl.where(there, weight, 0.0)
        total += weight.to(tl.float64)
        if OP == SCORE or OP == SECOND_MOMENT:  # noqa: SIM109 - Triton knows no `in`
            distance = tl.maximum(squares + gap.to(tl.float64), 0.0)
            pull = tl.where(GAUSSIAN, 1 / r2, dims / (distance + r2))
            coefficient = weight.to(tl.float64)
            if OP == SECOND_MOMENT:
                coefficient *= tl.load(second + start + slots, there, 0.0).to(tl.float64)
                for _ in tl.static_range(POWER):
                    coefficient *= pull
            else:
                coefficient *= pull
                traces += coefficient * distance
            rates += coefficient
            tl.store(second + start + slots, coefficient.to(tl.float32), there)
        tl.store(work + start + slots, weight, there)
    tl.debug_barrier()
    all_weights = tl.sum(total, 0)
    share = tl.sum(rates, 0) / all_weights
    if lse is not None:
        at_anchor = anchor_log_weight(squares, r2, 0.5 * dims, GAUSSIAN)
        tl.store(lse + row, highest.to(tl.float64) + tl.log(all_weights) + at_anchor)
    if rate is not None:
        tl.store(rate + row, share.to(tl.float32))
    if trace is not None:
        tl.store(trace + row, (tl.sum(traces, 0) / all_weights).to(tl.float32))
    if OP != LOG_DENSITY:
        columns = tl.arange(0, BLOCK)
        last = tl.load(r_next + row) if OP == FIELD_STEP else 0.0
        for k in range(0, N, BLOCK):
            inside = k + columns < N
            here = tl.load(x_row + k + columns, inside, 0.0)
            near = decode(tl.load(anchor_row + k + columns, inside, 0), divisor, offset)
            summed = tl.zeros([BLOCK], tl.float64)
            pulled = tl.zeros([BLOCK], tl.float64)
            for start in range(0, count, SUPPORT):
                slot = start + tl.arange(0, SUPPORT)
                there = slot < count
                rows = charges + tl.load(support + slot, there, 0).to(tl.int64)[:, None] * N
                y = decode(
                    tl.load(rows + (k + columns)[None, :], inside[None, :] & there[:, None], 0),
                    divisor,
                    offset,
                )
                step = y - near[None, :]
                if OP != SECOND_MOMENT:
                    weight = tl.load(work + slot, there, 0.0)
                    summed += tl.sum(weight[:, None] * step, 0).to(tl.float64)
                if OP == SCORE or OP == SECOND_MOMENT:  # noqa: SIM109 - Triton knows no `in`
                    weight = tl.load(second + slot, there, 0.0)
                    pulled += tl.sum(weight[:, None] * step, 0).to(tl.float64)
            summed /= all_weights
            pulled = pulled / all_weights + share * (near - here).to(tl.float64)
            at = row * N + k + columns
            if OP == SECOND_MOMENT:
                tl.store(out + at, pulled.to(tl.float32), inside)
            elif OP == SCORE:
                tl.store(gradient + at, pulled.to(tl.float32), inside)
                tl.store(
                    out + at,
                    field_output(here, near, summed.to(tl.float32), radius, last, POISSON_FIELD),
                    inside,
                )
            else:
                small_r = radius.to(tl.float32)
                tl.store(out + at, field_output(here, near, summed.to(tl.float32), small_r, last, OP), inside)
