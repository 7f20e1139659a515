"""What the trainer, the sampler and the solvers know of a method, and what the methods share."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import Flow
from pfgm_fast.methods.network import Network
from pfgm_fast.special import log_gamma_ratio

REDUCTIONS = ("mean", "half_sum", "sum")


class Method(Protocol):
    """Hyper-parameters of one way to train and to sample; a frozen dataclass with `to_dict`."""

    name: ClassVar[str]

    denoises: ClassVar[bool]
    """Sampling its ODE ends with the denoising step unless it is told otherwise."""

    @classmethod
    def from_data(cls, charges: Charges, **given: Any) -> Method:
        """The hyper-parameters that the method's rules find for other data; whatever is `given` stands."""
        ...

    def perturb(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Training queries x (B, *shape), and z, σ or t (B,) of each, of images (B, *shape)."""
        ...

    def loss(
        self,
        net: Network,
        images: Tensor,
        index: Tensor,
        charges: Charges,
        generator: torch.Generator | None,
        labels: Tensor | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """Training loss of each of images (B, *shape), the charges at index (B,): (B,), differentiable in the network's parameters.

        rows: those of the images that are wanted, of which the loss then is; draws are of all of them, so that processes which share a
        batch draw what one would."""
        ...

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """Draws (B, *shape) of the distribution where the flow begins; `where`: device, dtype, generator."""
        ...

    def kernel(self, shape: tuple[int, ...], t: float, **where: Any) -> Tensor:
        """Draws (B, *shape) of what separates a training query from its datum at z, σ or t: x − a(t) y."""
        ...

    def prior_log_density(self, x: Tensor) -> Tensor:
        """Its log density at x (B, *shape), in nats (B,), float64, normalised over R^N."""
        ...

    def flow(self, net: Network | Charges, labels: Tensor | None = None) -> Flow:
        """The ODE from the prior to the data of a network, of a denoiser, or of the exact field of Charges (an `ExactFlow`);
        labels (B,)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them; `methods.from_dict` is the inverse."""
        ...


class Hyperparameters:
    """Base of the methods' dataclasses.

    loss_reduction: what is done with an image's squared errors. "mean" over the elements, or "half_sum", half their sum (the released
    runs of PFGM on CIFAR-10 and CelebA, and score-SDE's; (N + 1)/2 = 1536.5 times the mean on CIFAR-10), or "sum" (EDM's). Adam itself
    does not see the factor, but clipping at a norm of 1 does. On the digits (N = 64, their preset, updates 10 and 60) the norm is 1.4 and
    0.10 with the mean, so that clipping acts in the first updates only, and 46 and 8.1 with half the sum, so that it scales every
    update to the same length; more so where N is larger.
    """

    name: ClassVar[str]
    denoises: ClassVar[bool] = False
    loss_reduction: str

    def __post_init__(self) -> None:
        if self.loss_reduction not in REDUCTIONS:
            raise ArgumentError(
                f"loss_reduction must be one of {', '.join(REDUCTIONS)}; got {self.loss_reduction!r}"
            )

    def reduced(self, squares: Tensor, elements: int) -> Tensor:
        """The loss (B,) of the sum of an image's squared errors (B,) over its `elements`."""
        return squares * {"mean": 1 / elements, "half_sum": 0.5, "sum": 1.0}[self.loss_reduction]

    def to_dict(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them: infinity is "inf"."""
        values = asdict(self)  # type: ignore[call-overload]
        return {"name": self.name, **{k: "inf" if v == math.inf else v for k, v in values.items()}}


def log_grid(start: float, end: float, steps: int) -> list[float]:
    """steps + 1 numbers from start to end in equal ratios, both ends exact."""
    checks.positive("start of the grid", start)
    checks.positive("end of the grid", end)
    steps = checks.integer("steps", steps, 1)
    ratio = math.log(end / start)
    return [start, *(start * math.exp(ratio * i / steps) for i in range(1, steps)), end]


def spread_of(charges: Charges) -> float:
    """Standard deviation of all the values of the charges, about their one mean."""
    count, total, squares = len(charges) * charges.dim, 0.0, 0.0
    for part in charges.blocks():
        values = charges.values(part, torch.float64)
        total, squares = total + float(values.sum()), squares + float(values.square().sum())
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2))


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
    checks.sizes(shape)
    dim = math.prod(shape[1:])
    direction = unit_directions(shape, device, dtype, generator)
    halves = (torch.full(shape[:1], n / 2, dtype=torch.float64, device=device) for n in (dim, aug_dim))
    first, second = torch._standard_gamma(torch.stack(tuple(halves)), generator=generator)
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
