"""Likelihood of data under a flow by the instantaneous change of variables (Chen et al. 2018, arXiv 1806.07366).

A flow dx/dt = f(x, t) carries the prior at t₁ to the data at t₀, so along the path that ends in x

    log p(x) = log p_prior(x(t₁)) + ∫ from t₀ to t₁ of div f(x(t), t) dt.

The divergence is exact where the flow knows it (Charges: weighted sums over the charges), else Hutchinson's estimate
εᵀ(∂f/∂x)ε with E εεᵀ = 1 (arXiv 1810.01367), one vector-Jacobian product a probe, the same probes along the whole path.
x and the integral are one state in float64, in the flow's own clock: for a sum of N log(t₁/t₀) nats, float32 is too coarse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import Flow, PlainSteps, is_exact
from pfgm_fast.methods import Method
from pfgm_fast.methods.network import Network, check_network, evaluation_mode
from pfgm_fast.sampling import check_labels, method_for
from pfgm_fast.solvers import STOCHASTIC
from pfgm_fast.solvers import solver as find_solver

NOISES = ("rademacher", "gaussian")


@dataclass(frozen=True)
class Likelihood:
    """What `log_likelihood` finds; all densities in nats, (B,), float64.

    log_density = prior + change: of x where the flow ends. prior: log density of the latents. change: the integral of the
    divergence. latents (B, *shape): where the flow's path to x begins, in x's dtype. nfe: evaluations of the network.
    """

    log_density: Tensor
    prior: Tensor
    change: Tensor
    latents: Tensor
    nfe: int


def log_likelihood(
    net: Network | Charges,
    x: Tensor,  # (B, *shape)
    method: Method | None = None,
    *,
    solver: str = "rk45",
    steps: int = 100,
    probes: int = 1,
    noise: str = "rademacher",
    exact: bool | None = None,
    labels: Tensor | None = None,  # (B,)
    generator: torch.Generator | None = None,
    progress: bool = False,
    **options: Any,
) -> Likelihood:
    """Log density of x under the model: the method's prior, carried to the data by the flow of a network or of Charges.

    The instantaneous change of variables (Chen et al. 2018, arXiv 1806.07366), with Hutchinson's estimate (arXiv 1810.01367). Returns
    a Likelihood: densities in nats (B,), float64. The prior is taken with its whole tail; that `sample` clips PFGM's does not enter. A
    flow that overflows gives NaN or infinity, as it is.

    Args:
        net: As in `sample`; a module is put in evaluation mode meanwhile.
        x: (B, *shape), float32 or float64, values as the model was trained on. It is taken to lie where the path is least noisy
            (PFGM: on z = z_min; the SDEs: at t_min).
        method: Hyper-parameters; default as in `sample`.
        solver: "rk45" (adaptive; `rtol`, `atol`, default 1e-5) or "heun", "euler" with `steps` steps, even in the flow's clock.
        steps: ≥ 1, for solvers of fixed steps.
        probes: K ≥ 1 of Hutchinson's estimate; its error falls as 1/√K.
        noise: Of the probes: "rademacher" (±1, least variance) or "gaussian".
        exact: The divergence itself instead; None: where it is known in closed form (Charges). True with a network costs N
            vector-Jacobian products an evaluation.
        labels: Classes (B,), or one-hot (B, classes).
        generator: Of the probes.
        progress: A tqdm bar.
        **options: Of the solver.

    Raises:
        ArgumentError: Bad shapes, probes, noise or options; a stochastic solver.
        SolverError: Where rk45 cannot go on.
    """
    method = method_for(net, method)
    x = checks.batch("x", x)
    labels = check_labels(labels, x)
    if not isinstance(net, Charges):
        check_network(net, labels)
    if solver in STOCHASTIC:
        raise ArgumentError(f"likelihood needs the solver of an ODE; {solver!r} is stochastic")
    solve = find_solver(solver, options)
    flow = method.flow(net, labels)
    if exact is None:
        exact = is_exact(flow)
    known = exact and is_exact(flow)
    seen = None if known else _every_direction(x) if exact else _probes(x, probes, noise, generator)
    change = _Change(flow, x, seen)
    if solver == "rk45":
        options = {"rtol": 1e-5, "atol": 1e-5, "norm": change.norm, **options}
    start = torch.cat([checks.flat(x).double(), x.new_zeros(len(x), 1, dtype=torch.float64)], 1)
    with evaluation_mode(net), torch.no_grad(), tqdm(disable=not progress) as bar:

        def on_step(state: Tensor, s: float) -> Tensor:
            bar.update()
            return state

        end = solve(change, start, change.grid(steps), on_step, **options)
    latents = end[:, :-1].view(x.shape)
    prior = method.prior_log_density(latents)
    return Likelihood(prior + end[:, -1], prior, end[:, -1], latents.to(x.dtype), change.evaluations)


@dataclass(frozen=True)
class BitsPerDim:
    """bits (B,) float64: −log₂ of an image's probability over N, an upper bound. mean: over the images. nfe: as in `Likelihood`."""

    bits: Tensor
    nfe: int

    @property
    def mean(self) -> float:
        """Bits per dimension of the set."""
        return float(self.bits.mean())


