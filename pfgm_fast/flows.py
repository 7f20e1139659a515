"""What a solver sees of a method: a flow, and the wrappers that any flow may have.

A flow knows the path x(t) = a(t) y + s(t) ε that leads from the data to its prior; its noise level is σ(t) = s/a. t = 0 is the data:
where the last of a solver's times is 0, the last step is the denoising step, `flow.denoised`, at the cost of one evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

OnStep = Callable[[Tensor, float], Tensor]
"""Called with x and t after each step; returns the x to go on with."""

Noise = Callable[[Tensor], Tensor]
"""Standard normal draws like x (B, *shape)."""


class Flow(Protocol):
    """An ODE dx/dt = f(x, t) that a solver integrates from `grid[0]` to `grid[-1]`; t is a float64 number.

    `evaluate` costs one evaluation of the network; what it returns is opaque to a solver. `euler` and `heun` are the
    fused steps that go with it.
    """

    def evaluate(self, x: Tensor, t: float) -> Any:
        """What the network says at x (B, *shape) and t > 0; rows belong to rows of x."""
        ...

    def derivative(self, x: Tensor, value: Any, t: float) -> Tensor:
        """dx/dt (B, *shape) of a value that was evaluated at (x, t); differentiable in x through the value."""
        ...

    def denoised(self, x: Tensor, value: Any, t: float) -> Tensor:
        """E[y | x] (B, *shape), Tweedie's formula, of a value that was evaluated at (x, t)."""
        ...

    def euler(self, x: Tensor, value: Any, t: float, t_next: float) -> Tensor:
        """x + (t' − t) dx/dt (B, *shape); t' > 0 may lie on either side of t."""
        ...

    def heun(self, x: Tensor, value: Any, value_next: Any, t: float, t_next: float) -> Tensor:
        """x + (t' − t)/2 (dx/dt + dx/dt' ) (B, *shape), value_next evaluated at Euler's prediction for t'."""
        ...

    def grid(self, steps: int, denoise: bool = False) -> list[float]:
        """Times from the prior to where sampling ends; with `denoise` then 0. steps + 1 times, and the 0 beside them unless the method
        counts it among the steps."""
        ...

    def marginal_prob(self, t: float) -> tuple[float, float]:
        """a(t), s(t) of the path; 1 and σ where the time is the noise level itself."""
        ...

    def time_of(self, sigma: float) -> float:
        """t at which s/a is σ > 0."""
        ...

    def clock(self, t: float) -> tuple[float, float]:
        """(s, dt/ds) of the variable s in which an adaptive solver steps, e.g. s = log z."""
        ...

    def time(self, s: float) -> float:
        """t of s, the inverse of `clock`."""
        ...

    @property
    def jumps(self) -> tuple[float, ...]:
        """Times at which the derivative jumps; an adaptive solver begins anew there."""
        ...

    @property
    def likelihood_end(self) -> float:
        """The t > 0 that stands for the data in a likelihood: not above where sampling ends."""
        ...


class ExactFlow(Flow, Protocol):
    """A flow that knows its divergence in closed form: that of Charges."""

    def divergence(self, x: Tensor, t: float) -> Tensor:
        """Σ_k ∂f_k/∂x_k at (x, t): (B,)."""
        ...


class StochasticFlow(Flow, Protocol):
    """A flow that is also the SDE dx = f(t) x dt + g(t) dw with Gaussian noise: what samplers that draw noise need."""

    def score(self, x: Tensor, value: Any, t: float) -> Tensor:
        """∇ log p_t(x) (B, *shape) of a value that was evaluated at (x, t)."""
        ...

    def coefficients(self, t: float) -> tuple[float, float]:
        """f(t), g(t)²."""
        ...

    def transition(self, t: float, t_next: float) -> tuple[float, float]:
        """A, G² of the forward step from t' up to t, x ← A x + G ε, as the method discretises it."""
        ...


def is_exact(flow: Flow) -> TypeGuard[ExactFlow]:
    return hasattr(flow, "divergence")


def is_stochastic(flow: Flow) -> TypeGuard[StochasticFlow]:
    return all(hasattr(flow, name) for name in ("score", "coefficients", "transition"))


def onto_data(t: float, t_next: float) -> bool:
    """The step from t to t' is the denoising step. (A likelihood's clock rises, and may pass through 0.)"""
    return t_next == 0 < t


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, …) to go with like (B, *shape)."""
    return value.view(-1, *[1] * (like.dim() - 1))


class PlainSteps:
    """Euler and Heun for a flow whose `evaluate` is already dx/dt."""

    def derivative(self, x: Tensor, value: Tensor, t: float) -> Tensor:
        return value

    def euler(self, x: Tensor, value: Tensor, t: float, t_next: float) -> Tensor:
        return torch.add(x, value, alpha=t_next - t)

    def heun(self, x: Tensor, value: Tensor, value_next: Tensor, t: float, t_next: float) -> Tensor:
        return torch.add(x, value + value_next, alpha=0.5 * (t_next - t))


class NoiseLevelTime:
    """The clock of a flow whose time is its noise level: a = 1, s = t; it runs over decades, so the clock is log t."""

    jumps: tuple[float, ...] = ()

    def marginal_prob(self, t: float) -> tuple[float, float]:
        return 1.0, t

    def time_of(self, sigma: float) -> float:
        return sigma

    def clock(self, t: float) -> tuple[float, float]:
        return math.log(t), t

    def time(self, s: float) -> float:
        return math.exp(s)


class Wrapped:
    """A flow as it is; a subclass changes one thing. What only some flows know (`divergence`, `score`) passes through."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def __getattr__(self, name: str) -> Any:
        if name == "flow" or name.startswith("__"):  # not there yet, while a copy is being built
            raise AttributeError(name)
        return getattr(self.flow, name)

    def evaluate(self, x: Tensor, t: float) -> Any:
        return self.flow.evaluate(x, t)


