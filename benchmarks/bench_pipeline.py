"""The whole pipeline in images per second: a training step and a sampler's step, ours against the plain pipeline.

    python -m benchmarks.bench_pipeline [digits mnist] [--rounds 7] [--out out/bench/pipeline.json]

Plain: float32, contiguous, the same UNet in plain PyTorch, the target by the authors' broadcast formula over M = 4096 charges at most (of the
digits all 1,797), Adam and the average by loops over the parameters, the ODE's step in plain PyTorch. Ours: bfloat16 under autocast, channels
last, the target over all charges, fused Adam, one list operation for the average, the fused step. One thread; rounds are interleaved, and a
speedup is the median of the rounds' ratios. MNIST's images are drawn at random here: times do not depend on what they show.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks.commit import commit
from benchmarks.plain_network import plain
from pfgm_fast import peers, timing
from pfgm_fast.files import write_beside
from pfgm_fast.methods import PFGM
from pfgm_fast.nn import DDPMpp
from pfgm_fast.presets import preset

AUTHORS_CHARGES = 4096
DATA = {"digits": 1797, "mnist": 60_000}
"""Preset → charges M."""
DECAY = 0.999


def _network(name: str) -> DDPMpp:
    torch.manual_seed(0)
    return DDPMpp(preset(name).network)


def training(name: str) -> dict[str, Callable[[], Any]]:
    """One update at the preset's batch: perturbation, target, forward, backward, Adam, average."""
    config, draw = preset(name), torch.Generator().manual_seed(0)
    charges = pf.Charges(
        torch.randint(0, 256, (DATA[name], *config.network.shape), generator=draw, dtype=torch.uint8)
    )
    method, index = PFGM.from_data(charges), torch.arange(config.train.batch)
    images, subset = charges.values(index), charges.values(slice(0, AUTHORS_CHARGES)).flatten(1)

    def step(net: torch.nn.Module, ours: bool) -> Callable[[], None]:
        average = [p.detach().clone() for p in net.parameters()]
        optimizer = torch.optim.Adam(
            net.parameters(), lr=1e-4, fused=ours, foreach=False if not ours else None
        )

        def run() -> None:
            if ours:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = method.loss(net, images, index, charges, draw).mean()
            else:
                x, z = method.perturb(images, draw)
                target, target_z = peers.authors_target(x.flatten(1), z, subset, method.gamma)
                vx, vz = net(x, z)
                squares = (vx.flatten(1) - target).square().sum(1) + (vz - target_z).square()
                loss = squares.mean() / (charges.dim + 1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                if ours:
                    torch._foreach_lerp_(average, list(net.parameters()), 1 - DECAY)
                else:
                    for mine, weight in zip(average, net.parameters(), strict=True):
                        mine.mul_(DECAY).add_(weight, alpha=1 - DECAY)

        return run

    net = _network(name)
    return {
        "ours": step(_network(name).to(memory_format=torch.channels_last), True),
        "plain": step(plain(net), False),
    }


def sampling(name: str) -> dict[str, Callable[[], Any]]:
    """Three Euler steps of 64 images."""
    net, shape, method = _network(name).eval(), (64, *preset(name).network.shape), PFGM()
    fast, slow = _network(name).eval().to(memory_format=torch.channels_last), plain(net)
    x0 = method.prior(shape, generator=torch.Generator().manual_seed(1))
    grid = method.grid(3)

    def ours() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return pf.sample(fast, shape, steps=3, x0=x0, method=method).x

    @torch.no_grad()
    def theirs() -> Tensor:
        x = x0
        for z, z_next in pairwise(grid):
            vx, vz = slow(x, torch.full((len(x),), z))
            x = peers.plain_euler(x.flatten(1), vx.flatten(1), vz, z, z_next).view(shape)
        return x

    return {"ours": ours, "plain": theirs}


CASES = {
    "training": (training, {"digits": 1.7, "mnist": 2.0}),
    "sampling": (sampling, {"digits": 1.5, "mnist": 1.8}),
}
"""What is timed → how it is set up, and the speedup that is asked for, by preset."""


def measured(name: str, what: str, rounds: int) -> dict[str, Any]:
    setup, bars = CASES[what]
    found = timing.interleaved(setup(name), rounds=rounds)
    images = preset(name).train.batch if what == "training" else 3 * 64
    row = {"preset": name, "what": what, "speedup": found["plain"].ratio, "bar": bars[name]}
    return row | {f"{who} images/s": images / found[who].seconds for who in ("ours", "plain")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("presets", nargs="*", default=list(DATA))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("out/bench/pipeline.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.presets:
        for what in CASES:
            rows.append(measured(name, what, options.rounds))
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "processor": timing.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "threads": 1,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_beside(options.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
