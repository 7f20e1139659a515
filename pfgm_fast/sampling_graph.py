"""A sampler's Euler step, network and fused update, captured once as a CUDA graph and replayed for every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfgm_fast import steps
from pfgm_fast.charges import Charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.methods import PFGM, Method
from pfgm_fast.methods.network import Network, call_network, is_denoiser
from pfgm_fast.methods.pfgm import implied_vz
from pfgm_fast.transfer import sent


def euler_graph(
    net: Network | Charges, method: Method, solver: str, x: Tensor, labels: Tensor | None, steps: int
) -> EulerGraph | str:
    """The graph of a sample that starts at x, under the torch.autocast that holds here; or why there cannot be one."""
    if isinstance(net, Charges):
        return "the true field takes no network: its steps are single operators already"
    if not isinstance(method, PFGM):
        return f"graphs are for PFGM's Euler step, not for the method {method.name!r}"
    if is_denoiser(net):
        return "graphs are for PFGM's networks, not for denoisers"
    if solver != "euler":
        return f"graphs are for the solver 'euler', not {solver!r}"
    if x.dtype != torch.float32:
        return "graphs sample in float32"
    kind = x.device.type
    return EulerGraph(
        net,
        tuple(x.shape),
        x.device,
        labels=labels,
        gamma=method.gamma,
        z_exp=method.z_exp,
        radius=method.radius(x[0].numel()),
        autocast=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        most_steps=steps,
    )


class EulerGraph:
    """Euler's method for a network's PFGM flow, dx/dz = v_x/v_z, at one shape: `EulerGraph(net, shape, device)(x0, times)`.

    x, z, z' and the number of the step live on the device; a replay takes the next z from the grid itself, so a whole sample
    is one graph launched once a step, and nothing is copied from the host in between.

    Args:
        net: net(x (B, *shape), z (B,)[, labels]) → v_x, v_z; in evaluation mode, its parameters where they stay. Parameters that
            change in place (an optimizer's step, `load_state_dict`) are seen by the next replay.
        shape: (B, *shape). labels: (B,) classes, or None.
        gamma, z_exp: constants of the flow. radius: of the data, or None (`steps`). autocast: bfloat16 or float16 for the network, or None.
        most_steps: the longest grid less one.

    `reason` is None where a graph was captured, else why not (a CPU, or what the capture said): then the same steps run one
    by one, with the same result.
    """

    def __init__(
        self,
        net: Network,
        shape: tuple[int, ...],
        device: torch.device | str,
        *,
        labels: Tensor | None = None,
        gamma: float = 5.0,
        z_exp: float = 5.0,
        radius: float | None = None,
        autocast: torch.dtype | None = None,
        most_steps: int = 1000,
    ) -> None:
        self.net, self.labels, self.constants, self.autocast = net, labels, (gamma, z_exp), autocast
        self.radius = radius
        self.device = torch.device(device)
        self.x = torch.zeros(shape, device=self.device)
        self.grid = torch.ones(most_steps + 1, device=self.device)
        self.index = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.reason: str | None = None
        if self.device.type != "cuda":
            self.reason = f"CUDA graphs need a CUDA device, not {self.device.type}"
            return
        try:
            self.graph = self._capture()
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            self.reason = f"the capture failed: {str(error).splitlines()[0]}"

    def _capture(self) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(
                3
            ):  # what is built, chosen or allocated on first use must not fall into the capture
                self.index.zero_()
                self._step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        self.index.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            self._step()
        return graph

    def _step(self) -> None:
        z = self.grid.index_select(0, self.index)
        z_next = self.grid.index_select(0, self.index + 1)
        rows = z.expand(len(self.x))
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            vx, vz = call_network(self.net, self.x, rows, self.labels)
            vz = implied_vz(vx, rows, self.constants[0]) if vz is None else vz
        ends = z.view(()), z_next.view(())
        steps.euler_step(self.x, vx, vz, *ends, *self.constants, out=self.x, radius=self.radius)
        self.index += 1

    @torch.no_grad()
    def __call__(self, x0: Tensor, times: Sequence[float]) -> Tensor:
        """x (B, *shape) at the last of `times` (decreasing z, the first belongs to x0), float32.

        Raises: ArgumentError where x0's shape or the number of times does not fit.
        """
        if x0.shape != self.x.shape:
            raise ArgumentError(f"x0 must have shape {tuple(self.x.shape)}; got {tuple(x0.shape)}")
        if not 2 <= len(times) <= len(self.grid):
            raise ArgumentError(f"times must hold 2 to {len(self.grid)} values of z; got {len(times)}")
        self.grid[: len(times)] = sent(torch.tensor(times, dtype=self.grid.dtype, device="cpu"), self.device)
        self.index.zero_()
        self.x.copy_(x0)
        for _ in range(len(times) - 1):
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()
        return self.x.clone()
