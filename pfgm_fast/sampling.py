"""sample(): a method's flow, a solver, and a network, a denoiser or the true field."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.flows import RULES, Clipped, Counted, Flow, Guided
from pfgm_fast.methods import PFGM, Method, PFGMpp
from pfgm_fast.methods.network import Network, check_network, evaluation_mode, is_denoiser, own_aug_dim
from pfgm_fast.sampling_graph import euler_graph
from pfgm_fast.seeds import ImageGenerators, image_seeds
from pfgm_fast.solvers import STOCHASTIC
from pfgm_fast.solvers import solver as find_solver
from pfgm_fast.transfer import sent

NOISE_KINDS = ("kernel", "gaussian")


@dataclass(frozen=True)
class Samples:
    """What `sample` and `encode` return.

    Args:
        x: The samples, or latents (B, *shape).
        nfe: Evaluations of the network, ≥ 1.
        path: [(t, x (B, *shape)), …] after each step, where it was asked for.
        graph: Where a CUDA graph was asked for, "captured", or the reason why the steps ran one by one; else None.
    """

    x: Tensor
    nfe: int
    path: list[tuple[float, Tensor]] = field(default_factory=list, repr=False)
    graph: str | None = None


def sample(
    net: Network | Charges,
    shape: tuple[int, ...],  # (B, *shape)
    solver: str = "euler",
    steps: int = 100,
    z_max: float | None = None,
    z_min: float | None = None,
    x0: Tensor | None = None,  # (B, *shape)
    generator: torch.Generator | None = None,
    *,
    method: Method | None = None,
    aug_dim: float | None = None,
    labels: Tensor | None = None,  # (B,) or (B, classes)
    guidance: float | None = None,
    null_label: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,  # B of them
    device: torch.device | str | None = None,
    temperature: float = 1.0,
    denoise: bool | None = None,
    noise_alpha: float = 0.0,
    noise_kind: str = "kernel",
    clip_denoised: str | None = None,
    record: bool = False,
    progress: bool = False,
    cuda_graph: bool = False,
    **options: Any,
) -> Samples:
    """Draw samples by integrating the method's ODE, or its reverse SDE, from its prior to the data.

    PFGM (arXiv 2209.11178) eq. 6, PFGM++ (arXiv 2302.04265) eq. 5, EDM (arXiv 2206.00364) algorithms 1 and 2, the SDEs' samplers
    (arXiv 2011.13456); each solver's file cites its own. Samples that are not finite are returned as such.

    Args:
        net: net(x, z) → (v_x (B, *shape), v_z (B,)), such as `nn.DDPMpp`; or v_x alone; or a denoiser D(x, sigma), with sigma_min and
            sigma_max, or in `pf.Denoiser` (`methods.network` has the whole contract; the first call is held to it); or Charges: the
            true field, no network (then one evaluation is one field). A module is put in evaluation mode meanwhile.
        shape: (B, *shape), every size ≥ 1.
        solver: One evaluation a step: "euler", "dpm_solver++" (DPM-Solver++ 2M), "unipc" (UniPC; `order`, 3), and, drawing noise,
            for the SDEs and D = ∞ "ancestral", "euler_maruyama", "reverse_diffusion"; two: "heun" (2 steps − 1) and "predictor_corrector" (`snr`); "rk45"
            (adaptive; `rtol`, `atol`; its steps are common to the batch). "euler" and "heun" take EDM's S_churn, S_min, S_max, S_noise.
        steps: ≥ 1, log-spaced in z for PFGM; EDM's grid for PFGM++ and EDM; even in t for the SDEs.
        z_max, z_min: Where PFGM's ODE starts and ends, 0 < z_min < z_max; None: the method's (40 and 1e-3).
        x0: The start (B, *shape) instead of a draw from the prior, which is float64 for a network of float64, else float32. The steps
            keep its dtype, the network gets its own.
        generator: For the prior (and the noise).
        method: Hyper-parameters; default PFGM(), or PFGMpp where net is a denoiser (D its own `aug_dim`, else ∞) or aug_dim is given.
            A denoiser's sigma_min and sigma_max limit the method's.
        aug_dim: D ∈ (0, ∞] of PFGMpp, r = σ√D; inf is EDM.
        labels: Classes (B,), or one-hot (B, classes).
        guidance: The finite weight w of classifier-free guidance, free + w (with labels − free), at two evaluations; any number.
        null_label: The class ≥ 0 that stands for none (None: the call without labels; of Charges, all of them).
        seed: An integer ≥ 0 in the generator's place: image k is the same in any batch and on any device.
        seeds: B integers ≥ 0, those of the images themselves (`pf.image_seeds(seed, count, first)` are what `seed` gives).
        device: Where to sample; default and, for a module or Charges, always theirs.
        temperature: > 0, a factor on the start, drawn or given: below 1 samples are more alike (arXiv 2209.11178, section 4.3).
        denoise: End with the denoising step (Tweedie's formula where sampling ends), one evaluation. None: yes for PFGM++ and EDM,
            where it is the last of `steps`, and for the solvers of SDEs, where it comes on top; else no.
        noise_alpha: α ≥ 0 of the robustness experiments of PFGM++ (arXiv 2302.04265, section 6): after each step but the last, α times
            a draw of noise of that time's size is added. Not with "rk45".
        noise_kind: Of that noise: "kernel", the method's own perturbation, whose tail is heavy where D is small; or "gaussian", of
            standard deviation σ (z for PFGM) whatever D is, as the authors' released script has it (there on the start too).
        clip_denoised: What is done to the denoised image that every step is made of: "box" holds its values to [−1, 1], "dynamic" is
            dynamic thresholding (docs/held-fields.md). None: nothing, beyond what the method itself holds.
        record: Keep the path.
        progress: A tqdm bar.
        cuda_graph: PFGM's Euler steps, network and update, captured once on the device and replayed for each step (no bar then). Where
            that cannot be, the same steps run one by one, and `Samples.graph` says why. To replay one graph for many batches, keep a
            `sampling_graph.EulerGraph`.
        **options: Of the solver.

    Raises:
        ArgumentError: Bad shapes, steps, solver, options, seed or device; z_min ≥ z_max; a network that breaks the contract.
        SolverError: Where rk45 cannot go on.
    """
    if not callable(net) and not isinstance(net, Charges):
        raise ArgumentError(f"net must be callable as net(x, z), or Charges; got {type(net).__name__}")
    method = method_for(net, method, aug_dim, z_max, z_min)
    solve = find_solver(solver, options)
    shape = tuple(shape)
    draws = _draws(shape, generator, seed, seeds)
    where = _device_for(net, device, x0)
    if x0 is None:
        _same_dimensions(net, method)
        checks.sizes(shape)
        like = torch.empty(shape, device=where, dtype=_dtype_for(net))
        x0 = _drawn(method.prior, like, draws, generator)
    x = checks.batch("x0", x0)
    if checks.positive("temperature", temperature) != 1:
        x = temperature * x
    if tuple(x.shape) != shape:
        raise ArgumentError(f"x0 must have shape {shape}; got {tuple(x.shape)}")
    labels = check_labels(labels, x)
    if not isinstance(net, Charges):
        check_network(net, labels)
    flow = Counted(_clipped(_guided(method, net, labels, guidance, null_label, x), clip_denoised))
    cost = 1 if guidance is None else Guided.cost
    if checks.nonnegative("noise_alpha", noise_alpha) and solver == "rk45":
        raise ArgumentError("noise_alpha is for solvers of fixed steps, not for 'rk45'")
    kernel = _kernel(method, flow, noise_kind)
    denoise = (method.denoises or solver in STOCHASTIC) if denoise is None else denoise
    if solver == "rk45":
        first, last = flow.grid(1)
        times = [first, last] + [0.0] * denoise
    else:
        times = flow.grid(steps, denoise)
    reason = None
    if cuda_graph:
        with evaluation_mode(net):
            graph = _no_graph(
                record, denoise or noise_alpha > 0 or clip_denoised is not None, guidance, options
            ) or euler_graph(net, method, solver, x, labels, steps)
            if not isinstance(graph, str):
                return Samples(graph(x, times), steps, graph=graph.reason or "captured")
        reason = graph
    path = [(times[0], x.clone())] if record else []
    noise = draws or (
        lambda like: torch.randn(like.shape, device=like.device, dtype=like.dtype, generator=generator)
    )
    total = None if solver == "rk45" else len(times) - 1
    with evaluation_mode(net), torch.no_grad(), tqdm(total=total, disable=not progress) as bar:

        def on_step(x: Tensor, t: float) -> Tensor:
            bar.update()
            bar.set_postfix(t=f"{t:.3g}", nfe=cost * flow.count, refresh=False)
            if noise_alpha and 0 < t != times[-1]:
                x = x + noise_alpha * _drawn(lambda s, **w: kernel(s, t, **w), x, draws, generator)
            if record:
                path.append((t, x.clone()))
            return x

        x = solve(flow, x, times, on_step, noise, **options)
    return Samples(x, cost * flow.count, path, reason)


def check_labels(labels: Tensor | None, x: Tensor) -> Tensor | None:
    """(B,) classes, or one-hot (B, classes) floats for networks that take them."""
    if labels is None or not isinstance(labels, Tensor) or labels.dim() != 2:
        return None if labels is None else checks.index("labels", labels, x)
    checks.tensor("labels", labels)
    if len(labels) != len(x):
        raise ArgumentError(f"labels must have {len(x)} rows; got {tuple(labels.shape)}")
    checks.same_device("labels", labels, "x", x)
    return labels


def method_for(
    net: Any,
    method: Method | None = None,
    aug_dim: float | None = None,
    z_max: float | None = None,
    z_min: float | None = None,
) -> Method:
    """The method that `sample` takes: what is given, or what goes with the net, within its limits."""
    if method is None:
        chosen = aug_dim if aug_dim is not None else own_aug_dim(net)
        denoiser = is_denoiser(net) or aug_dim is not None
        method = PFGMpp(aug_dim=math.inf if chosen is None else chosen) if denoiser else PFGM()
    elif aug_dim is not None:
        if not isinstance(method, PFGMpp):
            raise ArgumentError(f"aug_dim (D) belongs to PFGMpp; the method is {method.name!r}")
        method = replace(method, aug_dim=aug_dim)
    if isinstance(method, PFGMpp) and is_denoiser(net):
        method = method.within(net)
    ends: dict[str, Any] = {k: v for k, v in (("z_max", z_max), ("z_min", z_min)) if v is not None}
    if not ends:
        return method
    if not isinstance(method, PFGM):
        raise ArgumentError(f"z_max and z_min do not belong to the method {method.name!r}")
    return replace(method, **ends)


def _home(net: Any) -> torch.device | None:
    """Where charges or a network live; None: anywhere."""
    if isinstance(net, Charges):
        return net.device
    parts = (*net.parameters(), *net.buffers()) if isinstance(net, nn.Module) else ()
    return parts[0].device if parts else None


def _dtype_for(net: Any) -> torch.dtype:
    """Of a draw from the prior: float64 for charges or networks of float64, else float32."""
    if isinstance(net, Charges):
        return net.value_dtype
    parameters = net.parameters() if isinstance(net, nn.Module) else ()
    return torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32


def _same_dimensions(net: Any, method: Method) -> None:
    """A warning where a denoiser was made for another D than that of the prior it is to start from."""
    own, drawn = own_aug_dim(net), getattr(method, "aug_dim", 1.0 if isinstance(method, PFGM) else math.inf)
    if own is not None and own != drawn:
        warnings.warn(
            f"the denoiser is of D = {own:g}, the prior of {method.name!r} of D = {drawn:g}: give method=PFGMpp(aug_dim={own:g})",
            stacklevel=3,
        )


def _device_for(net: Any, device: torch.device | str | None, x0: Tensor | None) -> torch.device | None:
    """Where to sample. Raises: ArgumentError where the net, or x0, lives elsewhere."""
    lives = _home(net)
    if device is None:
        return lives
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (
        RuntimeError,
        TypeError,
        AssertionError,
    ) as error:  # PyTorch's words for a device that is not there
        raise ArgumentError(f"device {device!r}: {error}") from None
    for name, place in (("net", lives), ("x0", None if x0 is None else x0.device)):
        if place is not None and not _same_device(place, wanted):
            raise ArgumentError(f"{name} is on {place}, not on device {wanted}: move it there first")
    return wanted


def _same_device(place: torch.device, wanted: torch.device) -> bool:
    return place.type == wanted.type and wanted.index in (None, place.index)


def _draws(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    seed: int | None,
    seeds: Sequence[int] | None,
) -> ImageGenerators | None:
    """One generator an image, where seeds are given."""
    if sum(given is not None for given in (generator, seed, seeds)) > 1:
        raise ArgumentError("give one of generator, seed and seeds")
    if seed is not None:
        seeds = image_seeds(seed, shape[0] if shape else 0)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentError(
            f"generator must be a torch.Generator; got {type(generator).__name__}: a number is seed="
        )
    if seeds is None:
        return None
    if not isinstance(seeds, Sequence):
        raise ArgumentError(
            f"seeds must be a sequence of integers ≥ 0; got {type(seeds).__name__}: one is seed="
        )
    if len(seeds) != (shape[0] if shape else 0):
        raise ArgumentError(f"seeds must be one for each image of shape {shape}; got {len(seeds)}")
    return ImageGenerators(seeds)


def _drawn(
    draw: Callable[..., Tensor],
    like: Tensor,
    draws: ImageGenerators | None,
    generator: torch.Generator | None,
) -> Tensor:
    """draw(shape, dtype, device, generator) like a tensor (B, *shape), by image where there are seeds."""
    if draws is None:
        return draw(tuple(like.shape), device=like.device, dtype=like.dtype, generator=generator)
    shape = (1, *like.shape[1:])
    return sent(draws.stacked(lambda g: draw(shape, dtype=like.dtype, generator=g)), like.device)


def _guided(
    method: Method,
    net: Any,
    labels: Tensor | None,
    guidance: float | None,
    null_label: int | None,
    x: Tensor,
) -> Flow:
    flow = method.flow(net, labels)
    if guidance is None:
        if null_label is not None:
            raise ArgumentError("null_label goes with guidance")
        return flow
    if labels is None:
        raise ArgumentError("guidance needs labels")
    checks.number("guidance", guidance, positive=False)
    nobody = None if null_label is None else torch.full((len(x),), null_label, device=x.device)
    return Guided(flow, method.flow(net, nobody), guidance)


def _clipped(flow: Flow, rule: str | None) -> Flow:
    if rule is None:
        return flow
    if rule not in RULES:
        raise ArgumentError(f"clip_denoised must be one of {', '.join(RULES)}, or None; got {rule!r}")
    return Clipped(flow, RULES[rule])


def _kernel(method: Method, flow: Flow, kind: str) -> Callable[..., Tensor]:
    """What `noise_alpha` adds at t: draws (B, *shape) of kernel(shape, t, dtype, device, generator)."""
    if kind not in NOISE_KINDS:
        raise ArgumentError(f"noise_kind must be one of {', '.join(NOISE_KINDS)}; got {kind!r}")
    if kind == "kernel":
        return method.kernel
    return lambda shape, t, **where: float(flow.marginal_prob(t)[1]) * torch.randn(shape, **where)


def _no_graph(record: bool, more: bool, guidance: float | None, options: dict[str, Any]) -> str | None:
    """What these arguments have against a CUDA graph."""
    if record:
        return "record=True looks at every step"
    if more:
        return "the denoising step, noise, or clip_denoised is not in the graph of an Euler step"
    if guidance is not None:
        return "guidance evaluates two flows a step"
    return f"{next(iter(options))} is not for graphs" if options else None
