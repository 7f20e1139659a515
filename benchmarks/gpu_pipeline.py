"""The GPU table's cases of the whole pipeline: the Euler sampler and the training step, against plain PyTorch in float32."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.gpu_setting import Rows, Setting, images, row
from benchmarks.gpu_timing import Function, measure, ratio
from pfgm_fast import peers
from pfgm_fast.training.captured import CapturedPasses


def _network(setting: Setting) -> torch.nn.Module:
    from pfgm_fast.nn import DDPMpp, UNetConfig

    torch.manual_seed(0)
    config = (
        UNetConfig(3, 8, 32, (1, 2), 1, (4,))
        if setting.tiny
        else UNetConfig(3, 32, 128, (1, 2, 2, 2), 4, (16,), dropout=0.1)
    )
    return DDPMpp(config).to(setting.device)


def sampler(setting: Setting) -> Rows:
    """Ten Euler steps: eager float32 in plain PyTorch; ours with bf16, channels-last, one CUDA graph."""
    from pfgm_fast.sampling_graph import EulerGraph

    net, side = _network(setting).eval(), 8 if setting.tiny else 32
    steps = 3 if setting.tiny else 10
    shape = (2 if setting.tiny else 16, 3, side, side)
    x0 = 40 * torch.randn(shape, device=setting.device)
    grid = torch.logspace(math.log10(40.0), -3, steps + 1).tolist()

    @torch.no_grad()
    def eager() -> Tensor:
        x = x0
        for z, z_next in pairwise(grid):
            vx, vz = net(x, torch.full((len(x),), z, device=x.device))
            x = peers.plain_euler(x, vx, vz, z, z_next)
        return x

    exact = eager()
    fast_net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    plain_graph = EulerGraph(net, shape, setting.device)
    fast_graph = EulerGraph(fast_net, shape, setting.device, autocast=torch.bfloat16)
    functions: dict[str, Function] = {
        "ours: graph, bf16, channels-last": lambda: fast_graph(x0, grid),
        "ours: graph, float32": lambda: plain_graph(x0, grid),
        "eager float32 loop": eager,
    }
    notes = {name: graph.reason for name, graph in zip(functions, (fast_graph, plain_graph), strict=False)}
    times = measure(functions, setting.device, rounds=3, budget=0.5)
    first = next(iter(times))
    for name, function in functions.items():
        error = float((function() - exact).norm() / exact.norm())
        note = {"note": f"not captured: {notes[name]}"} if notes.get(name) else {}
        yield row(name, times[name], error=error, speedup=ratio(times[name], times[first]), **note)


def training_step(setting: Setting) -> Rows:
    """Forward, backward, Adam; the target over all charges (ours), over M = 4096 by the authors' formula (eager float32)."""
    from pfgm_fast.methods import PFGM

    count, batch, side = setting.scaled(50000, 64), setting.scaled(128, 4), 8 if setting.tiny else 32
    charges = pf.Charges(images(setting, count, 3 * side * side).view(count, 3, side, side))
    subset = charges.values(slice(0, min(4096, count))).flatten(1)
    method, index = PFGM(), torch.arange(batch, device=setting.device)

    def step(net: torch.nn.Module, ours: bool) -> Function:
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=setting.device.type == "cuda" and ours)
        net.train()

        def run() -> None:
            images_ = charges.values(index)
            if ours:
                with torch.autocast(setting.device.type, torch.bfloat16):
                    loss = method.loss(net, images_, index, charges, None).mean()
            else:
                x, z = method.perturb(images_)
                vx, vz = peers.authors_target(x.flatten(1), z, subset)
                got_x, got_z = net(x, z)
                loss = ((got_x.flatten(1) - vx).square().sum(1) + (got_z - vz).square()).mean() / (
                    charges.dim + 1
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def captured(net: torch.nn.Module) -> Function:
        """The same with forward and backward passes replayed, as the trainer's `cuda_graph` has them."""
        parameters = list(net.parameters())
        optimizer = torch.optim.Adam(parameters, lr=2e-4, fused=True)
        generator = torch.Generator(setting.device).manual_seed(0)
        net.train()

        def passes(images_: Tensor, rows: Tensor, labels: Tensor | None) -> Tensor:
            with torch.autocast(setting.device.type, torch.bfloat16):
                losses = method.loss(net, images_, rows, charges, generator)
            losses.mean().backward()
            return losses

        replayed = CapturedPasses(passes, parameters, generator)

        def run() -> None:
            replayed(charges.values(index), index, None)
            optimizer.step()

        return run

    net = _network(setting)
    functions: dict[str, Function] = {}
    if setting.device.type == "cuda":
        name = "ours: all charges, bf16, channels-last, graph"
        try:
            functions[name] = captured(copy.deepcopy(net).to(memory_format=torch.channels_last))
            functions[name]()
        except RuntimeError as error:
            functions.pop(name, None)
            yield {"what": name, "note": f"not captured: {str(error).splitlines()[0]}"}
    functions |= {
        "ours: all charges, bf16, channels-last": step(
            copy.deepcopy(net).to(memory_format=torch.channels_last), True
        ),
        "eager float32, the authors' formula, M = 4096": step(net, False),
    }
    times = measure(functions, setting.device, rounds=3, budget=0.9)
    first = next(iter(times))
    for name, took in times.items():
        yield row(name, took, speedup=ratio(took, times[first]), rate=batch / took.median, unit="images/s")
