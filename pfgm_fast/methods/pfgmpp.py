"""PFGM++ (Xu et al. 2023, arXiv 2302.04265): D extra dimensions; D = ∞ is a diffusion model in σ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import posterior_mean
from pfgm_fast.methods.base import (
    FieldFlow,
    Flow,
    Hyperparameters,
    LogTime,
    Network,
    PlainSteps,
    gaussian_log_density,
    per_image,
    poisson_prior,
    poisson_prior_log_density,
    randn,
    unit_directions,
)


@dataclass(frozen=True)
class PFGMpp(Hyperparameters):
    """aug_dim: D ∈ (0, ∞]; r = σ√D ties it to the noise σ of diffusion models (section 4), so their settings carry over.

    log σ ~ N(log_mean, log_std²) in training; sampling from σ_max to σ_min on a grid of exponent rho. data_std: of the data's values.
    stable: the target is the posterior mean over all charges, without variance, instead of the one image that was perturbed.
    The preconditioning is that of Karras et al. 2022 (arXiv 2206.00364, table 1), which PFGM++ shares.
    """

    name: ClassVar[str] = "pfgmpp"

    aug_dim: float = 128.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    data_std: float = 0.5
    log_mean: float = -1.2
    log_std: float = 1.2
    rho: float = 7.0
    stable: bool = True

    def __post_init__(self) -> None:
        checks.aug_dim(self.aug_dim)
        for name in ("sigma_min", "sigma_max", "data_std", "log_std", "rho"):
            checks.positive(name, getattr(self, name))
        if self.sigma_min >= self.sigma_max:
            raise ArgumentError(f"sigma_min must be < sigma_max; got {self.sigma_min}, {self.sigma_max}")

    @property
    def radius_scale(self) -> float:
        """r/σ = √D; 1 where D is infinite, where the field functions take σ itself."""
        return 1.0 if math.isinf(self.aug_dim) else math.sqrt(self.aug_dim)

    def perturb(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x = y + R u (B, *shape), σ (B,): R = r √(b/(1 − b)), b ~ Beta(N/2, D/2) (section 3.2); Gaussian where D = ∞."""
        images = checks.batch("images", images)
        flat = checks.flat(images)
        noise = randn(len(flat), like=flat, generator=generator)
        sigma = (self.log_mean + self.log_std * noise).exp()
        if math.isinf(self.aug_dim):
            return images + per_image(sigma, images) * randn(
                *images.shape, like=images, generator=generator
            ), sigma
        batch, dim = flat.shape
        shape = torch.tensor([[dim / 2], [self.aug_dim / 2]], dtype=torch.float64, device=flat.device)
        first, second = torch._standard_gamma(shape.expand(2, batch).contiguous(), generator=generator)
        ratio = (first / second.clamp(min=torch.finfo(torch.float64).tiny)).sqrt().to(flat.dtype)
        direction = unit_directions((batch, dim), flat.device, flat.dtype, generator)
        shift = (sigma * self.radius_scale * ratio)[:, None] * direction
        return images + shift.view(images.shape), sigma

    def denoise(self, net: Network, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoiser c_skip x + c_out net(c_in x, c_noise) (B, *shape)."""
        total = sigma.square() + self.data_std**2
        skip, into = self.data_std**2 / total, total.rsqrt()
        out = sigma * self.data_std * into
        condition = 250 * sigma.log()  # a quarter of the logarithm, over the thousand steps of the embedding
        arguments = (x * per_image(into, x), condition)
        vx, _ = net(*arguments) if labels is None else net(*arguments, labels)
        return per_image(skip, x) * x + per_image(out, x) * vx.to(x.dtype)

    def loss(
        self,
        net: Network,
        images: Tensor,
        index: Tensor,
        charges: Charges,
        generator: torch.Generator | None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Weighted squared error of the denoiser against the posterior mean (B,), mean over the elements (eq. 7)."""
        with torch.no_grad():
            x, sigma = self.perturb(images, generator)
            target = images
            if self.stable:
                target = posterior_mean(x, sigma * self.radius_scale, charges, self.aug_dim, labels=labels)
        error = (self.denoise(net, x, sigma, labels) - target).square().flatten(1).mean(1)
        return error * (sigma.square() + self.data_std**2) / (sigma * self.data_std).square()

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """x (B, *shape) at σ_max."""
        if math.isinf(self.aug_dim):
            return self.sigma_max * torch.randn(shape, **where)
        return poisson_prior(
            shape, self.sigma_max * self.radius_scale, self.aug_dim, (0.0, math.inf), **where
        )

    def prior_log_density(self, x: Tensor) -> Tensor:
        """log density of the prior at σ_max at x (B, *shape), in nats (B,), float64."""
        if math.isinf(self.aug_dim):
            return gaussian_log_density(x, self.sigma_max)
        return poisson_prior_log_density(x, self.sigma_max * self.radius_scale, self.aug_dim)

    def flow(self, net: Network | Charges, labels: Tensor | None = None) -> Flow:
        """dx/dσ = (x − denoised)/σ (eq. 5 with r = σ√D), of a network or of the true field."""
        if isinstance(net, Charges):
            return _SigmaFieldFlow(self, net, labels)
        return _DenoiserFlow(self, net, labels)

    def times(self, steps: int) -> list[float]:
        """steps + 1 values of σ, evenly spaced in σ^(1/ρ)."""
        steps = checks.integer("steps", steps, 1)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return [(high + (low - high) * i / steps) ** self.rho for i in range(steps + 1)]


class _SigmaFieldFlow(FieldFlow):
    def __init__(self, method: PFGMpp, charges: Charges, labels: Tensor | None) -> None:
        super().__init__(charges, method.aug_dim, method.sigma_max, method.sigma_min, labels)
        self.method = method

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        return super().evaluate(x, t * self.method.radius_scale)

    def divergence(self, x: Tensor, t: float) -> Tensor:
        scale = self.method.radius_scale
        return super().divergence(x, t * scale) * scale

    def grid(self, steps: int) -> list[float]:
        return self.method.times(steps)


class _DenoiserFlow(LogTime, PlainSteps):
    def __init__(self, method: PFGMpp, net: Network, labels: Tensor | None) -> None:
        self.method, self.net, self.labels = method, net, labels

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        sigma = torch.full((len(x),), t, device=x.device, dtype=x.dtype)
        return (x - self.method.denoise(self.net, x, sigma, self.labels)) / t

    def grid(self, steps: int) -> list[float]:
        return self.method.times(steps)
