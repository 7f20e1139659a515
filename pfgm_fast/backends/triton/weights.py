"""From gaps to weights: a row's anchor, its log-sum-exp, and its support, the charges that carry weight; sparse rows end here.

One program has a row, so the merge over the charges is one fixed order. It also serves *sparse* rows whole (`sparse_row`): at most
LONGEST_SUPPORT charges of weight, as most training queries. The others, *dense*, get their weights written for the second product.
"""

from __future__ import annotations

import math

from pfgm_fast.backends.triton import configs
from pfgm_fast.backends.triton.call import FieldCall, Scratch
from pfgm_fast.backends.triton.common import LOG_DENSITY, SCORE, WEIGHT_UNIT, anchor_log_weight
from pfgm_fast.backends.triton.runtime import Launch, jit, tl
from pfgm_fast.backends.triton.sparse_row import log_weight, serve_support, squared_distance

LOG_NEGLIGIBLE = tl.constexpr(-24 * math.log(2))
"""log of the share of the largest weight below which a weight is left out."""
LEFT_OUT = tl.constexpr(2e-8)
"""Share of the sum that all weights left out may have together."""
FLOATS_LARGEST_ERROR = tl.constexpr(2.0**-18)
"""What distance_gemm of floats errs by at most, in units of ‖x − μ‖‖y − μ‖: products of three bfloat16 terms, and sixteen times that."""
FLOATS_ERROR = tl.constexpr(2.0**-22)
"""The same, as a rule."""
LOG_DENSITY_ERROR = tl.constexpr(3e-5)
"""Error of log_density, relative to 1 + its size, above which a dense row's is computed from its support."""


@jit
def group(least, tile, tiles, lowest, floor, inverse, power, GAUSSIAN: tl.constexpr, TILES: tl.constexpr):
    """TILES tiles from `tile` on: their minima relative to the row's (TILES,), and whether any charge can weigh something."""
    which = tile + tl.arange(0, TILES)
    value = tl.load(least + which, which < tiles, float("inf"))
    offsets = tl.where(which < tiles, (value - lowest).to(tl.float32), float("inf"))
    return offsets, log_weight(tl.min(offsets, 0), 0.0, inverse, power, GAUSSIAN) >= floor


@jit
def largest_log_weight(log_weights, M, BLOCK: tl.constexpr):
    """The largest log q."""
    which = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, M, BLOCK):
        inside = start + which < M
        top = tl.maximum(top, tl.load(log_weights + start + which, inside, float("-inf")).to(tl.float32))
    return tl.max(top, 0)


