"""Which derivatives each operator has, and their formulas: the one place that says so.

With ρ_j = y_j − x, c_j = (N + D)/d²_j (1/σ² for D = ∞), g = Σ w c ρ, s = Σ w c, t = Σ w c ‖ρ‖², f = x − m = −Σ w ρ and
S_k(u) = Σ w c^k (ρ·u) ρ, and a = 1 + 2/(N + D) (1 for D = ∞):

    ∂lse = g·dx + t/r dr                       since ∂ℓ_j/∂x = c_j ρ_j, ∂ℓ_j/∂r = −c_j r (D = ∞: ‖ρ_j‖²/σ³)
    ∂m   = S_1(dx) + f (g·dx) + m_r dr         m_r = −r (g + s f)
    ∂g   = a S_2(dx) − g (g·dx) − s dx + g_r dr    g_r = r s (g − g⁺)
    ∂s   = s (g⁺ − g)·dx + r s (s − s⁺) dr
    ∂t   = −r² ∂s − 2 r s dr                   since t = (N + D) − r² s

g⁺, s⁺ are those of D + 2: w c is s times the softmax for D + 2, so s ∝ exp(lse⁺ − lse)/r². D = ∞ needs K = Σ w ‖ρ‖² ρ and
Q = Σ w ‖ρ‖⁴ (`gaussian_moments`, by the reference alone, and only where r's derivative or t's is asked for):

    m_r = K/σ³ + t f/σ      g_r = m_r/σ² − 2 g/σ      ∂s = −2/σ³ dσ
    ∂t  = ((2 f + K/σ²)/σ² − t g)·dx + ((Q − t² σ⁴)/σ⁵ − 2 t/σ) dσ

Every formula is made of operators that stand in this table themselves, so second derivatives, forward over reverse and the
rest follow by composition, as far as the table goes: the Jacobian of S_k in x and r would need third moments, and is refused.
The steps' derivatives are those of the reference's formula, of any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.ops.schema import Query

_ops = torch.ops.pfgm_fast

Wants = tuple[Tensor | None, ...]
"""What is wanted of each output, None: nothing."""


@dataclass(frozen=True)
class Derivatives:
    """Of one field operator. by: the arguments that it can be differentiated by, in either mode.

    pull(args, wants, by) → {argument: its gradient}, for the names in `by`. push(args, moves) → the outputs' tangents, for
    tangents `moves` of some arguments. refusal: why not by the others.
    """

    by: tuple[str, ...]
    pull: Callable[[tuple[Any, ...], Wants, Collection[str]], dict[str, Tensor]]
    push: Callable[[tuple[Any, ...], dict[str, Tensor]], tuple[Tensor, ...]]
    refusal: str = "charges and their weights are data"


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) of (B, N)."""
    return (a * b).sum(1)


def _times(scale: Tensor, rows: Tensor) -> Tensor:
    """(B,) times (B, N), in the rows' dtype."""
    return scale.to(rows.dtype)[:, None] * rows


def _infinite(q: Query) -> bool:
    return math.isinf(q.aug_dim)


def _growth(q: Query) -> float:
    """a of the formulas above."""
    return 1.0 if _infinite(q) else 1 + 2 / (q.x.shape[1] + q.aug_dim)


def _raised(q: Query) -> Query:
    """The query for D + 2."""
    return q._replace(aug_dim=q.aug_dim + 2)


def _moment(q: Query, u: Tensor, power: int) -> Tensor:
    return _ops.second_moment(*q, u.contiguous(), power)[0]


class _Slopes:
    """What the formulas need of one query; each part is computed where it is first asked for."""

    def __init__(self, q: Query) -> None:
        self.q, self.r = q, q.r
        self.gradient, self.field, self.rate, self.trace, _ = _ops.score(*q)
        self._gaussian: tuple[Tensor, Tensor] | None = None
        self._raised: tuple[Tensor, Tensor] | None = None

    def cubic(self) -> Tensor:
        """K (B, N)."""
        self._gaussian = self._gaussian or _ops.gaussian_moments(*self.q)
        return self._gaussian[0]

    def quartic(self) -> Tensor:
        """Q (B,)."""
        self._gaussian = self._gaussian or _ops.gaussian_moments(*self.q)
        return self._gaussian[1]

    def raised(self) -> tuple[Tensor, Tensor]:
        """g⁺ (B, N), s⁺ (B,)."""
        if self._raised is None:
            gradient, _, rate, _, _ = _ops.score(*_raised(self.q))
            self._raised = gradient, rate
        return self._raised

    def mean_by_r(self) -> Tensor:
        """m_r (B, N)."""
        r = self.r
        if _infinite(self.q):
            return _times(r**-3, self.cubic()) + _times(self.trace / r, self.field)
        return _times(-r, self.gradient + _times(self.rate, self.field))

    def gradient_by_r(self) -> Tensor:
        """g_r (B, N)."""
        r = self.r
        if _infinite(self.q):
            return _times(r**-2, self.mean_by_r()) - _times(2 / r, self.gradient)
        return _times(r * self.rate, self.gradient - self.raised()[0])

    def rate_by_x(self) -> Tensor | None:
        """∂s/∂x (B, N)."""
        return None if _infinite(self.q) else _times(self.rate, self.raised()[0] - self.gradient)

    def rate_by_r(self) -> Tensor:
        """∂s/∂r (B,)."""
        return -2 * self.r**-3 if _infinite(self.q) else self.r * self.rate * (self.rate - self.raised()[1])

    def trace_by_x(self) -> Tensor:
        """∂t/∂x (B, N)."""
        by_x = self.rate_by_x()
        if by_x is not None:
            return _times(-(self.r**2), by_x)
        square = self.r**-2
        return _times(square, 2 * self.field + _times(square, self.cubic())) - _times(
            self.trace, self.gradient
        )

    def trace_by_r(self) -> Tensor:
        """∂t/∂r (B,)."""
        r = self.r
        if not _infinite(self.q):
            return -2 * r * self.rate - r**2 * self.rate_by_r()
        return (self.quartic() * r**-4 - self.trace**2 - 2 * self.trace) / r


