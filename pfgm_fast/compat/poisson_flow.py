"""The authors' PFGM code (GitHub Newbeeer/Poisson_flow): its checkpoints, and its functions under this package's kernels.

`load_checkpoint` reads a released .pth into `nn.DDPMpp`; then everything of this package works with it:

    net = load_checkpoint("checkpoint_450000.pth", image_size=32)
    out = pfgm_fast.sample(net, (16, 3, 32, 32), "rk45")

The functions have that code's names, arguments and returns; a script changes its imports:

| there | here |
|---|---|
| `methods.Poisson(config)`: `M`, `N`, `prior_sampling`, `ode` | `Poisson(config)`, and `prior_logp` |
| `models.utils_poisson.forward_pz(sde, config, samples_batch, m)` | the same |
| the broadcast field inside `losses.get_loss_fn` | `poisson_target(perturbed, real_samples, gamma)` |
| `losses.get_loss_fn(sde, train, reduce_mean, …, method_name='poisson')` | the same |
| `sampling.get_sampling_fn`, `get_rk45_sampler_pfgm`, `get_ode_sampler` | the same |
| `likelihood.get_likelihood_fn_pfgm` | the same |

config: their ml_collections config, or anything with those attributes or keys; what it lacks is CIFAR-10's. A model is called as
model(x, z) → (v_x, v_z). Augmented points are flat vectors (B, N + 1) whose last entry is z. What that code gets wrong is not here:
nothing is added to denominators, no 3 channels or CUDA written in, no NaN where ‖v_x‖ ≥ √N, no truncated log-gamma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.compat.checkpoint import load_checkpoint
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import pfgm_target
from pfgm_fast.likelihood import log_likelihood
from pfgm_fast.methods import PFGM
from pfgm_fast.methods.base import randn, unit_directions
from pfgm_fast.methods.network import Network
from pfgm_fast.sampling import Samples, sample

SOLVERS = {"rk45": "rk45", "forward_euler": "euler", "improved_euler": "heun"}
"""Their names of the solvers → ours."""

_SETTINGS = {
    "sigma": ("model", "sigma_end"),
    "tau": ("training", "tau"),
    "m_exp": ("training", "M"),
    "gamma": ("training", "gamma"),
    "z_max": ("sampling", "z_max"),
    "z_min": ("sampling", "z_min"),
    "upper_norm": ("sampling", "upper_norm"),
    "z_exp": ("sampling", "z_exp"),
}


def _setting(config: Any, section: str, name: str, default: Any = None) -> Any:
    """config.section.name or config["section"]["name"]; the default where either is not there."""
    for key in (section, name):
        config = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
        if config is None:
            return default
    return config


def settings(config: Any) -> PFGM:
    """The method that a config of theirs describes. Raises: ArgumentError for values that no PFGM has."""
    found: dict[str, Any] = {name: _setting(config, *place) for name, place in _SETTINGS.items()}
    if not _setting(config, "training", "restrict_M", True):
        found["near"] = 0.0
    return PFGM(**{name: value for name, value in found.items() if value is not None})


class Poisson:
    """Their `methods.Poisson`: the prior and the ODE of a config, or of PFGM's settings by our names (`Poisson(z_max=60.0)`)."""

    def __init__(self, config: Any = None, **changes: Any) -> None:
        self.config = config
        self.method = replace(settings(config), **changes)

    @property
    def M(self) -> int:  # noqa: N802 - theirs
        """The largest exponent, config.training.M."""
        return self.method.m_exp

    @property
    def N(self) -> int:  # noqa: N802 - theirs
        """Steps of the fixed-grid samplers, config.sampling.N (100)."""
        return int(_setting(self.config, "sampling", "N", 100))

    def prior_sampling(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None, device: Any = None
    ) -> Tensor:
        """x (B, *shape) float32 on z = z_max, norms within [1, upper_norm]."""
        return self.method.prior(shape, generator=generator, device=device)

    def prior_logp(self, z: Tensor) -> Tensor:
        """log density of the prior at the latents z (B, *shape), in nats (B,), float64."""
        return self.method.prior_log_density(z)

    def ode(self, net_fn: Network, x: Tensor, t: Tensor | float) -> Tensor:
        """z dx/dz (B, *shape) at z = exp t: the derivative in t = log z, in which they integrate. t: a number or (B,), all equal."""
        z = math.exp(float(t.mean()) if isinstance(t, Tensor) else t)
        flow = self.method.flow(net_fn)
        return flow.derivative(x, flow.evaluate(x, z), z) * z

    def sample(
        self, net_fn: Network, shape: tuple[int, ...], ode_solver: str = "rk45", N: int = 100, **options: Any
    ) -> Samples:
        """Our `sample` by their names: ode_solver 'rk45', 'forward_euler' or 'improved_euler', N steps."""
        return sample(net_fn, shape, _solver(ode_solver), N, method=self.method, **options)


