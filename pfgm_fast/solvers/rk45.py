"""Adaptive Dormand–Prince 5(4) by torchdiffeq, on the tensor's device, in the flow's own clock (PFGM: log z)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.errors import SolverError
from pfgm_fast.flows import Flow, Noise, OnStep, onto_data, per_image

Norm = Callable[[Tensor], Tensor]


def root_mean_square(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()


def solve(
    flow: Flow,
    x: Tensor,
    times: list[float],
    on_step: OnStep,
    noise: Noise | None = None,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    norm: Norm | None = None,
    max_nfe: int = 10_000,
) -> Tensor:
    """x (B, *shape) at times[-1]. Only the ends of `times` are used; the tolerances are those of the paper (appendix B.4). Where the
    last is 0, the integration ends at the one before, and the denoising step follows: one evaluation more. on_step cannot change x.

    norm: of a step's error over its tolerance, which must not exceed 1; None: the root mean square of all elements.

    Where the derivative jumps (PFGM: at z_exp) the integration begins anew: on the authors' example that takes 87 evaluations
    instead of 200, and ends ten times closer.

    A row whose derivative is not finite is left out of the step control from there on and returned as NaN, with a warning
    that says how many rows and where; the others go on. Raises: SolverError where the steps shrink to nothing, or where more than
    max_nfe evaluations would be needed.
    """
    from torchdiffeq import odeint

    if len(x) == 0:
        return x.clone()

    def moments(of: Sequence[float]) -> Tensor:
        return torch.tensor([flow.clock(t)[0] for t in of], dtype=torch.float64, device=x.device)

    denoise = onto_data(*times[-2:])
    last = times[-2] if denoise else times[-1]
    ends = moments((times[0], last))
    rows = _Rows(flow, x, on_step, norm or root_mean_square, ends, checks.integer("max_nfe", max_nfe, 1))
    options: dict[str, Any] = {
        "step_t": ends[1:],  # the last step ends there: beyond it the flow need not exist
        "norm": rows.norm,
    }
    if flow.jumps:
        options["jump_t"] = moments(flow.jumps)
    try:
        with torch.no_grad():
            end = odeint(rows, x, ends, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
            if denoise:
                end = flow.denoised(end, flow.evaluate(end, last), last)
    except _NoRowLeftError:
        end = x
    except _TooManyError:
        raise SolverError(
            f"rk45 has taken max_nfe = {max_nfe} evaluations and stands at t = {rows.t:.6g} with rtol = {rtol:g}, atol = {atol:g}: "
            "the flow is not smooth there (an untrained network?); allow larger tolerances or more evaluations, or take euler or heun"
        ) from None
    except AssertionError as error:
        raise SolverError(
            f"rk45 cannot go on at t = {rows.t:.6g} with rtol = {rtol:g}, atol = {atol:g} ({error}): the flow is too steep or "
            "not smooth there; allow larger tolerances, or take euler or heun"
        ) from error
    return rows.masked(end)


class _NoRowLeftError(Exception):
    """Ends the integration: every row has failed."""


class _TooManyError(Exception):
    """Ends the integration: it would not end by itself in any reasonable time."""


class _Rows:
    """The derivative that torchdiffeq integrates: rows that failed stand still, and the error's norm does not see them."""

    def __init__(
        self, flow: Flow, x: Tensor, on_step: OnStep, norm: Norm, ends: Tensor, max_nfe: int
    ) -> None:
        self.flow, self.start, self.on_step, self.whole_norm = flow, x, on_step, norm
        self.alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.all_alive = True
        self.least, self.most = float(ends.min()), float(ends.max())
        self.t, self.left = float("nan"), max_nfe

    def __call__(self, s: Tensor, state: Tensor) -> Tensor:
        # torchdiffeq's guess of the first step looks far ahead where the slope is small, as VP's is at its prior
        self.left -= 1
        if self.left < 0:
            raise _TooManyError
        t = self.t = self.flow.time(min(max(float(s), self.least), self.most))
        if not self.all_alive:
            state = state.where(self._mask(), self.start)
        _, rate = self.flow.clock(t)
        slope = self.flow.derivative(state, self.flow.evaluate(state, t), t) * rate
        # A few steps of less than this cannot carry the state to infinity; a NaN compares as false.
        finite = (slope.flatten(1).abs() <= torch.finfo(slope.dtype).max ** 0.75).all(1)
        if not bool(finite[self.alive].all()):
            self._leave_out(finite, t)
        if not self.all_alive:
            slope = slope.where(self._mask(), torch.zeros_like(slope))
        self.on_step(self.masked(state), t)
        return slope

    def _leave_out(self, finite: Tensor, t: float) -> None:
        failed = int((self.alive & ~finite).sum())
        warnings.warn(
            f"rk45: dx/dt is not finite in {failed} of {len(finite)} rows at t = {t:.6g}: the network's output there is NaN, "
            "infinite or too large; these rows are returned as NaN",
            RuntimeWarning,
            stacklevel=2,
        )
        self.alive, self.all_alive = self.alive & finite, False
        if not bool(self.alive.any()):
            raise _NoRowLeftError

    def _mask(self) -> Tensor:
        return per_image(self.alive, self.start)

    def norm(self, error: Tensor) -> Tensor:
        """Of the rows that are left, (B, *shape) or flat."""
        if self.all_alive:
            return self.whole_norm(error)
        return self.whole_norm(error.reshape(self.start.shape)[self.alive])

    def masked(self, state: Tensor) -> Tensor:
        """NaN in the rows that failed."""
        if self.all_alive:
            return state
        return state.where(self._mask(), torch.full_like(state, float("nan")))
