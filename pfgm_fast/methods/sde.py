"""Diffusion by linear stochastic differential equations (Song et al. 2021, arXiv 2011.13456): what VE, VP and sub-VP share.

x(t) = a(t) y + s(t) ε, ε ~ N(0, 1), t from 0 (data) to 1 (noise); dx = f(t) x dt + g(t) dw. The network learns −ε: its v_x is
s(t) times the score, and v_z is not used, so that all methods train the same architecture.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import field_divergence, posterior_mean
from pfgm_fast.methods.base import (
    Flow,
    Hyperparameters,
    Network,
    PlainSteps,
    gaussian_log_density,
    per_image,
    randn,
)

LABELS = 999.0
"""The network's condition is 999 t, the range for which its positional embedding was made."""


class SDE(Hyperparameters):
    """Base: a subclass is a frozen dataclass with `marginal`, `coefficients`, `discretized`, and the field `t_min`."""

    t_min: float

    def marginal(self, t: Any) -> tuple[Any, Any]:
        """a(t), s(t) of a number or a tensor."""
        raise NotImplementedError

    def coefficients(self, t: float) -> tuple[float, float]:
        """f(t), g(t)² of the SDE."""
        raise NotImplementedError

    def discretized(self, t: float, t_next: float) -> tuple[float, float]:
        """Forward step from t_next up to t as x ← A x + G ε: A, G² (appendix E)."""
        raise NotImplementedError

    def prior_deviation(self) -> float:
        """Standard deviation of the prior."""
        return float(self.marginal(1.0)[1])

    def perturb(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, *shape), t (B,), ε (B, *shape): t ~ U[t_min, 1]."""
        images = checks.batch("images", images)
        uniform = torch.rand(len(images), device=images.device, dtype=images.dtype, generator=generator)
        t = self.t_min + (1 - self.t_min) * uniform
        scale, deviation = self.marginal(t)
        noise = randn(*images.shape, like=images, generator=generator)
        return per_image(scale, images) * images + per_image(deviation, images) * noise, t, noise

    def loss(
        self,
        net: Network,
        images: Tensor,
        index: Tensor,
        charges: Charges,
        generator: torch.Generator | None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Mean of (s(t) score + ε)² over the elements (B,): denoising score matching, eq. 7 with λ = s²."""
        x, t, noise = self.perturb(images, generator)
        prediction, _ = net(x, LABELS * t, labels) if labels is not None else net(x, LABELS * t)
        return (prediction.float() + noise).square().flatten(1).mean(1)

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """x (B, *shape) at t = 1; `where`: device, dtype, generator. Raises: ArgumentError for an empty shape."""
        if len(shape) < 2 or min(shape) < 1:
            raise ArgumentError(f"shape must be (B, *shape) with every size ≥ 1; got {tuple(shape)}")
        return self.prior_deviation() * torch.randn(shape, **where)

    def prior_log_density(self, x: Tensor) -> Tensor:
        """log density of the prior at x (B, *shape), in nats (B,), float64."""
        return gaussian_log_density(x, self.prior_deviation())

    def flow(self, net: Network | Charges, labels: Tensor | None = None) -> Flow:
        """The probability flow, dx/dt = f x − ½ g² score (eq. 13), and the reverse SDE for stochastic solvers. Charges: the exact
        score of the perturbed data."""
        return _ExactSDEFlow(self, net, labels) if isinstance(net, Charges) else SDEFlow(self, net, labels)

    def exact(self, charges: Charges) -> Network:
        """−ε of the true posterior as a network: −(x − a m)/s, m the posterior mean at x/a under noise s/a."""

        def net(x: Tensor, condition: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
            scale, deviation = (value.to(x.dtype) for value in self.marginal(condition / LABELS))
            mean = posterior_mean(
                x / per_image(scale, x), deviation / scale, charges, math.inf, labels=labels
            )
            vx = (per_image(scale, x) * mean - x) / per_image(deviation, x)
            return vx, torch.zeros_like(condition)

        return net


class SDEFlow(PlainSteps):
    """Value: the score at (x, t). Its clock is t itself."""

    jumps: tuple[float, ...] = ()

    def __init__(self, method: SDE, net: Network, labels: Tensor | None) -> None:
        self.method, self.net, self.labels = method, net, labels

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        condition = torch.full((len(x),), LABELS * t, device=x.device, dtype=x.dtype)
        vx, _ = self.net(x, condition) if self.labels is None else self.net(x, condition, self.labels)
        return vx.to(x.dtype) / float(self.method.marginal(t)[1])

    def derivative(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        linear, square = self.method.coefficients(t)
        return linear * x - 0.5 * square * value

    def euler(self, x: Tensor, value: Tensor, t: float, t_next: float) -> Tensor:
        return super().euler(x, self.derivative(x, value, t), t, t_next)

    def heun(self, x: Tensor, value: Tensor, value_next: Tensor, t: float, t_next: float) -> Tensor:
        predicted = self.euler(x, value, t, t_next)
        slope = self.derivative(predicted, value_next, t_next)
        return super().heun(x, self.derivative(x, value, t), slope, t, t_next)

    def grid(self, steps: int) -> list[float]:
        steps = checks.integer("steps", steps, 1)
        return [1 + (self.method.t_min - 1) * i / steps for i in range(steps + 1)]

    def clock(self, t: float) -> tuple[float, float]:
        return t, 1.0

    def time(self, s: float) -> float:
        return s


class _ExactSDEFlow(SDEFlow):
    """The flow of the exact score of Charges, with its divergence in closed form."""

    def __init__(self, method: SDE, charges: Charges, labels: Tensor | None) -> None:
        super().__init__(method, method.exact(charges), labels)
        self.charges = charges

    def divergence(self, x: Tensor, t: float) -> Tensor:
        """With score = −a E(x/a)/s², E = u − m(u): div = f N + ½ g² div_u E/s²."""
        scale, deviation = map(float, self.method.marginal(t))
        linear, square = self.method.coefficients(t)
        spread = field_divergence(x / scale, deviation / scale, self.charges, math.inf, labels=self.labels)
        return linear * self.charges.dim + 0.5 * square / deviation**2 * spread