PoissonFlow = Poisson


def _solver(name: str) -> str:
    if name.lower() not in SOLVERS:
        raise ArgumentError(f"ode_solver must be one of {', '.join(SOLVERS)}; got {name!r}")
    return SOLVERS[name.lower()]


def forward_pz(
    sde: Poisson,
    config: Any,
    samples_batch: Tensor,  # (B, *shape)
    m: Tensor,  # (B,)
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturbed samples, augmented and flat (B, N + 1), for exponents m of 1 + τ (PFGM, arXiv 2209.11178, algorithm 2).

    config: None for the sde's own. Where |ε_z| < .005 and config.training.restrict_M, m is drawn anew from [0, 0.7 M], as the
    paper says (their last version did so for every ε_z < 0 too); the caller's m stays as it is.
    """
    method = sde.method if config is None else settings(config)
    samples_batch = checks.batch("samples_batch", samples_batch)
    flat = checks.flat(samples_batch)
    if m.shape != (len(flat),):
        raise ArgumentError(f"m must have shape ({len(flat)},); got {tuple(m.shape)}")
    depth = method.sigma * randn(len(flat), like=flat, generator=generator).abs()
    near = (
        0.7 * method.m_exp * torch.rand(len(flat), device=flat.device, dtype=flat.dtype, generator=generator)
    )
    growth = (1 + method.tau) ** torch.where(depth < method.near, near, m.to(flat))
    radius = method.sigma * randn(*flat.shape, like=flat, generator=generator).norm(dim=1) * growth
    direction = unit_directions(tuple(flat.shape), flat.device, flat.dtype, generator)
    return torch.cat([flat + radius[:, None] * direction, (depth * growth)[:, None]], 1)


def poisson_target(
    perturbed: Tensor,  # (B, N + 1)
    real_samples: Tensor | Charges,  # (M, *shape)
    gamma: float = 5.0,
) -> Tensor:
    """The normalised field at augmented points (B, N + 1): what their loss computes by broadcasting."""
    perturbed = checks.batch("perturbed", perturbed)
    charges = real_samples if isinstance(real_samples, Charges) else Charges(real_samples)
    if perturbed.shape[1] != charges.dim + 1:
        raise ArgumentError(f"perturbed must have shape (B, {charges.dim + 1}); got {tuple(perturbed.shape)}")
    x = perturbed[:, :-1].reshape(-1, *charges.shape)
    vx, vz = pfgm_target(x, perturbed[:, -1].contiguous(), charges, gamma)
    return torch.cat([vx.flatten(1), vz[:, None]], 1)


def get_loss_fn(
    sde: Poisson,
    train: bool,
    reduce_mean: bool = True,
    continuous: bool = True,
    eps: float = 1e-5,
    method_name: str | None = "poisson",
) -> Callable[..., Tensor]:
    """loss_fn(model, batch, charges=None) → (): the mean over the perturbed samples of the squared error of v.

    The first config.training.small_batch_size (default: all) images of batch (B, *shape) are perturbed, all of batch are
    charges, or the given `charges`, such as the whole data set. reduce_mean: mean over the N + 1 components, else half their sum.
    train: the model's mode meanwhile. continuous and eps are theirs for SDEs and mean nothing here.
    """
    if method_name != "poisson":
        raise ArgumentError(
            f"only method_name 'poisson' is here (VE, VP: pfgm_fast.methods); got {method_name!r}"
        )

    def loss_fn(model: Any, batch: Tensor, charges: Charges | None = None) -> Tensor:
        if isinstance(model, torch.nn.Module):
            model.train(train)
        small = batch[: int(_setting(sde.config, "training", "small_batch_size", len(batch)))]
        with torch.no_grad():
            m = sde.M * torch.rand(len(small), device=batch.device, dtype=batch.dtype)
            points = forward_pz(sde, None, small, m)
            target = poisson_target(points, batch if charges is None else charges, sde.method.gamma)
        vx, vz = model(points[:, :-1].reshape(small.shape), points[:, -1].clamp(min=1e-10))
        squares = (torch.cat([vx.flatten(1), vz[:, None]], 1) - target).square()
        return (squares.mean(1) if reduce_mean else 0.5 * squares.sum(1)).mean()

    return loss_fn


Scaler = Callable[[Tensor], Tensor]
SamplingFn = Callable[..., tuple[Tensor, int]]


def get_sampling_fn(
    config: Any, sde: Poisson, shape: tuple[int, ...], inverse_scaler: Scaler, eps: float
) -> SamplingFn:
    """sampling_fn(model, x=None) → (inverse_scaler(samples) (B, *shape), evaluations), by config.sampling.ode_solver.

    shape: (B, *shape). eps: the z at which the ODE ends. x: the start, instead of a draw from the prior.
    """
    solver = _setting(config, "sampling", "ode_solver", "rk45")
    if _solver(solver) == "rk45":
        return get_rk45_sampler_pfgm(sde, shape, inverse_scaler, eps=eps)
    return get_ode_sampler(sde, shape, solver, inverse_scaler, eps=eps)


def get_rk45_sampler_pfgm(
    sde: Poisson,
    shape: tuple[int, ...],
    inverse_scaler: Scaler,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    method: str = "RK45",
    eps: float = 1e-3,
    device: Any = None,
) -> SamplingFn:
    """As `get_sampling_fn`, with the adaptive solver (method: RK45, the only one). device: the model's, whatever is said."""
    if method != "RK45":
        raise ArgumentError(f"method must be 'RK45'; got {method!r}")
    return _sampler(sde, shape, "rk45", inverse_scaler, eps, {"rtol": rtol, "atol": atol})


def get_ode_sampler(
    sde: Poisson,
    shape: tuple[int, ...],
    ode_solver: str,
    inverse_scaler: Scaler,
    eps: float = 1e-3,
    device: Any = None,
) -> SamplingFn:
    """As `get_sampling_fn`, in sde.N steps of 'forward_euler' or 'improved_euler'. device: the model's, whatever is said."""
    return _sampler(sde, shape, _solver(ode_solver), inverse_scaler, eps, {})


def _sampler(
    sde: Poisson, shape: tuple[int, ...], solver: str, scaler: Scaler, eps: float, options: dict[str, Any]
) -> SamplingFn:
    def sampling_fn(model: Network, x: Tensor | None = None) -> tuple[Tensor, int]:
        out = sample(model, shape, solver, sde.N, z_min=eps, x0=x, method=sde.method, **options)
        return scaler(out.x), out.nfe

    return sampling_fn


def get_likelihood_fn_pfgm(
    sde: Poisson,
    hutchinson_type: str = "Rademacher",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    method: str = "RK45",
    eps: float = 1e-3,
) -> Callable[[Network, Tensor], tuple[Tensor, int]]:
    """likelihood_fn(model, data) → (bits per dimension (B,), evaluations).

    data (B, *shape) in [−1, 1], dequantised by the caller as (byte + u)/128 − 1, u ~ U[0, 1): a cell has width 1/128, hence 7
    bits. `pfgm_fast.bits_per_dim` takes the bytes themselves. hutchinson_type: 'Rademacher' or 'Gaussian'.
    """
    if method != "RK45":
        raise ArgumentError(f"method must be 'RK45'; got {method!r}")
    ended = replace(sde.method, z_min=eps)

    def likelihood_fn(model: Network, data: Tensor) -> tuple[Tensor, int]:
        found = log_likelihood(model, data, ended, noise=hutchinson_type.lower(), rtol=rtol, atol=atol)
        return -found.log_density / (math.prod(data.shape[1:]) * math.log(2)) + 7, found.nfe

    return likelihood_fn


__all__ = [
    "Poisson",
    "PoissonFlow",
    "forward_pz",
    "get_likelihood_fn_pfgm",
    "get_loss_fn",
    "get_ode_sampler",
    "get_rk45_sampler_pfgm",
    "get_sampling_fn",
    "load_checkpoint",
    "poisson_target",
    "settings",
]
