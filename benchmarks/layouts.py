"""A network's update and evaluation by memory layout and precision: what the presets' `channels_last` and `precision` rest on.

    python -m benchmarks.layouts [digits mnist cifar10] [--device cuda] [--batch 128] [--rounds 5] [--out out/bench/layouts.json]

One forward and backward pass with Adam at the preset's batch (or --batch), and an evaluation of as many images without gradients; random images, the
networks' own operators, one network in turn for each combination, ratios as medians of the rounds' ratios to float32 contiguous. `tf32`
is the GPU's short product for float32 tensors, which nothing here sets by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_timing import measure
from benchmarks.report import machine
from pfgm_fast.files import write_beside
from pfgm_fast.nn import DDPMpp
from pfgm_fast.presets import preset

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@contextlib.contextmanager
def precision(kind: str, device: torch.device) -> Any:
    """float32, tf32 (a GPU's) or bfloat16 under autocast, within."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def passes(
    name: str, layout: torch.memory_format, kind: str, device: torch.device, batch: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(an update, an evaluation) of the preset's network."""
    torch.manual_seed(0)
    config = preset(name)
    net = DDPMpp(config.network).to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    x = torch.randn(batch, *config.network.shape, device=device)
    z = torch.linspace(0.1, 10.0, batch, device=device)

    def update() -> None:
        net.train()
        with precision(kind, device):
            vx, vz = net(x, z)
            loss = vx.float().square().mean() + vz.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluation() -> None:
        net.eval()
        with precision(kind, device):
            net(x, z)

    return update, evaluation


def table(name: str, device: torch.device, batch: int | None, rounds: int) -> list[dict[str, Any]]:
    """One row a combination: images a second, and the speedup against float32 contiguous, of both passes."""
    batch = batch or preset(name).train.batch
    kinds = ("float32", "tf32", "bfloat16") if device.type == "cuda" else ("float32", "bfloat16")
    both = {
        f"{kind}, {layout}": passes(name, format_, kind, device, batch)
        for kind in kinds
        for layout, format_ in LAYOUTS.items()
    }
    rows = []
    found = [measure({k: v[i] for k, v in both.items()}, device, rounds, budget=0.5) for i in range(2)]
    first = next(iter(both))
    for combination in both:
        row: dict[str, Any] = {"preset": name, "batch": batch, "what": combination}
        for what, times in zip(("update", "evaluation"), found, strict=True):
            ratios = [a / b for a, b in zip(times[first].rounds, times[combination].rounds, strict=True)]
            row |= {
                f"{what} images/s": batch / times[combination].median,
                f"{what} speedup": sorted(ratios)[len(ratios) // 2],
            }
        rows.append(row)
    return rows


def markdown(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}.",
        "",
        "| network, batch | layout and precision | update, images/s | speedup | evaluation, images/s | speedup |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = [
            f"{row[f'{what} images/s']:.4g} | {row[f'{what} speedup']:.2f}"
            for what in ("update", "evaluation")
        ]
        lines.append(f"| {row['preset']}, {row['batch']} | {row['what']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("presets", nargs="*", default=["digits", "mnist"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/bench/layouts.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["cpu"]
    facts = machine() | {"device": name}
    rows = []
    for which in options.presets:
        rows += table(which, device, options.batch, options.rounds)
    print(markdown(facts, rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_beside(options.out, (json.dumps(facts | {"rows": rows}, indent=1) + "\n").encode())
    write_beside(
        options.out.with_suffix(".md"),
        f"# Layout and precision of networks\n\n{markdown(facts, rows)}".encode(),
    )


if __name__ == "__main__":
    main()
