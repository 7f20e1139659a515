"""How the cost of a call grows with M, N, B and ranks, against what the plan of docs/scale.md counts: its operations and its bytes sent.

The plan's count: a call is two products of B × M × N at most, 4·B·M·N operations, so its time is that over a rate, plus what a call costs
in itself. One thread. The rate and the fixed cost are fitted to one sweep (over M); the other sweeps are predicted from it and compared.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pfgm_fast as pf
from tests import forked

SWEEPS: dict[str, list[tuple[int, int, int]]] = {
    "M": [(64, m, 64) for m in (1_000, 10_000, 100_000, 1_000_000)],
    "N": [(32, 256, n) for n in (2, 16, 128, 1024, 8192, 65_536, 196_608)],
    "B": [(b, 4096, 256) for b in (1, 10, 100, 1000, 10_000)],
}
"""(B, M, N)."""
RANKS = (256, 40_000, 256)
KINDS = {"one charge": 0.05, "spread": 60.0}
"""σ of the queries' noise, in the data's units: one charge has all the weight, or very many have some."""


def queries(charges: pf.Charges, count: int, sigma: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(len(charges), (count,), generator=generator)
    return charges.values(rows) + sigma * torch.randn(count, charges.dim, generator=generator)


def random_bytes(count: int, dim: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, dim), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seconds(call: Any, budget: float = 0.6) -> float:
    """The least of up to 30 calls, within a budget of time, after one that is not counted: others' work on the machine only adds."""
    call()
    times: list[float] = []
    while not times or (len(times) < 30 and sum(times) < budget):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def sweeps() -> list[dict[str, Any]]:
    rows = []
    for name, points in SWEEPS.items():
        for batch, count, dim in points:
            charges = pf.Charges(random_bytes(count, dim))
            for kind, sigma in KINDS.items():
                x = queries(charges, batch, sigma)
                taken = seconds(lambda x=x, c=charges, s=sigma: pf.posterior_mean(x, s, c, math.inf))
                rows.append(
                    {"sweep": name, "B": batch, "M": count, "N": dim, "queries": kind, "seconds": taken}
                )
    return rows


def main(rank: int, folder: Path) -> None:
    """On 1 to 4 ranks of one thread each: `tests.forked`."""
    batch, count, dim = RANKS
    whole = pf.Charges(random_bytes(count, dim))
    x = {kind: queries(whole, batch, sigma) for kind, sigma in KINDS.items()}
    rows = []
    for size in (1, 2, 3, 4):
        if rank < size:
            with forked.group(folder, f"scale-{size}", rank, size):
                spread = whole.shard()
                for kind, sigma in KINDS.items():
                    before = spread.ranks.sent
                    pf.posterior_mean(x[kind], sigma, spread, math.inf)
                    sent = sum(spread.ranks.objects(spread.ranks.sent - before))
                    times = []
                    for _ in range(9):
                        dist.barrier()
                        began = time.perf_counter()
                        pf.posterior_mean(x[kind], sigma, spread, math.inf)
                        dist.barrier()
                        times.append(time.perf_counter() - began)
                    taken = min(times)
                    rows.append(
                        {"sweep": "ranks", "ranks": size, "B": batch, "M": count, "N": dim, "queries": kind, "seconds": taken, "sent": sent}
                    )  # fmt: skip
    if rank == 0:
        (folder / "ranks.json").write_text(json.dumps(rows))


