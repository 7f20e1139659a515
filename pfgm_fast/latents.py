"""Latents: data carried back to the prior, round trips, and the ways between two latents.

A flow is a bijection between the prior and the data (PFGM, arXiv 2209.11178, section 4.3): `encode` runs the sampler's ODE
backwards, `sample(..., x0=latents)` decodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import Counted
from pfgm_fast.methods import Method
from pfgm_fast.methods.network import Network, check_network, evaluation_mode
from pfgm_fast.sampling import Samples, check_labels, method_for, sample
from pfgm_fast.solvers import STOCHASTIC
from pfgm_fast.solvers import solver as find_solver


def encode(
    net: Network | Charges,
    x: Tensor,  # (B, *shape)
    method: Method | None = None,
    *,
    solver: str = "rk45",
    steps: int = 100,
    labels: Tensor | None = None,  # (B,) or (B, classes)
    progress: bool = False,
    **options: Any,
) -> Samples:
    """The latents of x: where the path begins that ends in x. Returns Samples whose x (B, *shape) are latents.

    A flow is a bijection between prior and data (PFGM, arXiv 2209.11178, section 4.3); `sample(..., x0=latents)` goes back.

    Args:
        net: As in `sample`; a module is put in evaluation mode meanwhile.
        x: (B, *shape), float32 or float64, values as the model was trained on; taken to lie where sampling ends (PFGM: z = z_min).
        method: Hyper-parameters; default as in `sample`.
        solver: Of an ODE, as in `sample`; "heun" costs 2 steps evaluations here, for no step ends on the data.
        steps: ≥ 1, for solvers of fixed steps.
        labels: Classes (B,), or one-hot (B, classes).
        progress: A tqdm bar.
        **options: Of the solver; `rtol` and `atol` of "rk45".

    Raises:
        ArgumentError: Bad shapes, steps or options; a stochastic solver.
        SolverError: Where rk45 cannot go on.
    """
    method = method_for(net, method)
    x = checks.batch("x", x)
    labels = check_labels(labels, x)
    if not isinstance(net, Charges):
        check_network(net, labels)
    if solver in STOCHASTIC:
        raise ArgumentError(f"latents need the solver of an ODE; {solver!r} is stochastic")
    solve, flow = find_solver(solver, options), Counted(method.flow(net, labels))
    with evaluation_mode(net), torch.no_grad(), tqdm(disable=not progress) as bar:

        def on_step(x: Tensor, t: float) -> Tensor:
            bar.update()
            return x

        latents = solve(flow, x, flow.grid(steps)[::-1], on_step, **options)
    return Samples(latents, flow.count)


@dataclass(frozen=True)
class RoundTrip:
    """latents, images (B, *shape): of data → prior → data. error (B,): root mean square of images − x. nfe: both ways together."""

    latents: Tensor
    images: Tensor
    error: Tensor
    nfe: int


def round_trip(
    net: Network | Charges,
    x: Tensor,  # (B, *shape)
    method: Method | None = None,
    *,
    solver: str = "rk45",
    steps: int = 100,
    labels: Tensor | None = None,  # (B,) or (B, classes)
    **options: Any,
) -> RoundTrip:
    """Encode x and decode it again; the error is that of the solver, twice: the flow itself is invertible.

    PFGM (arXiv 2209.11178) section 4.3. Returns a RoundTrip: latents and images (B, *shape), error (B,), nfe.

    Args:
        net: As in `sample`; a module is put in evaluation mode meanwhile.
        x: (B, *shape), float32 or float64, as in `encode`.
        method: Hyper-parameters; default as in `sample`.
        solver: Of an ODE, as in `sample`.
        steps: ≥ 1, for solvers of fixed steps.
        labels: Classes (B,), or one-hot (B, classes).
        **options: Of the solver; `rtol` and `atol` of "rk45" decide its error.

    Raises:
        ArgumentError: Bad shapes, steps or options; a stochastic solver.
        SolverError: Where rk45 cannot go on.
    """
    method = method_for(net, method)
    there = encode(net, x, method, solver=solver, steps=steps, labels=labels, **options)
    start: dict[str, Any] = {"x0": there.x, "method": method, "labels": labels, "denoise": False}
    back = sample(net, tuple(x.shape), solver, steps, **start, **options)
    error = (back.x - x).flatten(1).double().square().mean(1).sqrt()
    return RoundTrip(there.x, back.x, error, there.nfe + back.nfe)


def interpolate(
    start: Tensor,  # (B, *shape)
    end: Tensor,  # (B, *shape)
    count: int,
) -> Tensor:
    """`count` latents from start to end, both included, along great circles: (count, B, *shape).

    Directions turn at constant speed (Shoemake 1985) and norms change in equal ratios, so that every one is as likely as its
    neighbours, which a straight line through the thin middle of a high-dimensional prior is not (PFGM, arXiv 2209.11178, section 4.3).
    Where the two point exactly apart no great circle is the shortest, and directions are mixed linearly, as where they are parallel.

    Args:
        start: Latents (B, *shape), none of norm 0.
        end: Latents (B, *shape), likewise.
        count: How many, an integer ≥ 2.

    Raises:
        ArgumentError: Other shapes, a latent that is zero, or count < 2.
    """
    start, end = checks.batch("start", start), checks.batch("end", end)
    checks.same("end", end, "start", start)
    count = checks.integer("count", count, 2)
    a, b = start.flatten(1).double(), end.flatten(1).double()
    norms = [v.norm(dim=1, keepdim=True) for v in (a, b)]
    if not all(bool((n > 0).all()) for n in norms):
        raise ArgumentError("a latent of norm zero has no direction")
    a, b = a / norms[0], b / norms[1]
    # From the chord: the arc cosine of a product loses half the digits of a small angle.
    angle = 2 * torch.atan2((a - b).norm(dim=1, keepdim=True), (a + b).norm(dim=1, keepdim=True))
    share = torch.linspace(0, 1, count, dtype=a.dtype, device=a.device)[:, None, None]
    sine = angle.sin()
    bent = sine > 1e-6
    divisor = sine.where(bent, torch.ones_like(sine))
    left = torch.where(bent, ((1 - share) * angle).sin() / divisor, 1 - share)
    right = torch.where(bent, (share * angle).sin() / divisor, share)
    length = norms[0] ** (1 - share) * norms[1] ** share
    return (length * (left * a + right * b)).to(start.dtype).view(count, *start.shape)
