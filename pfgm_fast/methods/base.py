"""What the trainer, the sampler and the solvers know of a method, and what the methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.special import log_gamma_ratio

Network = Callable[..., tuple[Tensor, Tensor]]
"""net(x (B, *shape), condition (B,), labels=None) → (B, *shape), (B,)."""


class Flow(Protocol):
    """An ODE dx/dt = f(x, t) that a solver integrates from `grid[0]` to `grid[-1]`; t is a float64 number.

    `evaluate` costs one evaluation of the network; what it returns is opaque to a solver. `euler` and `heun` are the
    fused steps that go with it.
    """

    def evaluate(self, x: Tensor, t: float) -> Any:
        """What the network says at x (B, *shape) and t; rows belong to rows of x."""
        ...

    def derivative(self, x: Tensor, value: Any, t: float) -> Tensor:
        """dx/dt (B, *shape) of a value that was evaluated at (x, t); differentiable in x through the value."""
        ...

    def euler(self, x: Tensor, value: Any, t: float, t_next: float) -> Tensor:
        """x + (t' − t) dx/dt (B, *shape); t' may lie on either side of t."""
        ...

    def heun(self, x: Tensor, value: Any, value_next: Any, t: float, t_next: float) -> Tensor:
        """x + (t' − t)/2 (dx/dt + dx/dt' ) (B, *shape), value_next evaluated at Euler's prediction for t'."""
        ...

    def grid(self, steps: int) -> list[float]:
        """steps + 1 times from the prior to the data."""
        ...

    def clock(self, t: float) -> tuple[float, float]:
        """(s, dt/ds) of the variable s in which an adaptive solver steps, e.g. s = log z."""
        ...

    def time(self, s: float) -> float:
        """t of s, the inverse of `clock`."""
        ...

    @property
    def jumps(self) -> tuple[float, ...]:
        """Times at which the derivative jumps; an adaptive solver begins anew there instead of groping."""
        ...


@runtime_checkable
class ExactFlow(Flow, Protocol):
    """A flow that knows its divergence in closed form: that of Charges."""

    def divergence(self, x: Tensor, t: float) -> Tensor:
        """Σ_k ∂f_k/∂x_k at (x, t): (B,)."""
        ...


class Method(Protocol):
    """Hyper-parameters of one way to train and to sample; a frozen dataclass with `to_dict`."""

    name: ClassVar[str]

    def loss(
        self,
        net: Network,
        images: Tensor,
        index: Tensor,
        charges: Charges,
        generator: torch.Generator | None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Training loss of each of images (B, *shape), the charges at index (B,): (B,), differentiable in the network's parameters."""
        ...

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """Draws (B, *shape) of the distribution where the flow begins; `where`: device, dtype, generator."""
        ...

    def prior_log_density(self, x: Tensor) -> Tensor:
        """Its log density at x (B, *shape), in nats (B,), float64, normalised over R^N."""
        ...

    def flow(self, net: Network | Charges, labels: Tensor | None = None) -> Flow:
        """The ODE from the prior to the data of a network, or of the exact field of Charges (an `ExactFlow`); labels (B,)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them; `methods.from_dict` is the inverse."""
        ...


class Hyperparameters:
    """Base of the methods' dataclasses."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


class LogTime:
    """The clock of a flow whose time runs over decades: s = log t."""

    jumps: tuple[float, ...] = ()

    def clock(self, t: float) -> tuple[float, float]:
        return math.log(t), t

    def time(self, s: float) -> float:
        return math.exp(s)


class PlainSteps:
    """Euler and Heun for a flow whose `evaluate` is already dx/dt."""

    def derivative(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        return value

    def euler(self, x: Tensor, value: Tensor, t: float, t_next: float) -> Tensor:
        return torch.add(x, value, alpha=t_next - t)

    def heun(self, x: Tensor, value: Tensor, value_next: Tensor, t: float, t_next: float) -> Tensor:
        return torch.add(x, value + value_next, alpha=0.5 * (t_next - t))


class FieldFlow(LogTime):
    """The flow of the true field, dx/dr = (x − m)/r (PFGM eq. 6, PFGM++ eq. 5), of Charges instead of a network.

    Its value is x − m, its Euler step the fused `field_step`'s formula.
    """

    def __init__(
        self, charges: Charges, aug_dim: float, start: float, end: float, labels: Tensor | None
    ) -> None:
        self.charges, self.aug_dim, self.start, self.end, self.labels = charges, aug_dim, start, end, labels

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        from pfgm_fast.field import poisson_field

        return poisson_field(x, t, self.charges, self.aug_dim, labels=self.labels)[0]

    def derivative(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        return value / t

    def euler(self, x: Tensor, value: Tensor, t: float, t_next: float) -> Tensor:
        return torch.add(x, value, alpha=(t_next - t) / t)

    def heun(self, x: Tensor, value: Tensor, value_next: Tensor, t: float, t_next: float) -> Tensor:
        return x + 0.5 * (t_next - t) * (value / t + value_next / t_next)

    def divergence(self, x: Tensor, t: float) -> Tensor:
        """div (x − m)/r (B,), exact, as weighted sums over the charges."""
        from pfgm_fast.field import field_divergence

        return field_divergence(x, t, self.charges, self.aug_dim, labels=self.labels) / t

    def grid(self, steps: int) -> list[float]:
        return log_grid(self.start, self.end, steps)


@contextmanager
def evaluation_mode(net: Any) -> Iterator[None]:
    """A module is in evaluation mode within, and as it was afterwards; anything else is left alone."""
    training = isinstance(net, nn.Module) and net.training
    if training:
        net.eval()
    try:
        yield
    finally:
        if training:
            net.train()


def log_grid(start: float, end: float, steps: int) -> list[float]:
    """steps + 1 numbers from start to end in equal ratios, both ends exact."""
    checks.positive("start of the grid", start)
    checks.positive("end of the grid", end)
    steps = checks.integer("steps", steps, 1)
    ratio = math.log(end / start)
    return [start, *(start * math.exp(ratio * i / steps) for i in range(1, steps)), end]


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, …) to go with like (B, *shape)."""
    return value.view(-1, *[1] * (like.dim() - 1))


def randn(*shape: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal draws of a shape, on the device and in the dtype of `like`."""
    return torch.randn(*shape, device=like.device, dtype=like.dtype, generator=generator)


def unit_directions(
    shape: tuple[int, ...], device: Any, dtype: torch.dtype, generator: torch.Generator | None
) -> Tensor:
    """(B, N) uniform on the sphere; an odd N is as good as an even one."""
    noise = torch.randn(shape[0], math.prod(shape[1:]), device=device, dtype=dtype, generator=generator)
    return noise / noise.norm(dim=1, keepdim=True)


def poisson_prior(
    shape: tuple[int, ...],
    radius: float,
    aug_dim: float,
    limits: tuple[float, float],
    *,
    device: Any = None,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x (B, *shape) with ‖x‖ = r √(b/(1 − b)), b ~ Beta(N/2, D/2), held within limits, and a uniform direction.

    PFGM (arXiv 2209.11178) appendix B.3 with D = 1, PFGM++ (arXiv 2302.04265) appendix B. b is drawn as g₁/(g₁ + g₂) from two
    gamma variates, so ‖x‖ = r √(g₁/g₂) and nothing cancels.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ArgumentError(f"shape must be (B, *shape) with every size ≥ 1; got {tuple(shape)}")
    dim = math.prod(shape[1:])
    direction = unit_directions(shape, device, dtype, generator)
    concentration = torch.tensor([[dim / 2], [aug_dim / 2]], dtype=torch.float64, device=device)
    first, second = torch._standard_gamma(concentration.expand(2, shape[0]).contiguous(), generator=generator)
    tiny = torch.finfo(torch.float64).tiny
    lengths = radius * (first / second.clamp(min=tiny)).sqrt()
    lengths = lengths.clamp(*limits).to(dtype)
    return (direction * lengths[:, None]).view(shape)


def poisson_prior_log_density(x: Tensor, radius: float, aug_dim: float) -> Tensor:
    """log density in nats (B,), float64, of `poisson_prior` at x (B, *shape), before it is held within limits.

    p(x) = Γ((N + D)/2)/(Γ(D/2) π^(N/2)) r^D (‖x‖² + r²)^(−(N + D)/2): a radius from Beta(N/2, D/2) and a uniform direction, which
    is the multivariate t distribution of D degrees of freedom; D = 1 is PFGM's prior (arXiv 2209.11178, appendix A.4),
    the Cauchy distribution that the flux of a lone charge leaves on the plane z = r. N may be odd, even, or 1.
    """
    flat = checks.flat(checks.batch("x", x)).double()
    dim = flat.shape[1]
    constant = log_gamma_ratio(aug_dim / 2, dim / 2) - 0.5 * dim * math.log(math.pi)
    # log(‖x‖² + r²) as log r² + log1p: r^D cancels, and a large D loses nothing
    spread = torch.log1p((flat / radius).square().sum(1))
    return constant - dim * math.log(radius) - 0.5 * (dim + aug_dim) * spread


def gaussian_log_density(x: Tensor, deviation: float) -> Tensor:
    """log N(x; 0, deviation²) in nats (B,), float64, for x (B, *shape)."""
    flat = checks.flat(checks.batch("x", x)).double()
    constant = flat.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(deviation))
    return -0.5 * (flat / deviation).square().sum(1) - constant
