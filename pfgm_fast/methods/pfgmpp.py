"""PFGM++ (Xu et al. 2023, arXiv 2302.04265): D extra dimensions; D = ∞ is EDM (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import posterior_mean
from pfgm_fast.flows import Flow, per_image
from pfgm_fast.methods.base import (
    Hyperparameters,
    gaussian_log_density,
    poisson_prior,
    poisson_prior_log_density,
    randn,
    spread_of,
)
from pfgm_fast.methods.network import Network, call_denoiser, call_network, is_denoiser
from pfgm_fast.methods.sigma_flow import FieldFlow, GaussianFieldFlow, GaussianSigmaFlow, SigmaFlow
from pfgm_fast.nn.augment import Augmentation, augmented_posterior_mean
from pfgm_fast.nn.preconditioning import edm_coefficients
from pfgm_fast.special import radius_scale


@dataclass(frozen=True)
class PFGMpp(Hyperparameters):
    """PFGM++ (arXiv 2302.04265): D extra dimensions, and the noise levels σ of diffusion models, r = σ√D (section 4), so that
    their settings carry over.

    In training ln σ ~ N(P_mean, P_std²); in sampling σ runs from sigma_max to sigma_min on a grid even in σ^(1/rho) (EDM eq. 5), and
    then to 0: `steps` values and 0, so Heun's method takes 2·steps − 1 evaluations.
    The preconditioning is EDM's (table 1), which PFGM++ shares: D = c_skip x + c_out F(c_in x, c_noise, labels), and F, an own network
    as well as the released ones, is given c_noise = ln(σ)/4, about −1.6 to 1.1: an embedding made for 0 … 1000 needs it rescaled.
    A module that is a denoiser already (`methods.network`) is taken as it is.

    Args:
        aug_dim: D ∈ (0, ∞]; r = σ√D, and σ itself where D = ∞.
        sigma_min, sigma_max: The ends of σ in sampling, 0 < sigma_min < sigma_max, in units of the data.
        sigma_data: Standard deviation > 0 of the data's values.
        P_mean, P_std: Mean, and standard deviation > 0, of ln σ in training.
        rho: ρ > 0 of the grid.
        stable: True: the target is the posterior mean over all charges, without variance, instead of the one image that was perturbed.
        c_noise_scale: c_noise over ln σ, > 0; runs saved before it was 1/4 have 250.
        loss_reduction: One of "mean", "half_sum", "sum": see `Hyperparameters`.

    Raises:
        ArgumentError: A value out of its range.
    """

    name: ClassVar[str] = "pfgmpp"
    denoises: ClassVar[bool] = True

    aug_dim: float = 128.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    P_mean: float = -1.2
    P_std: float = 1.2
    rho: float = 7.0
    stable: bool = True
    c_noise_scale: float = 0.25
    loss_reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.aug_dim(self.aug_dim)
        for name in ("sigma_min", "sigma_max", "sigma_data", "P_std", "rho", "c_noise_scale"):
            checks.positive(name, getattr(self, name))
        checks.number("P_mean", self.P_mean, positive=False)
        if self.sigma_min >= self.sigma_max:
            raise ArgumentError(f"sigma_min must be < sigma_max; got {self.sigma_min}, {self.sigma_max}")

    @classmethod
    def from_data(cls, charges: Charges, **given: Any) -> PFGMpp:
        """EDM's settings, which are for data of standard deviation 0.5 (images in [−1, 1]), in units of the data's own: sigma_data is
        measured, sigma_min, sigma_max and e^P_mean scale with it. Whatever is `given` stands."""
        deviation = given.get("sigma_data") or spread_of(charges)
        unit = checks.positive("standard deviation of the data", deviation) / 0.5
        rule = {"sigma_data": deviation, "sigma_min": 0.002 * unit, "sigma_max": 80 * unit}
        return cls(**{**rule, "P_mean": -1.2 + math.log(unit), **given})

    @property
    def radius_scale(self) -> float:
        """r/σ = √D; 1 where D is infinite, where the field functions take σ itself."""
        return radius_scale(self.aug_dim)

    def within(self, net: Network) -> PFGMpp:
        """The method, with σ held within the denoiser's sigma_min and sigma_max, as EDM's samplers do."""
        inner = getattr(net, "module", net)
        low = max(self.sigma_min, float(getattr(inner, "sigma_min", 0.0)))
        high = min(self.sigma_max, float(getattr(inner, "sigma_max", math.inf)))
        return replace(self, sigma_min=low, sigma_max=high)

    def perturb(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x = y + R u (B, *shape), σ (B,): R = r √(b/(1 − b)), b ~ Beta(N/2, D/2) (section 3.2); Gaussian where D = ∞."""
        images = checks.batch("images", images)
        flat = checks.flat(images)
        sigma = (self.P_mean + self.P_std * randn(len(flat), like=flat, generator=generator)).exp()
        shift = self.kernel(images.shape, 1.0, device=flat.device, dtype=flat.dtype, generator=generator)
        return images + per_image(sigma, images) * shift, sigma

    def kernel(self, shape: tuple[int, ...], t: float, **where: Any) -> Tensor:
        """Draws (B, *shape) of x − y at σ = t: p_r of eq. 4, r = σ√D; Gaussian where D = ∞."""
        if math.isinf(self.aug_dim):
            return t * torch.randn(shape, **where)
        return poisson_prior(shape, t * self.radius_scale, self.aug_dim, (0.0, math.inf), **where)

    def denoise(
        self, net: Network, x: Tensor, sigma: Tensor, labels: Tensor | None = None, **more: Any
    ) -> Tensor:
        """The denoiser D(x; σ) = c_skip x + c_out F(c_in x, c_noise) (B, *shape) of a raw network F; a denoiser's own output.
        more: further keywords of the network, such as `augment_labels`."""
        if is_denoiser(net):
            return call_denoiser(net, x, sigma, labels, **more)
        skip, out, into, _ = edm_coefficients(sigma, self.sigma_data)
        raw, _ = call_network(net, x * per_image(into, x), self.c_noise_scale * sigma.log(), labels, **more)
        return per_image(skip, x) * x + per_image(out, x) * raw.to(x.dtype)

    def loss(
        self,
        net: Network,
        images: Tensor,
        index: Tensor,
        charges: Charges,
        generator: torch.Generator | None,
        labels: Tensor | None = None,
        rows: slice = slice(None),
        augmentation: Augmentation | None = None,
    ) -> Tensor:
        """Weighted squared error of the denoiser against the posterior mean, reduced (B,) (eq. 7; EDM eq. 2, λ of table 1).

        augmentation: of the images; the network is told it as `augment_labels`, and stable targets are over the charges transformed alike
        (`nn.augment`).
        """
        with torch.no_grad():
            if augmentation is not None:
                images, augmentation = augmentation.apply(images), augmentation.rows(rows)
            x, sigma = (drawn[rows] for drawn in self.perturb(images, generator))
            labels = None if labels is None else labels[rows]
            target, r = images[rows], sigma * self.radius_scale
            if self.stable and augmentation is not None:
                target = augmented_posterior_mean(x, r, charges, augmentation, self.aug_dim, labels)
            elif self.stable:
                target = posterior_mean(x, r, charges, self.aug_dim, labels=labels)
        told = {} if augmentation is None else {"augment_labels": augmentation.labels}
        squares = (self.denoise(net, x, sigma, labels, **told) - target).square().flatten(1).sum(1)
        weight = (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()
        return self.reduced(weight * squares, images[0].numel())

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """x (B, *shape) at σ_max."""
        checks.sizes(shape)
        return self.kernel(shape, self.sigma_max, **where)

    def prior_log_density(self, x: Tensor) -> Tensor:
        """log density of the prior at σ_max at x (B, *shape), in nats (B,), float64."""
        if math.isinf(self.aug_dim):
            return gaussian_log_density(x, self.sigma_max)
        return poisson_prior_log_density(x, self.sigma_max * self.radius_scale, self.aug_dim)

    def flow(self, net: Network | Charges, labels: Tensor | None = None) -> Flow:
        """dx/dσ = (x − D)/σ (eq. 5 with r = σ√D), of a network, a denoiser or the true field; with D = ∞ also an SDE."""
        gaussian = math.isinf(self.aug_dim)
        if isinstance(net, Charges):
            return (GaussianFieldFlow if gaussian else FieldFlow)(net, self.aug_dim, self.grid, labels)

        def residual(x: Tensor, sigma: float) -> Tensor:
            return x - self.denoise(net, x, x.new_full((len(x),), sigma), labels)

        def grid(steps: int, denoise: bool = False) -> list[float]:
            return rounded(net, self.grid(steps, denoise))

        return (GaussianSigmaFlow if gaussian else SigmaFlow)(residual, grid)

    def sigmas(self, count: int) -> list[float]:
        """`count` values of σ from sigma_max to sigma_min (one: sigma_max), evenly spaced in σ^(1/rho) (EDM eq. 5)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        between = [(high + (low - high) * i / (count - 1)) ** self.rho for i in range(1, count - 1)]
        return [self.sigma_max, *between, self.sigma_min][: max(1, count)]

    def grid(self, steps: int, denoise: bool = False) -> list[float]:
        """With `denoise`, EDM's: `steps` values of σ, and 0; without, the steps + 1 values that end in sigma_min."""
        steps = checks.integer("steps", steps, 1)
        return [*self.sigmas(steps), 0.0] if denoise else self.sigmas(steps + 1)


def rounded(net: Network, sigmas: list[float]) -> list[float]:
    """σ as a denoiser of discrete noise levels knows them (its `round_sigma`), without repetitions; 0 stays."""
    nearest = getattr(getattr(net, "module", net), "round_sigma", None) if is_denoiser(net) else None
    if nearest is None:
        return sigmas
    known = [float(nearest(torch.tensor(s, dtype=torch.float64))) if s else 0.0 for s in sigmas]
    return list(dict.fromkeys(known))


@dataclass(frozen=True)
class EDM(PFGMpp):
    """PFGM++ with D = ∞: the diffusion model of Karras et al. 2022 (arXiv 2206.00364).

    In training ln σ ~ N(P_mean, P_std²); in sampling σ runs from sigma_max to sigma_min on a grid even in σ^(1/rho) (EDM eq. 5), and
    then to 0: `steps` values and 0, so Heun's method takes 2·steps − 1 evaluations.
    The preconditioning is EDM's (table 1), which PFGM++ shares: D = c_skip x + c_out F(c_in x, c_noise, labels), and F, an own network
    as well as the released ones, is given c_noise = ln(σ)/4, about −1.6 to 1.1: an embedding made for 0 … 1000 needs it rescaled.
    A module that is a denoiser already (`methods.network`) is taken as it is.

    Args:
        aug_dim: ∞.
        sigma_min, sigma_max: The ends of σ in sampling, 0 < sigma_min < sigma_max, in units of the data.
        sigma_data: Standard deviation > 0 of the data's values.
        P_mean, P_std: Mean, and standard deviation > 0, of ln σ in training.
        rho: ρ > 0 of the grid.
        stable: True: the target is the posterior mean over all charges, without variance, instead of the one image that was perturbed.
        c_noise_scale: c_noise over ln σ, > 0; runs saved before it was 1/4 have 250.
        loss_reduction: One of "mean", "half_sum", "sum": see `Hyperparameters`.

    Raises:
        ArgumentError: A value out of its range.
    """

    name: ClassVar[str] = "edm"

    aug_dim: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isinf(self.aug_dim):
            raise ArgumentError(f"edm is D = inf; with aug_dim = {self.aug_dim} the method is pfgmpp")
