"""An update's forward and backward passes, captured once as a CUDA graph and replayed: an update of a network whose kernels are short is
bound by the host, which then launches one graph instead of thousands of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM = 3
"""Passes before the capture: what is built, chosen or allocated on first use must not fall into it."""

Replay = Callable[[], None]


def cuda_graph(run: Callable[[], None], generators: Sequence[torch.Generator]) -> Replay:
    """Capture `run` on the current CUDA device; every replay draws on as `run` itself would. Raises: RuntimeError."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class CapturedPasses:
    """`passes(images, rows, labels)` does what `function` does: losses (B,) of its arguments, and their gradients in the parameters' `grad`.

    function: (images (B, …), rows (B,) int64, labels (B,) or None) → losses (B,), after a backward pass of its own; the host must not wait
    in it, and everything else that it reads stays where it is.
    parameters: whose gradients these are. They stay in the same memory from the capture on, so they must not be set to None, and
    every replay writes them anew.
    generator: of the function's draws, besides the device's own (dropout). Capturing changes the state of neither.
    record: what captures (`cuda_graph`).

    The first call captures, for the shapes and dtypes of its arguments. Raises: RuntimeError where the capture fails, which ends the
    process's use of the device; ValueError for arguments of another shape.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        parameters: Sequence[torch.nn.Parameter],
        generator: torch.Generator,
        record: Callable[[Callable[[], None], Sequence[torch.Generator]], Replay] = cuda_graph,
    ) -> None:
        self._function, self._parameters = function, parameters
        self._generator, self._record = generator, record
        self._inputs: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._losses: Tensor | None = None
        self._replay: Replay | None = None

    def __call__(self, images: Tensor, rows: Tensor, labels: Tensor | None) -> Tensor:
        given = (images, rows, labels)
        if self._inputs is None:
            self._inputs = images.clone(), rows.clone(), None if labels is None else labels.clone()
            self._replay = self._capture()
        for mine, new in zip(self._inputs, given, strict=True):
            if mine is None or new is None or mine.shape != new.shape:
                if mine is new:
                    continue
                raise ValueError("a captured update takes batches of one shape, with labels always or never")
            mine.copy_(new)
        assert self._replay is not None and self._losses is not None
        self._replay()
        return self._losses

    def _run(self) -> None:
        assert self._inputs is not None
        self._losses = self._function(*self._inputs).detach()

    def _capture(self) -> Replay:
        device = self._generator.device
        drawn = self._generator.get_state()
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
            if device.type == "cuda":
                side = torch.cuda.Stream(device)
                side.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(side):
                    self._warm()
                torch.cuda.current_stream(device).wait_stream(side)
            else:
                self._warm()
        self._generator.set_state(drawn)
        return self._record(self._run, [self._generator])

    def _warm(self) -> None:
        for _ in range(WARM):
            self._run()
            self._forget()

    def _forget(self) -> None:
        """Gradients are None where the backward pass begins: it then puts its own tensors there instead of adding to others."""
        for parameter in self._parameters:
            parameter.grad = None