def bits_per_dim(
    net: Network | Charges,
    images: Tensor,  # (B, *shape) uint8
    method: Method | None = None,
    *,
    draws: int = 1,
    value_range: tuple[float, float] = (-1.0, 1.0),
    generator: torch.Generator | None = None,
    **options: Any,
) -> BitsPerDim:
    """−log₂ P(image)/N of images of bytes by uniform dequantisation (Theis et al. 2016, arXiv 1511.01844, section 3.1).

    A byte stands for the cell of width (high − low)/255 around its value, so P(image) = ∫ over the cell of p ≥ exp E log p(x)
    · width^N: the bits are an upper bound on average, the mean over the draws of x. Returns BitsPerDim: bits (B,), mean, nfe.

    Args:
        net: As in `sample`; a module is put in evaluation mode meanwhile.
        images: (B, *shape) uint8.
        method: Hyper-parameters; default as in `sample`.
        draws: Draws of x ≥ 1.
        value_range: The values (low, high) of the bytes 0 and 255, low < high, as in `Charges`.
        generator: Of the draws and the probes.
        **options: As in `log_likelihood`.

    Raises:
        ArgumentError: Images that are not uint8, draws < 1, an empty range, and as `log_likelihood`.
        SolverError: Where rk45 cannot go on.
    """
    images = checks.batch("images", images, (torch.uint8,))
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(f"value_range must be (low, high), finite, low < high; got {value_range}")
    draws = checks.integer("draws", draws, 1)
    width = (high - low) / 255
    total, evaluations = torch.zeros(len(images), dtype=torch.float64, device=images.device), 0
    for _ in range(draws):
        within = torch.rand(images.shape, device=images.device, generator=generator) - 0.5
        x = (images.float() + within) * width + low
        found = log_likelihood(net, x, method, generator=generator, **options)
        total += found.log_density / draws
        evaluations += found.nfe
    dim = math.prod(images.shape[1:])
    return BitsPerDim(-(total / dim + math.log(width)) / math.log(2), evaluations)


def _probes(x: Tensor, count: int, noise: str, generator: torch.Generator | None) -> Tensor:
    """(K, B, *shape) independent, of mean 0 and covariance 1."""
    count = checks.integer("probes", count, 1)
    if noise not in NOISES:
        raise ArgumentError(f"noise must be one of {', '.join(NOISES)}; got {noise!r}")
    where: dict[str, Any] = {"device": x.device, "dtype": x.dtype, "generator": generator}
    if noise == "gaussian":
        return torch.randn((count, *x.shape), **where)
    return torch.randint(0, 2, (count, *x.shape), **where) * 2 - 1


def _every_direction(x: Tensor) -> Tensor:
    """(N, B, *shape): √N times each unit vector, whose mean of εᵀJε is the trace itself."""
    dim = math.prod(x.shape[1:])
    axes = math.sqrt(dim) * torch.eye(dim, device=x.device, dtype=x.dtype)
    return axes.view(dim, 1, *x.shape[1:]).expand(dim, *x.shape)


class _Change(PlainSteps):
    """The flow of (x, ∫ div f) (B, N + 1), float64, in the clock of x's own flow, from the data to the prior."""

    def __init__(self, flow: Flow, x: Tensor, probes: Tensor | None) -> None:
        self.flow, self.shape, self.dtype, self.probes = flow, x.shape, x.dtype, probes
        self.jumps = tuple(flow.clock(t)[0] for t in flow.jumps)
        self.evaluations = 0

    def evaluate(self, state: Tensor, s: float) -> Tensor:
        self.evaluations += 1
        t = self.flow.time(s)
        _, rate = self.flow.clock(t)
        x = state[:, :-1].to(self.dtype).reshape(self.shape)
        slope, divergence = self._exact(x, t) if self.probes is None else self._estimate(x, t)
        return rate * torch.cat([slope.flatten(1).double(), divergence.double()[:, None]], 1)

    def _exact(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        assert is_exact(self.flow)
        return self.flow.derivative(x, self.flow.evaluate(x, t), t), self.flow.divergence(x, t)

    def _estimate(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            slope = self.flow.derivative(x, self.flow.evaluate(x, t), t)
        assert self.probes is not None
        total = x.new_zeros(len(x), dtype=torch.float64)
        for probe in self.probes:
            if slope.requires_grad:  # a slope that ignores x has no divergence
                (pulled,) = torch.autograd.grad(slope, x, probe, retain_graph=True, materialize_grads=True)
                total += (pulled * probe).flatten(1).double().sum(1)
        return slope.detach(), total / len(self.probes)

    def norm(self, error: Tensor) -> Tensor:
        """Of a step: x and the integral each have to keep the tolerance; in one mean, N elements would drown the integral."""
        error = error.view(-1, math.prod(self.shape[1:]) + 1)
        return torch.maximum(error[:, :-1].square().mean().sqrt(), error[:, -1].square().mean().sqrt())

    def grid(self, steps: int) -> list[float]:
        """steps + 1 times from the data to the prior, even in the clock."""
        first, last = (self.flow.clock(t)[0] for t in (self.flow.grid(1)[0], self.flow.likelihood_end))
        return [last + (first - last) * i / steps for i in range(steps + 1)]

    def clock(self, t: float) -> tuple[float, float]:
        return t, 1.0

    def time(self, s: float) -> float:
        return s