def _gradient(q: Query) -> Tensor:
    """g alone, where no derivative of t shall be computed along with it."""
    return _times(-(q.r**-2), _ops.poisson_field(*q)[0]) if _infinite(q) else _ops.score(*q)[0]


def _sum(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


class _Pull:
    """Gradients by x and r, summed over what is wanted of the outputs."""

    def __init__(self, q: Query, by: Collection[str]) -> None:
        self.q, self.by = q, by
        self.x: list[Tensor] = []
        self.r: list[Tensor] = []
        self._slopes: _Slopes | None = None

    @property
    def at(self) -> _Slopes:
        self._slopes = self._slopes or _Slopes(self.q)
        return self._slopes

    def lse(self, want: Tensor | None) -> None:
        if want is None:
            return
        want = want.to(self.q.x.dtype)
        if self._slopes is None and "r" not in self.by:
            self.x.append(_times(want, _gradient(self.q)))
            return
        self.x.append(_times(want, self.at.gradient))
        self.r.append(want * self.at.trace / self.q.r)

    def mean(self, want: Tensor | None, sign: float = 1.0) -> None:
        """Of sign · m."""
        if want is None:
            return
        want = sign * want
        if "x" in self.by:
            self.x.append(_moment(self.q, want, 1) + _times(_dot(self.at.field, want), self.at.gradient))
        if "r" in self.by:
            self.r.append(_dot(self.at.mean_by_r(), want))

    def field(self, want: Tensor | None) -> None:
        if want is not None:
            self.mean(want, -1.0)
            self.x.append(want)

    def gradient(self, want: Tensor | None) -> None:
        if want is None:
            return
        at = self.at
        if "x" in self.by:
            along = _dot(at.gradient, want)
            curved = _growth(self.q) * _moment(self.q, want, 2)
            self.x.append(curved - _times(along, at.gradient) - _times(at.rate, want))
        if "r" in self.by:
            self.r.append(_dot(at.gradient_by_r(), want))

    def rate(self, want: Tensor | None) -> None:
        if want is None:
            return
        by_x = self.at.rate_by_x() if "x" in self.by else None
        if by_x is not None:
            self.x.append(_times(want, by_x))
        if "r" in self.by:
            self.r.append(want * self.at.rate_by_r())

    def trace(self, want: Tensor | None) -> None:
        if want is None:
            return
        if "x" in self.by:
            self.x.append(_times(want, self.at.trace_by_x()))
        if "r" in self.by:
            self.r.append(want * self.at.trace_by_r())

    def result(self) -> dict[str, Tensor]:
        found = {}
        if "x" in self.by:
            found["x"] = _sum(self.x) if self.x else torch.zeros_like(self.q.x)
        if "r" in self.by:
            found["r"] = _sum(self.r) if self.r else torch.zeros_like(self.q.r)
        return found


class _Push:
    """Tangents of the outputs for tangents of x and r."""

    def __init__(self, q: Query, moves: dict[str, Tensor]) -> None:
        self.q, self.dx, self.dr = q, moves.get("x"), moves.get("r")
        self.at = _Slopes(q)
        self.along = None if self.dx is None else _dot(self.at.gradient, self.dx)

    def _vector(self, by_x: Callable[[Tensor, Tensor], Tensor], by_r: Callable[[], Tensor]) -> Tensor:
        parts = []
        if self.dx is not None and self.along is not None:
            parts.append(by_x(self.dx, self.along))
        if self.dr is not None:
            parts.append(_times(self.dr, by_r()))
        return _sum(parts) if parts else torch.zeros_like(self.q.x)

    def _scalar(self, by_x: Callable[[], Tensor | None], by_r: Callable[[], Tensor]) -> Tensor:
        parts = []
        slope = None if self.dx is None else by_x()
        if self.dx is not None and slope is not None:
            parts.append(_dot(slope, self.dx))
        if self.dr is not None:
            parts.append(self.dr * by_r())
        return _sum(parts) if parts else torch.zeros_like(self.q.r)

    def lse(self) -> Tensor:
        at = self.at
        return self._scalar(lambda: at.gradient, lambda: at.trace / self.q.r).to(torch.float64)

    def mean(self) -> Tensor:
        at = self.at
        return self._vector(lambda dx, along: _moment(self.q, dx, 1) + _times(along, at.field), at.mean_by_r)

    def field(self) -> Tensor:
        return -self.mean() if self.dx is None else self.dx - self.mean()

    def gradient(self) -> Tensor:
        at = self.at
        return self._vector(
            lambda dx, along: (
                _growth(self.q) * _moment(self.q, dx, 2) - _times(along, at.gradient) - _times(at.rate, dx)
            ),
            at.gradient_by_r,
        )

    def rate(self) -> Tensor:
        return self._scalar(self.at.rate_by_x, self.at.rate_by_r)

    def trace(self) -> Tensor:
        return self._scalar(self.at.trace_by_x, self.at.trace_by_r)


_LENGTH = len(Query._fields)


def _of_query(*outputs: str) -> Derivatives:
    """Of an operator whose arguments are a query, for outputs named as the methods of `_Pull` and `_Push`."""

    def pull(args: tuple[Any, ...], wants: Wants, by: Collection[str]) -> dict[str, Tensor]:
        sums = _Pull(Query._make(args), by)
        for output, want in zip(outputs, wants, strict=True):
            getattr(sums, output)(want)
        return sums.result()

    def push(args: tuple[Any, ...], moves: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tangents = _Push(Query._make(args), moves)
        return tuple(getattr(tangents, output)() for output in outputs)

    return Derivatives(("x", "r"), pull, push)


def _field_step_pull(args: tuple[Any, ...], wants: Wants, by: Collection[str]) -> dict[str, Tensor]:
    """x + h f with h = (r' − r)/r."""
    q, r_next, (want,) = Query._make(args[:_LENGTH]), args[_LENGTH], wants
    assert want is not None
    h = (r_next - q.r) / q.r
    sums = _Pull(q, by)
    sums.field(_times(h, want))
    sums.x.append(want)
    along = None
    if "r" in by or "r_next" in by:
        along = _dot(sums.at.field, want)
        sums.r.append(-r_next / q.r**2 * along)
    found = sums.result()
    if along is not None and "r_next" in by:
        found["r_next"] = along / q.r
    return found


def _field_step_push(args: tuple[Any, ...], moves: dict[str, Tensor]) -> tuple[Tensor, ...]:
    q, r_next = Query._make(args[:_LENGTH]), args[_LENGTH]
    tangents = _Push(q, moves)
    h = (r_next - q.r) / q.r
    total = _times(h, tangents.field())
    if "x" in moves:
        total = total + moves["x"]
    if "r" in moves:
        total = total + _times(-r_next / q.r**2 * moves["r"], tangents.at.field)
    if "r_next" in moves:
        total = total + _times(moves["r_next"] / q.r, tangents.at.field)
    return (total,)


def _moment_vector(q: Query, power: int) -> Tensor:
    """Σ w c^k ρ (B, N)."""
    if power == 1:
        return _gradient(q)
    if _infinite(q):
        return _times(q.r ** (2 - 2 * power), _gradient(q))
    raised = _ops.score(*_raised(q))[0]
    return _times(_ops.score(*q)[2] / _growth(q), raised)


def _second_moment_pull(args: tuple[Any, ...], wants: Wants, by: Collection[str]) -> dict[str, Tensor]:
    """Linear and symmetric in u."""
    q, power = Query._make(args[:_LENGTH]), args[-1]
    moment, projection = wants
    parts = []
    if moment is not None:
        parts.append(_moment(q, moment, power))
    if projection is not None:
        parts.append(_times(projection, _moment_vector(q, power)))
    return {"u": _sum(parts)} if parts else {}


def _second_moment_push(args: tuple[Any, ...], moves: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return _ops.second_moment(*args[:_LENGTH], moves["u"].contiguous(), args[-1])


def _nothing(*_: Any) -> Any:
    raise AssertionError("an operator without derivatives is refused before")


_THIRD = "that would be a third-order moment of the charges, which no kernel has"

FIELD: dict[str, Derivatives] = {
    "posterior_mean": _of_query("mean", "lse"),
    "poisson_field": _of_query("field", "lse"),
    "score": _of_query("gradient", "field", "rate", "trace", "lse"),
    "log_density": _of_query("lse"),
    "field_step": Derivatives(("x", "r", "r_next"), _field_step_pull, _field_step_push),
    "second_moment": Derivatives(("u",), _second_moment_pull, _second_moment_push, _THIRD),
    "gaussian_moments": Derivatives((), _nothing, _nothing, _THIRD),
}
"""The operators that sum over charges."""

STEPS = ("normalize_field", "drift", "euler_step", "heun_step")
"""Differentiable to any order by every tensor, in both modes, as the reference's formula is. `euler_step.out` is refused."""
