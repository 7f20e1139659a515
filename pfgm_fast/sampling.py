"""sample(): a method's flow, a solver, and a network or the true field."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pfgm_fast import checks
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods import PFGM, Method
from pfgm_fast.methods.base import Network, evaluation_mode
from pfgm_fast.sampling_graph import euler_graph
from pfgm_fast.solvers import STOCHASTIC
from pfgm_fast.solvers import solver as find_solver


@dataclass(frozen=True)
class Samples:
    """x (B, *shape): the samples. nfe: evaluations of the network. path: [(t, x), …] where it was asked for. graph: where a CUDA graph
    was asked for, "captured", or the reason why the steps ran one by one; else None."""

    x: Tensor
    nfe: int
    path: list[tuple[float, Tensor]] = field(default_factory=list, repr=False)
    graph: str | None = None


class Counted:
    """Counts the evaluations of a network, and passes everything through."""

    def __init__(self, net: Network) -> None:
        self.net, self.count = net, 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.net(*args)


def _home(net: Any) -> tuple[torch.device, torch.dtype]:
    """Where a sample begins: the device of a network or of charges, and float64 for those of float64, else float32."""
    if isinstance(net, Charges):
        return net.device, net.value_dtype
    parameters = list(net.parameters()) if isinstance(net, nn.Module) else []
    device = parameters[0].device if parameters else torch.device("cpu")
    double = any(p.dtype == torch.float64 for p in parameters)
    return device, torch.float64 if double else torch.float32


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
    labels: Tensor | None = None,  # (B,)
    temperature: float = 1.0,
    record: bool = False,
    progress: bool = False,
    cuda_graph: bool = False,
    **options: Any,
) -> Samples:
    """Draw samples by integrating the method's ODE from its prior to the data.

    net: net(x, z) → (v_x (B, *shape), v_z (B,)), such as `nn.DDPMpp`, or Charges: the true field, no network (then one
        evaluation is one field). A module is put in evaluation mode meanwhile.
    solver: "euler" (steps evaluations), "heun" (2 steps − 1), "rk45" (adaptive; `rtol`, `atol` as options); for the SDEs also
        "euler_maruyama", "reverse_diffusion" (steps) and "predictor_corrector" (2 steps; `snr`). steps: ≥ 1, log-spaced in z
        for PFGM.
    z_max, z_min: where the ODE starts and ends; None: the method's (PFGM: 40 and 1e-3).
    x0: the start instead of a draw from the prior, which is float64 for a network of float64, else float32. generator: for the prior (and the noise of a stochastic solver).
    method: hyper-parameters, default PFGM(). labels: (B,) classes.
    temperature: > 0, a factor on the start, drawn or given: below 1 samples are more alike (arXiv 2209.11178, section 4.3).
    record: keep the path. progress: a tqdm bar.
    cuda_graph: PFGM's Euler steps, network and update, captured once on the device and replayed for each step (no bar then). Where that
        cannot be, the same steps run one by one, and `Samples.graph` says why. To replay one graph for many batches, keep a
        `sampling_graph.EulerGraph`.

    Raises: ArgumentError for bad shapes, steps, solver, z_min ≥ z_max; SolverError where rk45 cannot go on. Samples that are not finite
    are returned as such.
    """
    method = _with_ends(method or PFGM(), z_max, z_min)
    solve = find_solver(solver)
    if not callable(net) and not isinstance(net, Charges):
        raise ArgumentError(f"net must be callable as net(x, z), or Charges; got {type(net).__name__}")
    shape = tuple(shape)
    if x0 is None:
        device, dtype = _home(net)
        x0 = method.prior(shape, device=device, dtype=dtype, generator=generator)
    x = checks.batch("x0", x0)
    if checks.positive("temperature", temperature) != 1:
        x = temperature * x
    if tuple(x.shape) != shape:
        raise ArgumentError(f"x0 must have shape {shape}; got {tuple(x.shape)}")
    if labels is not None:
        labels = checks.index("labels", labels, x)
    counted = Counted(net) if not isinstance(net, Charges) else None
    flow = method.flow(net if counted is None else counted, labels)
    if counted is None:
        counted = Counted(flow.evaluate)
        flow.evaluate = counted  # type: ignore[method-assign]
    times = flow.grid(steps)
    reason = "record=True looks at every step" if cuda_graph and record else None
    if cuda_graph and not record:
        with evaluation_mode(net):
            graph = euler_graph(net, method, solver, x, labels, steps)
            if not isinstance(graph, str):
                return Samples(graph(x, times), steps, graph=graph.reason or "captured")
        reason = graph
    path = [(times[0], x.clone())] if record else []
    if solver in STOCHASTIC:
        options["generator"] = generator
    total = None if solver == "rk45" else steps
    with evaluation_mode(net), torch.no_grad(), tqdm(total=total, disable=not progress) as bar:

        def on_step(x: Tensor, t: float) -> None:
            bar.update()
            bar.set_postfix(t=f"{t:.3g}", nfe=counted.count, refresh=False)
            if record:
                path.append((t, x.clone()))

        x = solve(flow, x, times, on_step, **options)
    return Samples(x, counted.count, path, reason)


def _with_ends(method: Method, z_max: float | None, z_min: float | None) -> Any:
    ends = {k: v for k, v in (("z_max", z_max), ("z_min", z_min)) if v is not None}
    if not ends:
        return method
    if not hasattr(method, "z_max"):
        raise ArgumentError(f"z_max and z_min do not belong to the method {method.name!r}")
    return replace(method, **ends)  # type: ignore[type-var]
