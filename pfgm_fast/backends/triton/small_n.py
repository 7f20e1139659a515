"""Small N in one launch: nearest charge, then weights and Σ w (y − y_a) with a running maximum."""

from __future__ import annotations

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall
from pfgm_fast.backends.triton.common import anchor_log_weight, decode, field_output, log_one_plus
from pfgm_fast.backends.triton.runtime import Launch, cdiv, jit, tl

LARGEST = 16
"""N that is served."""


@jit
def column(charges, charge, there, k, N, divisor, offset):
    """Element k of some charges, as float32."""
    return decode(tl.load(charges + charge.to(tl.int64) * N + k, there, 0), divisor, offset)


@jit(do_not_specialize=["B", "M"])
def small_n_kernel(
    x,  # (B, N) float32
    r,  # (B,) float32
    r_next,  # (B,) float32, or None
    charges,  # (M, N)
    log_weights,  # (M,) float64, or None
    out,  # (B, N) float32, or None
    lse,  # (B,) float64, or None
    B,
    M,
    N,
    divisor,
    offset,
    aug_dim,
    K: tl.constexpr,  # N rounded up to a power of two
    OP: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    QUERIES: tl.constexpr,
    CHARGES: tl.constexpr,
):
    """A program has QUERIES rows; two sweeps over all charges, CHARGES at a time. A gap is Σ (y − y_a)(ρ + ρ_a) (`sparse_row`).

    Cost: 3 N operations a pair for the first sweep, 7 N + one log + one exp for the second; charges are read twice a program
    (from L2), queries once, nothing but the answer is written. One launch. Defined by `reference.poisson_field`.
    """
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    mine = query < B
    at = query.to(tl.int64) * N
    radius = tl.load(r + query, mine, 1.0).to(tl.float64)
    r2 = radius * radius

    least = tl.full([QUERIES, CHARGES], float("inf"), tl.float32)
    where = tl.zeros([QUERIES, CHARGES], tl.int32)
    for start in range(0, M, CHARGES):
        charge = start + tl.arange(0, CHARGES)
        there = charge < M
        squares = tl.zeros([QUERIES, CHARGES], tl.float32)
        for k in range(0, N):
            away = column(charges, charge, there, k, N, divisor, offset)[None, :]
            away -= tl.load(x + at + k, mine, 0.0)[:, None]
            squares += away * away
        closer = (squares < least) & there[None, :]
        least = tl.where(closer, squares, least)
        where = tl.where(closer, charge[None, :], where)
    lowest = tl.min(least, 1)
    anchor = tl.min(tl.where(least == lowest[:, None], where, M - 1), 1)
    anchor = tl.minimum(anchor, M - 1)
    squares_a = tl.zeros([QUERIES], tl.float32)
    for k in range(0, N):
        away = column(charges, anchor, mine, k, N, divisor, offset) - tl.load(x + at + k, mine, 0.0)
        squares_a += away * away

    dims = tl.cast(aug_dim, tl.float64) + N
    base = tl.where(GAUSSIAN, 2 * r2, squares_a.to(tl.float64) + r2)
    good = (radius > 0) & (base < float("inf")) & (squares_a < float("inf"))
    inverse = tl.minimum(1 / base, 3e38).to(tl.float32)
    power = (0.5 * dims).to(tl.float32)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float64)
    ks = tl.arange(0, K)
    sums = tl.zeros([QUERIES, K], tl.float64)
    for start in range(0, M, CHARGES):
        charge = start + tl.arange(0, CHARGES)
        there = charge < M
        gap = tl.zeros([QUERIES, CHARGES], tl.float32)
        for k in range(0, N):
            y = column(charges, charge, there, k, N, divisor, offset)[None, :]
            here = tl.load(x + at + k, mine, 0.0)[:, None]
            near = column(charges, anchor, mine, k, N, divisor, offset)[:, None]
            gap += (y - near) * ((y - here) + (near - here))
        ratio = gap * inverse[:, None]
        value = -ratio if GAUSSIAN else -power * log_one_plus(tl.maximum(ratio, -0.999999))
        if log_weights is not None:
            value += tl.load(log_weights + charge, there, 0.0).to(tl.float32)[None, :]
        value = tl.where(there[None, :], value, float("-inf"))
        new = tl.maximum(top, tl.max(value, 1))
        shrink = tl.exp(top - new).to(tl.float64)
        top = new
        weight = tl.exp(value - new[:, None])
        total = total * shrink + tl.sum(weight, 1).to(tl.float64)
        sums = sums * shrink[:, None]
        for k in range(0, N):
            y = column(charges, charge, there, k, N, divisor, offset)[None, :]
            near = column(charges, anchor, mine, k, N, divisor, offset)[:, None]
            add = tl.sum(weight * (y - near), 1).to(tl.float64)
            sums += tl.where(ks[None, :] == k, add[:, None], 0.0)
    if lse is not None:
        at_anchor = anchor_log_weight(squares_a.to(tl.float64), r2, 0.5 * dims, GAUSSIAN)
        answer = top.to(tl.float64) + tl.log(total) + at_anchor
        tl.store(lse + query, tl.where(good, answer, float("nan")), mine)
    if out is not None:
        last = tl.zeros([QUERIES, 1], tl.float32)
        if r_next is not None:
            last = tl.load(r_next + query, mine, 0.0)[:, None]
        inside = mine[:, None] & (ks < N)[None, :]
        place = at[:, None] + ks[None, :]
        here = tl.load(x + place, inside, 0.0)
        near = decode(
            tl.load(charges + anchor.to(tl.int64)[:, None] * N + ks[None, :], inside, 0), divisor, offset
        )
        mean = (sums / total[:, None]).to(tl.float32)
        small_r = radius.to(tl.float32)[:, None]
        answer = field_output(here, near, mean, small_r, last, OP)
        tl.store(out + place, tl.where(good[:, None], answer, float("nan")), inside)


def small_n_serves(call: FieldCall, processors: int) -> bool:
    """Small N; not where a handful of programs would walk through very many charges alone."""
    batch, count, dim = call.sizes
    if dim > LARGEST or call.op in ("score", "second_moment"):
        return False
    return count <= 1 << 16 or 4 * cdiv(batch, configs.SMALL_N_QUERIES) >= processors


def launch_small_n(call: FieldCall) -> None:
    batch, count, dim = call.sizes
    divisor, offset, aug_dim = call.constants
    power = 1 << (dim - 1).bit_length()
    Launch(
        f"small_n-{call.op}-{power}",
        small_n_kernel,
        lambda _: cdiv(batch, configs.SMALL_N_QUERIES),
        {
            "x": call.x,
            "r": call.r,
            "r_next": call.r_next,
            "charges": call.charges,
            "log_weights": call.log_weights,
            "out": call.out,
            "lse": call.lse,
            "B": batch,
            "M": count,
            "N": dim,
            "divisor": divisor,
            "offset": offset,
            "aug_dim": aug_dim,
        },
        call.kind | {"K": power, "QUERIES": configs.SMALL_N_QUERIES, "CHARGES": configs.SMALL_N_CHARGES},
        configs.SMALL_N_WARPS,
        1,
        max_registers=255,  # said because ptxas else spills a few, to fit more blocks than it needs
    ).run()