def survivors() -> list[dict[str, Any]]:
    """Share of the charges that the components' bound leaves, as M, N and σ grow: Gaussian data whose spectrum falls as images' does.

    Standard deviation of component i ∝ 1/i; ‖y‖²/N is that of images in [−1, 1] (σ_data = 0.5). A charge is left out where its lower bound
    ‖P(x − y)‖² + (‖Qx‖ − ‖Qy‖)² exceeds the nearest charge's ‖x − y‖² by 2σ²(ln M + 24 ln 2): all that are left out weigh 2⁻²⁴ at most.
    """
    rows = []
    for dim in (256, 1024, 4096):
        scale = 1 / torch.arange(1, dim + 1, dtype=torch.float32)
        scale *= 0.5 * math.sqrt(dim) / scale.norm()
        for count in (1_000, 4_000, 16_000):
            generator = torch.Generator().manual_seed(dim + count)
            data = torch.randn(count, dim, generator=generator) * scale
            for sigma in (0.5, 1.0, 2.0, 4.0):
                x = data[:16] + sigma * torch.randn(16, dim, generator=generator)
                nearest = torch.cdist(x, data, compute_mode="use_mm_for_euclid_dist").square().min(1).values
                for kept in (32, 128):
                    rest = x[:, kept:].norm(dim=1)[:, None] - data[:, kept:].norm(dim=1)
                    bound = torch.cdist(x[:, :kept], data[:, :kept]).square() + rest.square()
                    reach = nearest + 2 * sigma**2 * (math.log(count) + 24 * math.log(2))
                    share = (bound <= reach[:, None]).float().mean(1)
                    rows.append(
                        {"sweep": "survivors", "M": count, "N": dim, "sigma": sigma, "K": kept, "share": float(share.median())}
                    )  # fmt: skip
    return rows


def run(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a rank's, so that all sweeps compare
    for left in folder.glob("store-*"):
        left.unlink()
    rows = sweeps()
    done = forked.run(4, "benchmarks.scale", folder)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    rows += json.loads((folder / "ranks.json").read_text())
    return rows + survivors()


def predicted(rows: list[dict[str, Any]], kind: str) -> tuple[float, float]:
    """Operations a second, and seconds of a call in itself: from the largest and the smallest point of the sweep over M."""
    swept = [row for row in rows if row["sweep"] == "M" and row["queries"] == kind]
    first, last = swept[0], swept[-1]
    count = [4 * row["B"] * row["M"] * row["N"] for row in (first, last)]
    rate = (count[1] - count[0]) / (last["seconds"] - first["seconds"])
    return rate, max(0.0, first["seconds"] - count[0] / rate)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Times over M, N, B and ranks, with the plan's count as lines; what survives over M."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = dict(zip(KINDS, ("C0", "C1"), strict=True))
    figure, axes = plt.subplots(1, 5, figsize=(19, 3.6), constrained_layout=True)
    for axis, name in zip(axes, ("M", "N", "B", "ranks"), strict=False):
        for kind, color in colors.items():
            swept = [row for row in rows if row["sweep"] == name and row["queries"] == kind]
            x, y = [row[name] for row in swept], [row["seconds"] for row in swept]
            axis.plot(x, y, "o", color=color, label=kind)
            rate, fixed = predicted(rows, kind)
            line = [fixed + 4 * row["B"] * row["M"] * row["N"] / rate for row in swept]
            if name == "ranks":
                line = [y[0] / size for size in x]
            axis.plot(x, line, "-", color=color, alpha=0.5)
        axis.set(xlabel=name, ylabel="seconds a call", yscale="log")
        if name != "ranks":
            axis.set_xscale("log")
        fixed_sizes = {key: swept[0][key] for key in ("B", "M", "N") if key != name}
        axis.set_title(", ".join(f"{key} = {value:,}" for key, value in fixed_sizes.items()), fontsize=9)
    axes[0].legend(fontsize=8)
    last = axes[-1]
    for sigma in (0.5, 1.0, 2.0, 4.0):
        swept = [
            r
            for r in rows
            if r["sweep"] == "survivors" and r["sigma"] == sigma and r["K"] == 128 and r["N"] == 4096
        ]
        last.plot([r["M"] for r in swept], [100 * r["share"] for r in swept], "o-", label=f"σ = {sigma}")
    last.set(xlabel="M", ylabel="charges left, %", xscale="log")
    last.set_title("the bound of 128 components, N = 4,096", fontsize=9)
    last.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)
