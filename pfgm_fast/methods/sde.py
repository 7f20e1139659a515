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
from pfgm_fast.field import field_divergence, posterior_mean
from pfgm_fast.flows import Flow, PlainSteps, per_image
from pfgm_fast.methods.base import Hyperparameters, gaussian_log_density, randn
from pfgm_fast.methods.network import Denoiser, Network, call_denoiser, call_network, is_denoiser

TIME_SCALE = 999.0
"""The network's condition is 999 t, the range for which its positional embedding was made."""


class SDE(Hyperparameters):
    """Base: a subclass is a frozen dataclass with `marginal_prob`, `time_of`, `coefficients`, `transition`.

    t_min: the least t of training and of likelihoods. sampling_eps: where sampling ends (never below t_min); a sampler of the SDE
    then takes the denoising step, which removes the noise that is left there; solvers of the ODE do so with `denoise`.
    """

    t_min: float
    sampling_eps: float

    def marginal_prob(self, t: Any) -> tuple[Any, Any]:
        """a(t), s(t) of a number or a tensor."""
        raise NotImplementedError

    def time_of(self, sigma: float) -> float:
        """t at which s/a is σ > 0."""
        raise NotImplementedError

    def coefficients(self, t: float) -> tuple[float, float]:
        """f(t), g(t)² of the SDE."""
        raise NotImplementedError

    def transition(self, t: float, t_next: float) -> tuple[float, float]:
        """Forward step from t_next up to t as x ← A x + G ε: A, G² (appendix E)."""
        raise NotImplementedError

    def prior_std(self) -> float:
        """Standard deviation of the prior."""
        return float(self.marginal_prob(1.0)[1])

    @property
    def t_end(self) -> float:
        """Where sampling ends."""
        return max(self.t_min, self.sampling_eps)

    def perturb(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x = a(t) y + s(t) ε (B, *shape), t (B,) ~ U[t_min, 1]."""
        x, t, _ = self._perturb(images, generator)
        return x, t

    def _perturb(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        images = checks.batch("images", images)
        uniform = torch.rand(len(images), device=images.device, dtype=images.dtype, generator=generator)
        t = self.t_min + (1 - self.t_min) * uniform
        scale, deviation = self.marginal_prob(t)
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
        rows: slice = slice(None),
    ) -> Tensor:
        """(s(t) score + ε)² of an image, reduced (B,): denoising score matching, eq. 7 with λ = s²."""
        x, t, noise = (drawn[rows] for drawn in self._perturb(images, generator))
        labels = None if labels is None else labels[rows]
        prediction, _ = call_network(self.network(net), x, TIME_SCALE * t, labels)
        squares = (prediction.float() + noise).square().flatten(1).sum(1)
        return self.reduced(squares, images[0].numel())

    def prior(self, shape: tuple[int, ...], **where: Any) -> Tensor:
        """x (B, *shape) at t = 1; `where`: device, dtype, generator. Raises: ArgumentError for an empty shape."""
        checks.sizes(shape)
        return self.prior_std() * torch.randn(shape, **where)

    def kernel(self, shape: tuple[int, ...], t: float, **where: Any) -> Tensor:
        """Draws (B, *shape) of x − a(t) y: s(t) ε."""
        return float(self.marginal_prob(t)[1]) * torch.randn(shape, **where)

    def prior_log_density(self, x: Tensor) -> Tensor:
        """log density of the prior at x (B, *shape), in nats (B,), float64."""
        return gaussian_log_density(x, self.prior_std())

    def flow(self, net: Network | Charges, labels: Tensor | None = None) -> Flow:
        """The probability flow, dx/dt = f x − ½ g² score (eq. 13), and the reverse SDE for stochastic solvers. Charges: the exact
        score of the perturbed data."""
        return _ExactSDEFlow(self, net, labels) if isinstance(net, Charges) else SDEFlow(self, net, labels)

    def network(self, net: Network) -> Network:
        """net(x, 999 t[, labels]) → −ε (B, *shape) and whatever; of a denoiser D(x; σ), −(x − a D(x/a; s/a))/s."""
        if not is_denoiser(net):
            return net

        def of_denoiser(x: Tensor, condition: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
            scale, deviation = (v.to(x.dtype) for v in self.marginal_prob(condition / TIME_SCALE))
            clean = call_denoiser(net, x / per_image(scale, x), deviation / scale, labels)
            vx = (per_image(scale, x) * clean - x) / per_image(deviation, x)
            return vx, torch.zeros_like(condition)

        return of_denoiser

    def exact(self, charges: Charges) -> Network:
        """−ε of the true posterior as a network: −(x − a m)/s, m the posterior mean at x/a under noise s/a."""

        def mean(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return posterior_mean(x, sigma, charges, math.inf, labels=labels)

        return self.network(Denoiser(mean))


class SDEFlow(PlainSteps):
    """Value: the score at (x, t). Its clock is t itself."""

    jumps: tuple[float, ...] = ()

    def __init__(self, method: SDE, net: Network, labels: Tensor | None) -> None:
        self.method, self.net, self.labels = method, method.network(net), labels
        self.marginal_prob, self.time_of = method.marginal_prob, method.time_of
        self.coefficients, self.transition = method.coefficients, method.transition
        self.likelihood_end = method.t_min

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        vx, _ = call_network(self.net, x, x.new_full((len(x),), TIME_SCALE * t), self.labels)
        return vx.to(x.dtype) / float(self.method.marginal_prob(t)[1])

    def score(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        return value

    def denoised(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        scale, deviation = self.method.marginal_prob(t)
        return torch.add(x, value, alpha=deviation**2) / scale

    def derivative(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        linear, square = self.method.coefficients(t)
        return linear * x - 0.5 * square * value

    def euler(self, x: Tensor, value: Tensor, t: float, t_next: float) -> Tensor:
        return super().euler(x, self.derivative(x, value, t), t, t_next)

    def heun(self, x: Tensor, value: Tensor, value_next: Tensor, t: float, t_next: float) -> Tensor:
        predicted = self.euler(x, value, t, t_next)
        slope = self.derivative(predicted, value_next, t_next)
        return super().heun(x, self.derivative(x, value, t), slope, t, t_next)

    def grid(self, steps: int, denoise: bool = False) -> list[float]:
        """steps + 1 times from 1 to where sampling ends, evenly spaced, and with `denoise` then 0."""
        steps, end = checks.integer("steps", steps, 1), self.method.t_end
        return [1 + (end - 1) * i / steps for i in range(steps)] + [end] + [0.0] * denoise

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
        scale, deviation = map(float, self.method.marginal_prob(t))
        linear, square = self.method.coefficients(t)
        spread = field_divergence(x / scale, deviation / scale, self.charges, math.inf, labels=self.labels)
        return linear * self.charges.dim + 0.5 * square / deviation**2 * spread
