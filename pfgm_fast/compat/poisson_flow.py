"""The authors' PFGM code (GitHub Newbeeer/Poisson_flow): its checkpoints, and its functions under this package's kernels.

`load_checkpoint` reads a released .pth into `nn.DDPMpp`; then everything of this package works with it:

    net = load_checkpoint("checkpoint_450000.pth", image_size=32)
    out = pfgm_fast.sample(net, (16, 3, 32, 32), "rk45")

`forward_pz`, `poisson_target` and `PoissonFlow` take and return what users of that code know: flat augmented vectors (B, N + 1) whose
last entry is z. What that code gets wrong is not here: no 1e-7 or 1e-5 added to denominators, no 3 channels or CUDA written in,
no NaN where ‖v_x‖ ≥ √N.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError, CheckpointError
from pfgm_fast.field import pfgm_target
from pfgm_fast.methods import PFGM
from pfgm_fast.methods.base import Network, randn, unit_directions
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.nn.layers import Attention, ResidualBlock
from pfgm_fast.sampling import Samples, sample

EXPECTED = (
    "expected a checkpoint of Newbeeer/Poisson_flow: a dict with 'model' (names 'module.all_modules.…') and "
    "'ema' (with 'shadow_params', the parameters in order)"
)
_NAME = re.compile(r"^(?:module\.)?all_modules\.(\d+)\.(.+)$")
_RESIDUAL = {
    "norm_in": "GroupNorm_0",
    "conv_in": "Conv_0",
    "embed": "Dense_0",
    "norm_out": "GroupNorm_1",
    "conv_out": "Conv_1",
    "skip": "Conv_2",
}

Modules = dict[int, dict[str, Any]]
"""Number of the authors' module → name within → tensor (or its shape)."""


