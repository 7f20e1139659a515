"""What several kernels compute: a byte's value, log(1 + t), compensated sums, an operator's output at one element."""

from __future__ import annotations

from pfgm_fast.backends.triton.runtime import jit, tl

POSTERIOR_MEAN = tl.constexpr(0)
POISSON_FIELD = tl.constexpr(1)
FIELD_STEP = tl.constexpr(2)
LOG_DENSITY = tl.constexpr(3)
SCORE = tl.constexpr(4)
SECOND_MOMENT = tl.constexpr(5)

FIELD_OPS = {
    "posterior_mean": 0,
    "poisson_field": 1,
    "field_step": 2,
    "log_density": 3,
    "score": 4,
    "second_moment": 5,
}
"""Operator → the constexpr OP of the kernels that serve it."""


WEIGHT_UNIT = tl.constexpr(2.0**14)
"""What the weights of byte charges are multiplied with, for two terms of float16 to hold them: the largest, 1, exactly, others to
2⁻²³ of their size or 2⁻³⁹ of the largest."""


@jit
def decode(raw, divisor, offset):
    """Values of charges in float32: a byte's is `byte / divisor + offset`, each operation rounded (`reference.decode`)."""
    if raw.dtype == tl.uint8:
        return tl.div_rn(raw.to(tl.float32), tl.zeros_like(raw).to(tl.float32) + divisor) + offset
    else:
        return raw


@jit
def log_one_plus(t):
    """log(1 + t) for t > −1, accurate where t is small: with u = 1 + t rounded, log(u) t/(u − 1) (Kahan).

    Triton has no log1p of its own that every device and the interpreter know.
    """
    u = 1 + t
    small = u == 1
    return tl.where(small, t, tl.where(t < 1e18, tl.log(u) * (t / tl.where(small, 1, u - 1)), tl.log(u)))


@jit
def anchor_log_weight(squares, r2, power, GAUSSIAN: tl.constexpr):
    """log (1 + squares/r²)^(−power); D = ∞: −squares/(2 r²)."""
    if GAUSSIAN:
        return -0.5 * squares / r2
    else:
        return -power * log_one_plus(squares / r2)


@jit
def two_sum(total, error, term):
    """(total + term, error + what that addition rounded away) (Knuth): the sum of many terms errs like one addition."""
    new = total + term
    back = new - total
    return new, error + ((total - (new - back)) + (term - back))


@jit
def field_output(x, y, total, r, r_next, OP: tl.constexpr):
    """posterior_mean, poisson_field or field_step at one element; y is the anchor's, total = Σ w (y_j − y)/Σ w."""
    if OP == POSTERIOR_MEAN:
        return y + total
    elif OP == FIELD_STEP:
        return x + (r_next - r) / r * ((x - y) - total)
    else:
        return (x - y) - total
