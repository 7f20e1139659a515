"""pfgm-fast bench: the kernels against plain PyTorch, on this machine, on sizes of one's choice."""

from __future__ import annotations

import argparse
from typing import Any

from pfgm_fast.cli.options import add_device, device, positive

AUTHORS_LIMIT = 1 << 31
"""Bytes that the broadcast formula may take here; beyond, its row says what it would need."""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "bench",
        help="the field kernel and the fused step against plain PyTorch, here",
        description="Times pfgm_target and euler_step against plain PyTorch on queries of the training distribution: "
        "interleaved in one run, medians. Errors are those of the unit direction against float64.",
    )
    command.add_argument("--batch", type=positive, default=128, help="queries B (default 128)")
    command.add_argument("--charges", type=positive, default=4096, help="charges M (default 4096)")
    command.add_argument("--dim", type=positive, default=3072, help="dimension N (default 3072)")
    command.add_argument("--data", help="real images instead of random bytes: M and N are then the data's")
    command.add_argument(
        "--rounds", type=positive, default=7, help="rounds to take the median of (default 7)"
    )
    add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import torch

    from pfgm_fast import Charges, data
    from pfgm_fast.methods import PFGM

    where = device(options)
    generator = torch.Generator().manual_seed(0)
    if options.data:
        images = data.load(options.data).images.flatten(1)
    else:
        images = torch.randint(0, 256, (options.charges, options.dim), dtype=torch.uint8, generator=generator)
    charges = Charges(images.to(where))
    rows = torch.randint(len(charges), (options.batch,), generator=generator).to(where)
    x, z = PFGM().perturb(charges.values(rows), torch.Generator(where).manual_seed(1))
    print(
        f"B = {len(x)}, M = {len(charges)}, N = {charges.dim} on {where}, {torch.get_num_threads()} threads\n"
    )
    for line in [*field_table(x, z, charges, options.rounds), "", *step_table(x, options.rounds)]:
        print(line)


def field_table(x: Any, z: Any, charges: Any, rounds: int) -> list[str]:
    """Lines of a Markdown table: the target by our kernel (bytes and floats), by plain PyTorch, by the broadcast formula."""
    import torch

    from pfgm_fast import Charges, peers, pfgm_target
    from pfgm_fast.timing import interleaved, milliseconds

    values = charges.values()
    floats = Charges(values)
    functions = {
        "pfgm_fast, charges as bytes": lambda: pfgm_target(x, z, charges),
        "pfgm_fast, charges as float32": lambda: pfgm_target(x, z, floats),
        "plain PyTorch (Gram product)": lambda: peers.gram_target(x, z, values),
    }
    need = 4 * x.shape[0] * len(charges) * (charges.dim + 1) * 3
    if need <= AUTHORS_LIMIT:
        functions["the authors' broadcast formula"] = lambda: peers.authors_target(x, z, values)
    exact = torch.cat(_joined(*pfgm_target(x.double(), z.double(), Charges(values.double()))), 1)
    times = interleaved(functions, rounds)
    lines = ["| field of all charges | time | against ours | direction error |", "|---|---|---|---|"]
    for name, function in functions.items():
        got = torch.cat(_joined(*function()), 1).double()
        error = float(
            (torch.nn.functional.normalize(got) - torch.nn.functional.normalize(exact)).norm(dim=1).max()
        )
        lines.append(
            f"| {name} | {milliseconds(times[name].seconds)} | {times[name].ratio:.3g}× | {error:.1e} |"
        )
    if need > AUTHORS_LIMIT:
        lines.append(f"| the authors' broadcast formula | would take {need / 2**30:.1f} GiB | | |")
    return lines


def step_table(x: Any, rounds: int) -> list[str]:
    """Lines of a Markdown table: one Euler step, fused and as it is written in plain PyTorch."""
    import torch

    from pfgm_fast import euler_step, peers
    from pfgm_fast.timing import interleaved, milliseconds

    vx, vz, out = torch.randn_like(x) * 0.3, -torch.rand(len(x), device=x.device) - 0.5, torch.empty_like(x)
    functions = {
        "pfgm_fast.euler_step": lambda: euler_step(x, vx, vz, 1.0, 0.9, out=out),
        "plain PyTorch": lambda: peers.plain_euler(x, vx, vz, 1.0, 0.9),
        "x + v alone": lambda: torch.add(x, vx, out=out),
    }
    times = interleaved(functions, rounds)
    lines = ["| Euler step below z = 5 | time | against ours |", "|---|---|---|"]
    for name, timing in times.items():
        lines.append(f"| {name} | {milliseconds(timing.seconds)} | {timing.ratio:.3g}× |")
    return lines


def _joined(vx: Any, vz: Any) -> list[Any]:
    return [vx.flatten(1), vz[:, None]]