def load_checkpoint(path: str | Path, image_size: int, ema: bool = True) -> DDPMpp:
    """The network of an authors' checkpoint, in evaluation mode, on the CPU.

    The architecture is inferred from names and shapes; image_size, which they do not tell, is given. ema: the averaged weights, which
    their samplers use, instead of the trained ones.
    Raises: CheckpointError for a file that is not one, is truncated, or is of another architecture than their DDPM++.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except Exception as error:  # zip, pickle and format errors all mean one thing
        raise CheckpointError(f"{path} cannot be read ({error}); {EXPECTED}") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("model"), dict):
        raise CheckpointError(f"{path} holds no 'model'; {EXPECTED}")
    names = [name for name in loaded["model"] if _NAME.match(name)]
    values = [loaded["model"][name] for name in names]
    if ema:
        shadow = loaded.get("ema", {}).get("shadow_params") if isinstance(loaded.get("ema"), dict) else None
        if not isinstance(shadow, list) or [v.shape for v in shadow] != [v.shape for v in values]:
            raise CheckpointError(f"{path}: 'ema' does not hold the model's parameters in order; {EXPECTED}")
        values = shadow
    modules = _grouped(zip(names, values, strict=True))
    net = DDPMpp(infer_config({i: _shapes(m) for i, m in modules.items()}, image_size))
    with torch.no_grad():
        for index, layer in enumerate(net.blocks_in_order()):
            _fill(layer, modules[index], f"{path}: module {index}")
    return net.eval()


def _grouped(pairs: Any) -> Modules:
    modules: Modules = {}
    for name, value in pairs:
        match = _NAME.match(name)
        if match:
            modules.setdefault(int(match[1]), {})[match[2]] = value
    return modules


def _shapes(module: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.items()}


def infer_config(modules: dict[int, dict[str, tuple[int, ...]]], image_size: int) -> UNetConfig:
    """The DDPM++ whose modules have these shapes: module number → name → shape.

    The down path is read block by block: a residual block whose 1×1 skip keeps the number of channels is a down-sampling; a NIN is an
    attention. The middle (residual, attention, residual) ends it. Raises: CheckpointError where that fails.
    """
    try:
        width, channels = modules[2]["weight"][:2]
        levels, blocks, attention = [width], [0], set()
        features, index = width, 3
        while True:
            block = modules[index]
            if "NIN_0.W" in block:
                raise CheckpointError(
                    f"module {index} is an attention where a block was expected; {EXPECTED}"
                )
            out, into = block["Conv_0.weight"][:2]
            attends = "NIN_0.W" in modules.get(index + 1, {})
            skip = "Conv_2.weight" in block
            if skip and into == out and into == features:  # down-sampling
                levels.append(out)
                blocks.append(0)
                index += 1
                continue
            after = modules.get(index + 3, {}).get("Conv_0.weight", (0, 0))
            if (
                attends and not skip and after[1] > features
            ):  # this was the middle: the up path begins with a skip beside
                break
            levels[-1] = features = out
            blocks[-1] += 1
            if attends:
                attention.add(image_size >> (len(levels) - 1))
            index += 2 if attends else 1
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"the weights are not those of a DDPM++ ({error!r} at a module); {EXPECTED}"
        ) from error
    if len(set(blocks)) != 1 or any(level % width for level in levels):
        raise CheckpointError(f"levels of {levels} features with {blocks} blocks are no DDPM++; {EXPECTED}")
    config = UNetConfig(
        channels, image_size, width, tuple(level // width for level in levels), blocks[0], tuple(attention)
    )
    return config


def _fill(layer: nn.Module, module: dict[str, Tensor], where: str) -> None:
    if isinstance(layer, ResidualBlock):
        for mine, theirs in _RESIDUAL.items():
            part = getattr(layer, mine)
            if part is not None:
                _copy(part.weight, module[f"{theirs}.weight"], where)
                _copy(part.bias, module[f"{theirs}.bias"], where)
    elif isinstance(layer, Attention):
        _copy(layer.norm.weight, module["GroupNorm_0.weight"], where)
        _copy(layer.norm.bias, module["GroupNorm_0.bias"], where)
        # Their NIN multiplies from the right, W (in, out); three of them are one 1×1 convolution here.
        weights = torch.cat([module[f"NIN_{k}.W"].T for k in range(3)])
        _copy(layer.qkv.weight, weights[..., None, None], where)
        _copy(layer.qkv.bias, torch.cat([module[f"NIN_{k}.b"] for k in range(3)]), where)
        _copy(layer.out.weight, module["NIN_3.W"].T[..., None, None], where)
        _copy(layer.out.bias, module["NIN_3.b"], where)
    else:
        _copy(layer.weight, module["weight"], where)
        _copy(layer.bias, module["bias"], where)


def _copy(mine: Any, theirs: Tensor, where: str) -> None:
    if mine.shape != theirs.shape:
        raise CheckpointError(
            f"{where} has shape {tuple(theirs.shape)}, the network needs {tuple(mine.shape)}; is image_size right?"
        )
    mine.copy_(theirs)


def forward_pz(
    method: PFGM,
    samples_batch: Tensor,  # (B, *shape)
    m: Tensor,  # (B,)
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturbed samples, augmented and flat (B, N + 1), for exponents m given by the caller (PFGM algorithm 2)."""
    samples_batch = checks.batch("samples_batch", samples_batch)
    flat = checks.flat(samples_batch)
    if m.shape != (len(flat),):
        raise ArgumentError(f"m must have shape ({len(flat)},); got {tuple(m.shape)}")
    growth = (1 + method.tau) ** m.to(flat)
    radius = method.sigma * randn(*flat.shape, like=flat, generator=generator).norm(dim=1) * growth
    direction = unit_directions(tuple(flat.shape), flat.device, flat.dtype, generator)
    z = method.sigma * randn(len(flat), like=flat, generator=generator).abs() * growth
    return torch.cat([flat + radius[:, None] * direction, z[:, None]], 1)


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


class PoissonFlow:
    """Their `methods.PoissonFlow`: prior and ODE, with their settings by name (config.sampling.z_max and the like)."""

    def __init__(self, **settings: Any) -> None:
        self.method = PFGM(**settings)

    def prior_sampling(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """x (B, *shape) on z = z_max."""
        return self.method.prior(shape, generator=generator)

    def ode(self, net_fn: Network, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """dx/dt' and dz/dt' at z = t, for t' = log z: their integrand."""
        flow = self.method.flow(net_fn)
        return flow.derivative(x, flow.evaluate(x, t), t) * t, torch.full((len(x),), t)

    def sample(
        self, net_fn: Network, shape: tuple[int, ...], ode_solver: str = "rk45", N: int = 100, **options: Any
    ) -> Samples:
        """ode_solver: 'rk45', 'forward_euler' or 'improved_euler', as their config names them; N steps."""
        solvers = {"rk45": "rk45", "forward_euler": "euler", "improved_euler": "heun"}
        if ode_solver not in solvers:
            raise ArgumentError(f"ode_solver must be one of {', '.join(solvers)}; got {ode_solver!r}")
        return sample(net_fn, shape, solvers[ode_solver], N, method=self.method, **options)


def exponents(method: PFGM, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """m ~ U[0, M_exp] (B,), as their training loop draws them."""
    return method.m_exp * torch.rand(batch, generator=generator)
