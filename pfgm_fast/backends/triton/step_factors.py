"""The numbers a, b and c of a row of the fused steps (`step_kernels`), from the sums over its elements; `reference` defines them.

csrc/common/ball.h has the same for the compiled backends.
"""

from __future__ import annotations

from pfgm_fast.backends import reference
from pfgm_fast.backends.triton.runtime import jit, tl

ROUNDING = tl.constexpr(reference.ROUNDING)


@jit
def square_root(value):
    """Rounded to nearest in either dtype: Triton's own float32 root is an approximation."""
    if value.dtype == tl.float64:
        return tl.sqrt(value)
    else:
        return tl.sqrt_rn(value)


@jit
def quotient(numerator, denominator):
    """Rounded to nearest in either dtype, as `square_root`."""
    if denominator.dtype == tl.float64:
        return numerator / denominator
    else:
        return tl.div_rn(numerator, denominator)


@jit
def divisor(squares, vz, z, root, gamma, z_exp):
    """The v_z of dx/dz = v_x/v_z: below z_exp what ‖v_x‖ implies, as `reference.drift` says. n ≥ 1 is held below 1."""
    RESOLUTION: tl.constexpr = 2.0**-52 if squares.dtype == tl.float64 else 2.0**-23
    n = quotient(square_root(squares), root)
    n = tl.where(n > 1 - RESOLUTION, 1 - RESOLUTION, n)  # NaN stays NaN
    along = quotient(gamma * n, 1 - n)
    substitute = quotient(-root * z, square_root(along * along + z * z) + gamma)
    return tl.where(z < z_exp, substitute, vz)


@jit
def bounded(xx, xv, vv, scale, z, square):
    """base, along of dx/dz = base x + along v, where the network says scale · v: `reference.bounded` of sums."""
    TINY: tl.constexpr = 2.2250738585072014e-308 if vv.dtype == tl.float64 else 1.1754943508222875e-38
    length = tl.maximum(square_root(vv), TINY, propagate_nan=tl.PropagateNan.ALL)
    middle = quotient(xv, length)
    miss = tl.maximum(xx - middle * middle, 0.0)
    offset = z * scale * length - middle
    outside = miss + offset * offset > square  # NaN is not: it stays as it is
    reach = square_root(tl.maximum(square - miss, 0.0))
    offset = tl.minimum(tl.maximum(offset, -reach), reach)
    shrink = square_root(quotient(square, tl.maximum(miss + offset * offset, square)))
    base = tl.where(outside, quotient(1 - shrink, z), 0.0)
    return base, tl.where(outside, quotient(shrink * (middle + offset), length * z), scale)


@jit
def factors(
    squares,
    squares_next,
    xx,
    xv,
    xw,
    vw,
    row,
    mine,  # the rows that exist
    writes,  # the rows whose v_z this program writes, where NORMALIZE
    vz,
    vz_next,
    z,
    z_next,
    z_stride,
    z_next_stride,
    root,
    gamma,
    z_exp,
    radius,
    T: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """a, b and c, numbers a row in T. NORMALIZE: z is r, a = −√N/(‖(v, r)‖ + γ), and r a is written to vz."""
    root, gamma, z_exp = tl.full((), root, T), tl.full((), gamma, T), tl.full((), z_exp, T)
    base = tl.zeros_like(squares)
    now = tl.load(z + row * z_stride, mask=mine, other=1.0)
    if NORMALIZE:
        radius = now.to(T)
        first = quotient(-root, square_root(squares + radius * radius) + gamma)
        tl.store(vz + row, radius * first, mask=writes)
        second = first
    else:
        step = tl.full((), 1.0, T)
        if z_next is not None:
            then = tl.load(z_next + row * z_next_stride, mask=mine, other=0.5)
            step = (then - now).to(T)  # in the dtype of z and z': they may be float64
        if vz_next is not None:
            step = 0.5 * step
        given = tl.load(vz + row, mask=mine, other=-1.0).to(T)
        below = divisor(squares, given, now.to(T), root, gamma, z_exp)
        first = quotient(step, below)
        second = first
        along = first
        one = tl.full((), 1.0, T)
        if BOUNDED:
            square = tl.full((), radius * radius, T) + ROUNDING * xx
            base, along = bounded(xx, xv, squares, quotient(one, below), now.to(T), square)
            first = step * along
        if vz_next is not None:
            given = tl.load(vz_next + row, mask=mine, other=-1.0).to(T)
            below = divisor(squares_next, given, then.to(T), root, gamma, z_exp)
            second = quotient(step, below)
            if BOUNDED:
                of_x, of_v = 1 + 2 * step * base, 2 * step * along  # Euler's prediction is of_x x + of_v v
                there = of_x * of_x * xx + 2 * of_x * of_v * xv + of_v * of_v * squares
                base_next, along_next = bounded(
                    tl.maximum(there, 0.0),
                    of_x * xw + of_v * vw,
                    squares_next,
                    quotient(one, below),
                    then.to(T),
                    square,
                )
                first += step * base_next * of_v
                second = step * along_next
                base += base_next * of_x
        base = step * base
    return first, second, base
