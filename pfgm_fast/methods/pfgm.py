"""PFGM: Poisson Flow Generative Models (Xu et al. 2022, arXiv 2209.11178), D = 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pfgm_fast import checks, steps
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import pfgm_target
from pfgm_fast.flows import Flow, NoiseLevelTime
from pfgm_fast.methods.base import (
    Hyperparameters,
    log_grid,
    poisson_prior,
    poisson_prior_log_density,
    randn,
    unit_directions,
)
from pfgm_fast.methods.network import Network, call_denoiser, call_network, is_denoiser
from pfgm_fast.methods.sigma_flow import FieldFlow, SigmaFlow


@dataclass(frozen=True)
class PFGM(Hyperparameters):
    """Hyper-parameters of PFGM; the defaults are those of CIFAR-10 (arXiv 2209.11178, appendix D).

    Sampling ends on z = z_min, where the true field leaves about z_min rms an element (the median; the tail of the prior up to ten
    times that); with `denoise` it ends on the data. Lengths are in units of the data; z is the r of D = 1.

    Args:
        sigma: Standard deviation > 0 of ε.
        tau: τ > 0: the perturbation grows by (1 + τ)^m, m ~ U[0, M_exp].
        m_exp: M_exp > 0.
        gamma: γ > 0 of the target.
        z_max, z_min: Where sampling starts and ends, 0 < z_min < z_max.
        upper_norm: The prior's largest ‖x‖, > 0.
        z_exp: Height ≥ 0 below which v_z is substituted; 0 turns it off.
        near: Where |ε_z| < near, m ~ U[0, 0.7 M_exp] (restrict_M of the paper), ≥ 0; 0 turns it off.
        data_radius: R > 0, where the data are known to lie within ‖y‖ ≤ R (`from_data` and the trainer take it from the charges), or
            "box", √N, which holds for data in [−1, 1]. A network's field is then held to what such charges can have (`steps`), which
            does nothing to a good network and rescues a weak one, or few steps (docs/held-fields.md). None: it is taken as the network says it.
        loss_reduction: One of "mean", "half_sum", "sum": see `Hyperparameters`.

    Raises:
        ArgumentError: A value out of its range.
    """

    name: ClassVar[str] = "pfgm"

    sigma: float = 0.01
    tau: float = 0.03
    m_exp: int = 291
    gamma: float = 5.0
    z_max: float = 40.0
    z_min: float = 1e-3
    upper_norm: float = 3000.0
    z_exp: float = 5.0
    near: float = 0.005
    data_radius: float | Literal["box"] | None = None
    loss_reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma", "tau", "m_exp", "gamma", "z_max", "z_min", "upper_norm"):
            checks.positive(name, getattr(self, name))
        if self.data_radius not in (None, "box"):
            checks.positive("data_radius", self.data_radius)
        for name in ("z_exp", "near"):
            checks.nonnegative(name, getattr(self, name))
        if self.z_min >= self.z_max:
            raise ArgumentError(f"z_min must be < z_max; got {self.z_min} and {self.z_max}")

    @classmethod
    def from_data(cls, charges: Charges, sigma: float = 0.01, tau: float = 0.03, **given: Any) -> PFGM:
        """The paper's rules for other data (arXiv 2209.11178, appendix B.1.1 and B.2.1), with ‖y‖² the mean over the charges:

        M_exp = ⌊¾ ln(‖y‖²/(2√N σ²))/ln(1 + τ)⌋ + 1, z_max = √(2/π) σ (1 + τ)^M_exp, upper_norm = √N σ (1 + τ)^M_exp.
        data_radius is the largest ‖y‖. Whatever is `given` stands.
        """
        checks.positive("sigma", sigma)
        checks.positive("tau", tau)
        parts = [charges.values(i, torch.float64).flatten(1).square().sum(1) for i in charges.blocks()]
        squares, farthest = sum(float(part.sum()) for part in parts), max(float(part.max()) for part in parts)
        m_exp = given.pop("m_exp", None)
        if m_exp is None:
            m_exp = cls.m_exp_rule(squares / len(charges), charges.dim, sigma, tau)
        spread = sigma * (1 + tau) ** m_exp
        given.setdefault("z_max", math.sqrt(2 / math.pi) * spread)
        given.setdefault("upper_norm", max(2.0, math.sqrt(charges.dim) * spread))
        if farthest > 0:
            given.setdefault("data_radius", math.sqrt(farthest))
        return cls(sigma=sigma, tau=tau, m_exp=m_exp, **given)

    @staticmethod
    def m_exp_rule(mean_square: float, dim: int, sigma: float, tau: float) -> int:
        """M_exp of a mean ‖y‖² and N. Raises: ArgumentError where the data do not stand out of the noise."""
        ratio = mean_square / (2 * math.sqrt(dim) * sigma**2)
        if ratio <= 1:
            raise ArgumentError(
                f"the data's norms (mean square {mean_square:.3g}) do not exceed the noise, sigma = {sigma}: "
                "give m_exp, or a smaller sigma"
            )
        return math.floor(0.75 * math.log(ratio) / math.log(1 + tau)) + 1

    def perturb(
        self,
        images: Tensor,  # (B, *shape)
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x = y + ‖ε_x‖(1 + τ)^m u (B, *shape), z = |ε_z|(1 + τ)^m (B,): algorithm 2 of the paper."""
        images = checks.batch("images", images)
        flat = checks.flat(images)
        batch, dim = flat.shape
        m = self.m_exp * torch.rand(batch, device=flat.device, dtype=flat.dtype, generator=generator)
        depth = self.sigma * randn(batch, like=flat, generator=generator).abs()
        m = torch.where(depth < self.near, 0.7 * m, m)
        growth = (1 + self.tau) ** m
        radius = self.sigma * randn(batch, dim, like=flat, generator=generator).norm(dim=1) * growth
        direction = unit_directions((batch, dim), flat.device, flat.dtype, generator)
        tiny = torch.finfo(flat.dtype).tiny
        return (flat + radius[:, None] * direction).view(images.shape), (depth * growth).clamp(min=tiny)

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
        """Squared error of the N + 1 components of v against the target over all charges, reduced (B,): algorithm 1.

        images (B, *shape) are the charges at index (B,), which serves the field as its hint. Unlike the paper's mini-batch,
        `charges` may be the whole data set. A network that returns v_x alone learns its N components.
        """
        with torch.no_grad():
            x, z = (drawn[rows] for drawn in self.perturb(images, generator))
            labels = None if labels is None else labels[rows]
            target, target_z = pfgm_target(x, z, charges, self.gamma, labels=labels)
        vx, vz = call_network(self.network(net), x, z, labels)
        squares = (vx.float() - target).square().flatten(1).sum(1)
        if vz is None:
            return self.reduced(squares, charges.dim)
        return self.reduced(squares + (vz.float() - target_z).square(), charges.dim + 1)

    def network(self, net: Network) -> Network:
        """net(x, z[, labels]) → v; of a denoiser D(x; z), −√N (E, z)/(‖(E, z)‖ + γ) with E = x − D."""
        if not is_denoiser(net):
            return net

        def of_denoiser(x: Tensor, z: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
            field = checks.flat(x - call_denoiser(net, x, z, labels))
            norm = (field.square().sum(1) + z.square()).sqrt() + self.gamma
            scale = -math.sqrt(field.shape[1]) / norm
            return (scale[:, None] * field).view(x.shape), scale * z

        return of_denoiser

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """x (B, *shape) on z = z_max; `where`: device, dtype, generator. PFGM appendix B.3: ‖x‖ within [1, upper_norm]."""
        return poisson_prior(shape, self.z_max, 1.0, (1.0, max(1.0, self.upper_norm)), **where)

    def kernel(self, shape: tuple[int, ...], t: float, **where: Any) -> Tensor:
        """Draws (B, *shape) of x − y where a lone charge's flux crosses the plane z = t, ‖·‖ ~ z √(Beta/(1 − Beta)) (PFGM++, D = 1)."""
        return poisson_prior(shape, t, 1.0, (0.0, math.inf), **where)

    def prior_log_density(self, x: Tensor) -> Tensor:
        """log density of the prior on z = z_max at x (B, *shape), in nats (B,), float64; the whole tail, as if it were not clipped."""
        return poisson_prior_log_density(x, self.z_max, 1.0)

    def flow(self, net: Network | Charges, labels: Tensor | None = None) -> Flow:
        """The backward ODE dx/dz = v_x/v_z (eq. 6) of a network, or dx/dz = (x − m)/z of a denoiser or, where net is Charges, of the
        true field."""
        if isinstance(net, Charges):
            return FieldFlow(net, 1.0, self.grid, labels)
        if is_denoiser(net):
            return SigmaFlow(
                lambda x, z: x - call_denoiser(net, x, x.new_full((len(x),), z), labels), self.grid
            )
        return PFGMFlow(self, net, labels)

    def radius(self, dim: int) -> float | None:
        """R of the data of N = dim elements, or None."""
        return math.sqrt(dim) if self.data_radius == "box" else self.data_radius

    def grid(self, steps: int, denoise: bool = False) -> list[float]:
        """steps + 1 values of z, evenly spaced in log z, and with `denoise` then 0."""
        return log_grid(self.z_max, self.z_min, steps) + [0.0] * denoise


class PFGMFlow(NoiseLevelTime):
    """dx/dz = v_x/v_z of a network, stepped by the fused kernels; the adaptive solver's clock is log z (appendix B.2.2)."""

    def __init__(self, method: PFGM, net: Network, labels: Tensor | None) -> None:
        self.method, self.net, self.labels = method, net, labels
        self.constants = method.gamma, method.z_exp
        self.jumps = (method.z_exp,) if method.z_min < method.z_exp < method.z_max else ()
        self.grid, self.likelihood_end = method.grid, method.z_min

    def evaluate(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        z = x.new_full((), t).expand(len(x))  # one number: networks embed it once
        vx, vz = call_network(self.net, x, z, self.labels)
        return vx, (implied_vz(vx, z, self.method.gamma) if vz is None else vz)

    def derivative(self, x: Tensor, value: tuple[Tensor, Tensor], t: float) -> Tensor:
        return steps.drift(*value, t, *self.constants, x=x, radius=self._radius(x)).to(x.dtype)

    def _radius(self, x: Tensor) -> float | None:
        return self.method.radius(math.prod(x.shape[1:]))

    def denoised(self, x: Tensor, value: tuple[Tensor, Tensor], t: float) -> Tensor:
        return self.euler(x, value, t, 0.0)

    def euler(self, x: Tensor, value: tuple[Tensor, Tensor], t: float, t_next: float) -> Tensor:
        return steps.euler_step(x, *value, t, t_next, *self.constants, radius=self._radius(x))

    def heun(self, x: Tensor, value: Any, value_next: Any, t: float, t_next: float) -> Tensor:
        (vx, vz), (vx_next, vz_next) = value, value_next
        there = vx_next, vz_next, t, t_next
        return steps.heun_step(x, vx, vz, *there, *self.constants, radius=self._radius(x))


def implied_vz(
    vx: Tensor,  # (B, *shape)
    z: Tensor,  # (B,)
    gamma: float,
) -> Tensor:
    """v_z (B,) that goes with v_x at z: exact for the true field, where the substitution of appendix B.2.3 neglects z beside ‖E_x‖.

    With n = ‖v_x‖/√N = e/(√(e² + z²) + γ), e = ‖E_x‖ = n (γ + √(n²γ² + (1 − n²) z²))/(1 − n²) and v_z = v_x's length times −z/e,
    so v_z = −√N z (1 − n²)/(γ + √(n²γ² + (1 − n²) z²)). n ≥ 1, which no field has, is held just below 1.
    """
    flat = vx.flatten(1).to(torch.promote_types(vx.dtype, torch.float32))
    dim, z = flat.shape[1], z.to(flat.dtype)
    n = (flat.norm(dim=1) / math.sqrt(dim)).clamp(max=1 - 1e-6)
    rest = (1 - n) * (1 + n)
    return -math.sqrt(dim) * z * rest / (gamma + (n.square() * gamma**2 + rest * z.square()).sqrt())