@jit(do_not_specialize=["M", "tiles", "longest"])
def weights_kernel(
    gaps,  # (B, stride) float32: from the first product; becomes log-weights, then weights or the support's work
    terms,  # (2, B, stride) float16: a dense row's weights times WEIGHT_UNIT as two terms, or None where they go to gaps
    occupied,  # (B, tiles) int8: whether a dense row has weight in a tile
    least,  # (B, tiles) float64: minima of the tiles
    residual,  # (B,) float32: ‖x − its digits‖, or None for float charges
    support,  # (B, stride) int32: the charges that carry weight, ascending
    second,  # (B, stride) float32: coefficients of score and second_moment, or None
    anchors,  # (B,) int64
    counts,  # (B,) int32
    totals,  # (B,) float64: Σ w of a dense row
    error_bounds,  # (B,) float64: what log-weights err by, for each unit of length of what the product's error meets
    reaches,  # (B,) float64: the distance within which charges carry weight
    dense_rows,  # (B,) int32, in no particular order
    dense_count,  # (1,) int32
    x,  # (B, N) float32
    r,  # (B,) float32
    r_next,  # (B,) float32, or None
    charges,  # (M, N)
    center,  # (N,) float32
    log_weights,  # (M,) float64, or None
    u,  # (B, N) float32, or None
    out,  # (B, N), or None
    gradient,
    rate,
    trace,
    lse,  # (B,) float64, or None
    M,
    N,
    stride,
    tiles,
    longest,  # support of a sparse row
    divisor,
    offset,
    aug_dim,
    OP: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    POWER: tl.constexpr,
    CHARGES: tl.constexpr,  # of a tile of the first product
    TILES: tl.constexpr,  # at a time
    SUPPORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row.

    1. Anchor a: the least gap. Its distance is computed directly, so that log w_j = log q_j − p log1p(gap_j/d²_a).
    2. Log-weights, their largest, and their sum; groups of tiles of no weight are skipped by their minima.
    3. The cut: weights (times distance) below 2⁻²⁴ of the largest do not count if together they are below 2·10⁻⁸ of the
       sum; else the cut is so low that they are. It is widened by what the product's error may hide, which is bounded by
       Cauchy and Schwarz: 4 ‖e‖ d for bytes (e: what the digits leave out), 2⁻¹⁸ ‖x − μ‖ (‖x − μ‖ + d) for floats.
    4. Sparse rows: `sparse_row.serve_support`. Dense rows: their weights, in place.

    Cost: reads the gaps once, and again where there is weight (4 bytes a pair, from L2); about 60 operations a pair that is
    not skipped; for a sparse row two sweeps over the charges of its support. One launch. Defined by `reference.row`.
    """
    row = tl.program_id(0).to(tl.int64)
    gaps += row * stride
    least += row * tiles
    support += row * stride
    x_row = x + row * N
    if second is not None:
        second += row * stride

    # 1. The least of the tiles' minima, then the first charge of that tile whose gap to it is 0.
    which = tl.arange(0, 1024)
    best = tl.full([1024], float("inf"), tl.float64)
    where = tl.zeros([1024], tl.int32)
    for start in range(0, tiles, 1024):
        value = tl.load(least + start + which, start + which < tiles, float("inf"))
        closer = value < best
        best = tl.where(closer, value, best)
        where = tl.where(closer, start + which, where)
    lowest = tl.min(best, 0)
    tile = tl.minimum(tl.min(tl.where(best == lowest, where, tiles - 1), 0), tiles - 1)
    candidate = tile * CHARGES + tl.arange(0, CHARGES)
    above = tl.load(gaps + candidate, candidate < M, float("inf"))
    anchor = tl.minimum(tl.min(tl.where(above == 0.0, candidate, M - 1), 0), M - 1).to(tl.int64)

    radius = tl.load(r + row).to(tl.float64)
    squares = squared_distance(x_row, charges + anchor * N, N, divisor, offset, BLOCK)
    r2 = radius * radius
    dims = tl.cast(aug_dim, tl.float64) + N
    base = tl.where(GAUSSIAN, 2 * r2, squares + r2)
    good = (radius > 0) & (base < float("inf")) & (squares < float("inf"))
    if good:
        inverse = tl.minimum(1 / base, 3e38).to(tl.float32)
        power = (0.5 * dims).to(tl.float32)
        # Far charges count by weight times distance: log w + ½ log d², which is (1 − 1/(2p)) log w, but for q.
        far = tl.where(GAUSSIAN, 1.0, tl.maximum(1 - 1 / dims, 0.02)).to(tl.float32)

        # What the product may be wrong by, at the distance where weights end: at most `slack`, as a rule `unit` times what it
        # is multiplied with.
        widest = 18.0 + tl.log(tl.cast(M, tl.float32))
        if log_weights is not None:
            widest += largest_log_weight(log_weights, M, TILES * CHARGES) - tl.load(log_weights + anchor).to(
                tl.float32
            )
        widest = widest / far
        reach = tl.where(GAUSSIAN, widest, tl.exp(tl.minimum(widest / power, 60.0)) - 1)
        distance = tl.sqrt(squares + base * reach.to(tl.float64))
        if residual is not None:
            error = tl.load(residual + row).to(tl.float64)
            slack, unit, other = 4 * error * distance, 12 * error, distance
        else:
            size = tl.sqrt(squared_distance(x_row, center, N, 1.0, 0.0, BLOCK))
            other = size + distance
            slack, unit = size * other * FLOATS_LARGEST_ERROR, size * FLOATS_ERROR
        margin = -log_weight(slack.to(tl.float32), 0.0, inverse, power, GAUSSIAN)
        root = tl.sqrt(tl.cast(N, tl.float64))
        error_bound = unit / root / base * tl.where(GAUSSIAN, 1.0, 0.5 * dims)
        floor = (-80.0 - margin) / far
        if log_weights is not None:
            floor = float("-inf")

        # 2. Log-weights in place. A group whose nearest charge weighs nothing is left as it is.
        inner = tl.arange(0, CHARGES)
        top = tl.full([TILES, CHARGES], float("-inf"), tl.float32)
        for start in range(0, tiles, TILES):
            from_tile, near = group(least, start, tiles, lowest, floor, inverse, power, GAUSSIAN, TILES)
            if near:
                charge = (start + tl.arange(0, TILES))[:, None] * CHARGES + inner[None, :]
                gap = tl.load(gaps + charge, charge < M, float("inf")) + from_tile[:, None]
                own = tl.zeros([TILES, CHARGES], tl.float32)
                if log_weights is not None:
                    own = tl.load(log_weights + charge, charge < M, 0.0).to(tl.float32)
                value = log_weight(gap, own, inverse, power, GAUSSIAN)
                value = tl.where(charge < M, value, float("-inf"))
                top = tl.maximum(top, value)
                tl.store(gaps + charge, value, charge < M)
        highest = tl.max(tl.max(top, 1), 0)
        tl.debug_barrier()

        # 3. The cut.
        total = tl.zeros([TILES, CHARGES], tl.float32)
        small = tl.zeros([TILES, CHARGES], tl.float32)
        for start in range(0, tiles, TILES):
            from_tile, near = group(least, start, tiles, lowest, floor, inverse, power, GAUSSIAN, TILES)
            if near:
                charge = (start + tl.arange(0, TILES))[:, None] * CHARGES + inner[None, :]
                value = far * (tl.load(gaps + charge, charge < M, float("-inf")) - highest)
                share = tl.exp(value)
                total += share
                small += tl.where(value < LOG_NEGLIGIBLE, share, 0.0)
        total = tl.sum(tl.sum(total, 1), 0)
        small = tl.sum(tl.sum(small, 1), 0)
        lower = tl.log(total * LEFT_OUT / M)
        cut = (
            (tl.where(small <= total * LEFT_OUT, LOG_NEGLIGIBLE, tl.minimum(lower, LOG_NEGLIGIBLE)) / far)
            + highest
            - margin
        )

        count = tl.full([], 0, tl.int32)
        for start in range(0, tiles, TILES):
            from_tile, near = group(least, start, tiles, lowest, floor, inverse, power, GAUSSIAN, TILES)
            if near:
                line = start * CHARGES + tl.arange(0, TILES * CHARGES)
                carries = (tl.load(gaps + line, line < M, float("-inf")) >= cut) & (line < M)
                number = tl.sum(carries.to(tl.int32), 0)
                if number > 0:
                    slot = count + tl.cumsum(carries.to(tl.int32), 0) - 1
                    tl.store(support + slot, line, carries)
                    count += number
        tl.debug_barrier()

        # 4. Serve, or leave the weights.
        at_anchor = anchor_log_weight(squares, r2, 0.5 * dims, GAUSSIAN)
        sparse = count <= longest
        if OP == LOG_DENSITY:
            sparse = sparse | (error_bound * other > (1 - at_anchor) * LOG_DENSITY_ERROR)
        else:
            tl.store(anchors + row, anchor)
            tl.store(counts + row, count)
            tl.store(error_bounds + row, error_bound)
            tl.store(reaches + row, distance)
        if sparse:
            serve_support(
                row, anchor, squares, count, support, gaps, second, x, r, r_next, charges, log_weights, u, out, gradient,
                rate, trace, lse, N, divisor, offset, aug_dim, OP, GAUSSIAN, POWER, SUPPORT, BLOCK, TILES * CHARGES,
            )  # fmt: skip
        else:
            weights = tl.zeros([TILES, CHARGES], tl.float64)
            for start in range(0, tiles, TILES):
                charge = (start + tl.arange(0, TILES))[:, None] * CHARGES + inner[None, :]
                from_tile, near = group(least, start, tiles, lowest, floor, inverse, power, GAUSSIAN, TILES)
                weight = tl.zeros([TILES, CHARGES], tl.float32)
                if near:
                    value = tl.load(gaps + charge, charge < M, float("-inf"))
                    weight = tl.where(value >= cut, tl.exp(value - highest), 0.0)
                if OP != LOG_DENSITY:
                    tile_of = start + tl.arange(0, TILES)
                    tl.store(
                        occupied + row * tiles + tile_of, (tl.max(weight, 1) > 0).to(tl.int8), tile_of < tiles
                    )
                    if terms is None:
                        tl.store(gaps + charge, weight, charge < stride)
                    else:
                        high = (weight * WEIGHT_UNIT).to(tl.float16)
                        low = (weight * WEIGHT_UNIT - high.to(tl.float32)).to(tl.float16)
                        weight = (high.to(tl.float32) + low.to(tl.float32)) * (1 / WEIGHT_UNIT)
                        place = terms + row * stride + charge
                        tl.store(place, high, charge < stride)
                        tl.store(place + tl.num_programs(0).to(tl.int64) * stride, low, charge < stride)
                weights += weight.to(tl.float64)
            all_weights = tl.sum(tl.sum(weights, 1), 0)
            if lse is not None:
                tl.store(lse + row, highest.to(tl.float64) + tl.log(all_weights) + at_anchor)
            if OP != LOG_DENSITY:
                tl.store(totals + row, all_weights)
                slot = tl.atomic_add(dense_count, 1)
                tl.store(dense_rows + slot, row.to(tl.int32))
    else:
        nan = float("nan")
        if lse is not None:
            tl.store(lse + row, nan)
        if rate is not None:
            tl.store(rate + row, nan)
        if trace is not None:
            tl.store(trace + row, nan)
        if out is not None:
            columns = tl.arange(0, BLOCK)
            for k in range(0, N, BLOCK):
                inside = k + columns < N
                tl.store(out + row * N + k + columns, nan, inside)
                if OP == SCORE:
                    tl.store(gradient + row * N + k + columns, nan, inside)


def launch_weights(call: FieldCall, scratch: Scratch, rows: configs.Rows) -> None:
    batch, count, dim = call.sizes
    divisor, offset, aug_dim = call.constants
    always = call.op in ("score", "second_moment")
    totals, error_bounds, reaches = scratch.numbers
    Launch(
        f"weights-{call.op}",
        weights_kernel,
        lambda _: batch,
        {
            "gaps": scratch.gaps,
            "terms": scratch.terms,
            "occupied": scratch.occupied,
            "least": scratch.least,
            "residual": scratch.residual,
            "support": scratch.support,
            "second": scratch.second,
            "anchors": scratch.anchors,
            "counts": scratch.counts,
            "totals": totals,
            "error_bounds": error_bounds,
            "reaches": reaches,
            "dense_rows": scratch.dense_rows,
            "dense_count": scratch.dense_count,
            "x": call.x,
            "r": call.r,
            "r_next": call.r_next,
            "charges": call.charges,
            "center": call.center,
            "log_weights": call.log_weights,
            "u": call.u,
            "out": call.out,
            "gradient": call.gradient,
            "rate": call.rate,
            "trace": call.trace,
            "lse": call.lse,
            "M": count,
            "N": dim,
            "stride": scratch.stride,
            "tiles": scratch.tiles,
            "longest": count if always else configs.LONGEST_SUPPORT,
            "divisor": divisor,
            "offset": offset,
            "aug_dim": aug_dim,
        },
        {
            **call.kind,
            "POWER": call.power,
            "CHARGES": configs.CHARGES,
            "TILES": rows.tiles,
            **rows.constants(dim, scratch.second is not None),
        },
        rows.warps,
        1,
        max_registers=rows.registers,
    ).run()
