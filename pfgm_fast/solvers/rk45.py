"""Adaptive Dormand–Prince 5(4) by torchdiffeq, on the tensor's device, in the flow's own clock (PFGM: log z)."""

from __future__ import annotations

from torch import Tensor

from pfgm_fast.methods.base import Flow
from pfgm_fast.solvers.euler import OnStep


def solve(
    flow: Flow, x: Tensor, times: list[float], on_step: OnStep, rtol: float = 1e-4, atol: float = 1e-4
) -> Tensor:
    """Only the ends of `times` are used; the tolerances are those of the paper (appendix B.4)."""
    import torch
    from torchdiffeq import odeint

    def derivative(s: Tensor, state: Tensor) -> Tensor:
        t = flow.time(float(s))
        _, rate = flow.clock(t)
        result = flow.derivative(state, flow.evaluate(state, t), t) * rate
        on_step(state, t)
        return result

    ends = torch.tensor([flow.clock(times[0])[0], flow.clock(times[-1])[0]], dtype=torch.float64)
    with torch.no_grad():
        return odeint(derivative, x, ends.to(x.device), rtol=rtol, atol=atol, method="dopri5")[-1]