class Counted(Wrapped):
    """Counts its evaluations."""

    count = 0

    def evaluate(self, x: Tensor, t: float) -> Any:
        self.count += 1
        return self.flow.evaluate(x, t)


class ByDerivative(Wrapped):
    """A flow that changes the derivative: its steps are the plain ones of it, not the wrapped flow's fused ones."""

    def derivative(self, x: Tensor, value: Any, t: float) -> Tensor:
        raise NotImplementedError

    def euler(self, x: Tensor, value: Any, t: float, t_next: float) -> Tensor:
        return torch.add(x, self.derivative(x, value, t), alpha=t_next - t)

    def heun(self, x: Tensor, value: Any, value_next: Any, t: float, t_next: float) -> Tensor:
        slope = self.derivative(x, value, t)
        predicted = torch.add(x, slope, alpha=t_next - t)
        slope = slope + self.derivative(predicted, value_next, t_next)
        return torch.add(x, slope, alpha=0.5 * (t_next - t))


class Guided(ByDerivative):
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6): what the flow without labels says, and `weight` times
    what the labels add to it. weight 1 is the conditional flow, 0 the free one, above 1 exaggerates the class.

    The combination is of the derivatives, the denoised images and the scores, which are linear in each other at the same x and t. An
    evaluation is one of each flow: `cost` 2.
    """

    cost = 2

    def __init__(self, conditional: Flow, free: Flow, weight: float) -> None:
        super().__init__(conditional)
        self.free, self.weight = free, weight

    def evaluate(self, x: Tensor, t: float) -> tuple[Any, Any]:
        return self.flow.evaluate(x, t), self.free.evaluate(x, t)

    def _mixed(self, what: str, x: Tensor, value: tuple[Any, Any], t: float) -> Tensor:
        given, free = getattr(self.flow, what)(x, value[0], t), getattr(self.free, what)(x, value[1], t)
        return torch.lerp(free, given, self.weight)

    def derivative(self, x: Tensor, value: tuple[Any, Any], t: float) -> Tensor:
        return self._mixed("derivative", x, value, t)

    def denoised(self, x: Tensor, value: tuple[Any, Any], t: float) -> Tensor:
        return self._mixed("denoised", x, value, t)

    def score(self, x: Tensor, value: tuple[Any, Any], t: float) -> Tensor:
        return self._mixed("score", x, value, t)


class Clipped(ByDerivative):
    """The denoised image of a flow put through `rule`, and the derivative and the score that go with it: with x = a y + s ε both are
    linear in y, the derivative at the rate a d ln(a/s)/dt = −½ g² a/s² (−1/t where the time is the noise level)."""

    def __init__(self, flow: Flow, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__(flow)
        self.rule = rule

    def denoised(self, x: Tensor, value: Any, t: float) -> Tensor:
        return self.rule(self.flow.denoised(x, value, t))

    def _change(self, x: Tensor, value: Any, t: float) -> tuple[Tensor, float]:
        """What the rule adds to the denoised image (B, *shape), and a/s²."""
        scale, deviation = map(float, self.flow.marginal_prob(t))
        clean = self.flow.denoised(x, value, t)
        return self.rule(clean) - clean, scale / deviation**2

    def derivative(self, x: Tensor, value: Any, t: float) -> Tensor:
        change, precision = self._change(x, value, t)
        square = self.flow.coefficients(t)[1] if is_stochastic(self.flow) else 2 * t
        return torch.add(self.flow.derivative(x, value, t), change, alpha=-0.5 * square * precision)

    def score(self, x: Tensor, value: Any, t: float) -> Tensor:
        change, precision = self._change(x, value, t)
        return torch.add(self.flow.score(x, value, t), change, alpha=precision)  # type: ignore[attr-defined]


def box(clean: Tensor) -> Tensor:
    """Values held to [−1, 1], those of images: the 'clip_denoised' of diffusion code."""
    return clean.clamp(-1, 1)


def dynamic_threshold(clean: Tensor, share: float = 0.995) -> Tensor:
    """Held to [−s, s] and divided by s, the quantile `share` of an image's |values|, at least 1: dynamic thresholding (Imagen, Saharia
    et al. 2022, arXiv 2205.11487, section 2.3)."""
    sizes = clean.flatten(1).abs().float()
    rank = min(sizes.shape[1], max(1, math.ceil(share * sizes.shape[1])))
    most = per_image(sizes.kthvalue(rank, dim=1).values.clamp(min=1).to(clean.dtype), clean)
    return clean.clamp(-most, most) / most


RULES: dict[str, Callable[[Tensor], Tensor]] = {"box": box, "dynamic": dynamic_threshold}
"""What `sample(clip_denoised=...)` takes."""
