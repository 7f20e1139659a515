"""The cases of the GPU table, one function each: it prepares, checks the errors, measures, and yields rows (dicts)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pfgm_fast as pf
from benchmarks import gpu_pipeline
from benchmarks.gpu_setting import Rows, Setting, images, row
from benchmarks.gpu_timing import Function, graphed, measure, ratio
from pfgm_fast import peers
from pfgm_fast.backends.cuda import hopper_path
from pfgm_fast.ops.dispatch import backend, status

WITHOUT_HOPPER = "cuda, without Hopper"
"""The CUDA backend with PFGM_FAST_CUDA_HOPPER=0, beside its default."""

BAR = 1e-5
"""Largest error of the unit direction against float64 with which a time may stand."""


FIELDS = {
    "target 4096 x 4096 x 2": (4096, 4096, 2, "float32", False),
    "target 64 x 60000 x 784": (64, 60000, 784, "bytes", False),
    "target 16 x 16384 x 196608": (16, 16384, 196608, "bytes", False),
    "target 128 x 4096 x 3072": (128, 4096, 3072, "bytes", False),
    "target 128 x 50000 x 3072": (128, 50000, 3072, "bytes", False),
    "target 1024 x 50000 x 3072": (1024, 50000, 3072, "bytes", False),
    "target 128 x 50000 x 3072, all spread": (128, 50000, 3072, "bytes", True),
    "target 128 x 4096 x 3072, float charges": (128, 4096, 3072, "float32", False),
}
"""B, M, N, what the charges are, whether all weights are spread; those of the given images later, when these are decoded."""


def cases(setting: Setting) -> dict[str, Callable[[], Rows]]:
    """name → case, the rooflines first: other cases refer to them. What takes longest comes last."""
    roof = Roof(setting)
    table: dict[str, Callable[[], Rows]] = {"roofline": roof.measure}
    for batch, dim in ((8192, 3072), (256, 196608)):
        table[f"Euler step {batch} x {dim}"] = partial(
            euler_step, setting, roof, setting.scaled(batch, 8), setting.scaled(dim, 9000)
        )
    for name, (batch, count, dim, kind, spread) in FIELDS.items():
        shape = (setting.scaled(batch, 8), setting.scaled(count, 64), setting.scaled(dim, 192))
        table[name] = partial(target, setting, roof, *shape, kind, spread)
    table["training step, DDPM++ 32 x 32, batch 128"] = partial(gpu_pipeline.training_step, setting)
    table["Euler sampler, DDPM++ 32 x 32, batch 16"] = partial(gpu_pipeline.sampler, setting)
    return table


# ---- rooflines -----------------------------------------------------------------------------------------------------------


class Roof:
    """What this machine reaches in this run: bytes/s of a large copy (read + written), operations/s of large products."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.copy = setting, math.nan

    def measure(self) -> Rows:
        yield self._copy()
        for dtype in (torch.bfloat16, torch.float32, torch.int8):
            yield self._product(dtype)

    def _copy(self) -> dict[str, Any]:
        device, size = self.setting.device, self.setting.scaled(1 << 31, 1 << 22)
        try:
            source = torch.empty(size, dtype=torch.uint8, device=device).random_()
            target = torch.empty_like(source)
            took = measure({"copy": lambda: target.copy_(source)}, device, budget=0.3)["copy"]
        except Exception as broken:
            return {"what": "copy of 2 GiB", "note": f"no ceiling: {_said(broken)}"}
        self.copy = 2 * size / took.median
        return row("copy of 2 GiB", took, rate=self.copy / 1e12, unit="TB/s")

    def _product(self, dtype: torch.dtype) -> dict[str, Any]:
        """a @ bᵀ with both operands contiguous along the contracted dimension: the one layout in which cuBLAS takes int8 on every
        device. A ceiling that a device does not give is a missing ceiling, and says why."""
        n = self.setting.scaled(8192, 64)
        what = f"{str(dtype).removeprefix('torch.')} product of {n}"
        try:
            a, b = (torch.randn(n, n, device=self.setting.device) for _ in range(2))
            if dtype == torch.int8:
                a, b = (a * 30).to(dtype), (b * 30).to(dtype)
                product = partial(torch._int_mm, a, b.t())
            else:
                product = partial(torch.matmul, a.to(dtype), b.to(dtype).t())
            took = measure({"product": product}, self.setting.device, rounds=5, budget=0.2)["product"]
        except Exception as broken:
            return {"what": what, "note": f"no ceiling: {_said(broken)}"}
        return row(what, took, rate=2 * n**3 / took.median / 1e12, unit="Tops/s")


def _said(broken: Exception) -> str:
    return f"{type(broken).__name__}: {str(broken)[:120]}"


# ---- the field -----------------------------------------------------------------------------------------------------------


def target(
    setting: Setting, roof: Roof, batch: int, count: int, dim: int, kind: str, spread: bool = False
) -> Rows:
    """pfgm_target on queries of the paper's perturbation (spread: m = 285 for every query)."""
    from pfgm_fast.methods import PFGM

    device = setting.device
    if kind == "bytes":
        charges = pf.Charges(images(setting, count, dim))
    else:
        charges = pf.Charges(
            torch.randn(count, dim, device=device, generator=torch.Generator(device).manual_seed(3))
        )
    source = torch.arange(batch, device=device) % count
    method = PFGM()
    x, z = method.perturb(charges.values(source), torch.Generator(device).manual_seed(1))
    if spread:
        growth = 0.01 * (1 + method.tau) ** 285
        x, z = (
            charges.values(source) + growth * torch.randn(batch, dim, device=device),
            torch.full((batch,), growth, device=device),
        )
    rows = torch.linspace(0, batch - 1, min(batch, 8 if dim < 100_000 else 2)).long().to(device)
    expected = exact_direction(x[rows], z[rows], charges)

    functions: dict[str, Function] = {}
    found: list[dict[str, Any]] = []
    for name in setting.ours():
        reason = (
            status()[name]
            if status()[name] != "ok"
            else backend(name).refuses("poisson_field", x, charges.flat)
        )
        if reason is not None:
            found.append({"what": name, "note": reason})
            continue
        functions[name] = partial(_with_backend, name, x, z, charges)
    if "cuda" in functions and kind == "bytes" and hopper_path(device):
        functions[WITHOUT_HOPPER] = partial(_without_hopper, x, z, charges)
    need = {
        "Gram, cuBLAS float32": 4 * (count * dim + 3 * batch * count),
        "the authors' formula": 12 * batch * count * (dim + 1),
    }
    values = charges.values() if need["Gram, cuBLAS float32"] < 60 << 30 else None
    for name, peer in (
        ("Gram, cuBLAS float32", peers.gram_target),
        ("the authors' formula", peers.authors_target),
    ):
        if values is None or need[name] > _memory(setting):
            found.append(
                {"what": name, "note": f"does not fit: would need about {need[name] / 2**30:.0f} GiB"}
            )
        else:
            functions[name] = partial(peer, x, z, values)

    gate: dict[str, dict[str, Any]] = {}
    for name, function in list(functions.items()):
        try:
            vx, vz = function()
        except torch.OutOfMemoryError:
            found.append({"what": name, "note": "out of memory"})
            del functions[name]
            continue
        except Exception as broken:  # one alternative that breaks leaves the others their times
            said = _said(broken)
            found.append({"what": name, "note": said, "failed": name in (*setting.ours(), WITHOUT_HOPPER)})
            del functions[name]
            continue
        error = float((_direction(vx[rows], vz[rows]) - expected).norm(dim=1).max())
        ours = name in (*setting.ours(), WITHOUT_HOPPER)
        gate[name] = {"error": error, "failed": ours and not error <= BAR}
        del vx, vz
        if gate[name]["failed"]:  # a wrong result has no time
            found.append({"what": name, "note": f"error {error:.1e} above {BAR:.0e}", **gate[name]})
            del functions[name]
    first = next(iter(functions), None)
    for name in [
        n for n in (first, WITHOUT_HOPPER) if n in functions and n in (*setting.ours(), WITHOUT_HOPPER)
    ]:
        replay = graphed(functions[name], device)
        if replay is not None:
            functions[f"{name}, graph"], gate[f"{name}, graph"] = replay, gate[name]
    times = measure(functions, device, rounds=9, budget=0.25)
    read = charges.flat.numel() * charges.flat.element_size()
    for name, took in times.items():
        extra = {"speedup": ratio(took, times[first])} if first else {}
        yield row(name, took, **gate[name], **extra, share_of_copy=read / took.median / roof.copy)
    yield from found


def _with_backend(name: str, x: Tensor, z: Tensor, charges: pf.Charges) -> tuple[Tensor, Tensor]:
    with pf.use_backend(name):
        return pf.pfgm_target(x, z, charges)


def _without_hopper(x: Tensor, z: Tensor, charges: pf.Charges) -> tuple[Tensor, Tensor]:
    os.environ["PFGM_FAST_CUDA_HOPPER"] = "0"
    try:
        return _with_backend("cuda", x, z, charges)
    finally:
        del os.environ["PFGM_FAST_CUDA_HOPPER"]


def _memory(setting: Setting) -> int:
    return torch.cuda.get_device_properties(0).total_memory if setting.device.type == "cuda" else 4 << 30


def _direction(vx: Tensor, vz: Tensor) -> Tensor:
    return torch.nn.functional.normalize(torch.cat([vx, vz[:, None]], 1).double(), dim=1)


def exact_direction(x: Tensor, z: Tensor, charges: pf.Charges) -> Tensor:
    """The unit direction of v in float64 by direct differences, charges a block at a time: −(x − m, z) normalised."""
    x, z = x.double(), z.double()
    power = -0.5 * (x.shape[1] + 1)
    squares = torch.cat(
        [
            torch.stack([(block - query).square().sum(1) for query in x])
            for block in (charges.values(i, torch.float32).double() for i in _blocks(charges))
        ],
        1,
    )
    weights = torch.softmax(power * torch.log1p(squares / (z * z)[:, None]), 1)
    field = torch.zeros_like(x)
    for i in _blocks(charges):
        block = charges.values(i, torch.float32).double()
        for query, weight, total in zip(x, weights, field, strict=True):
            total -= weight[i] @ (block - query)
    return -torch.nn.functional.normalize(torch.cat([field, z[:, None]], 1), dim=1)


def _blocks(charges: pf.Charges) -> list[slice]:
    rows = max(1, (1 << 27) // charges.dim)
    return [slice(i, min(i + rows, len(charges))) for i in range(0, len(charges), rows)]


# ---- the fused step ------------------------------------------------------------------------------------------------------


def euler_step(setting: Setting, roof: Roof, batch: int, dim: int) -> Rows:
    """Below z_exp, where the norm is needed: reads x, v, writes x; against one copy's bandwidth and plain PyTorch."""
    device = setting.device
    # Rotated among several sets of inputs that are together larger than the cache.
    sets = [torch.randn(3, batch, dim, device=device) for _ in range(3)]
    for _, v, _ in sets:
        v *= 0.3  # a field's n = ‖v‖/√N is below 1
    vz, z, z_next = (
        -torch.ones(batch, device=device),
        torch.tensor(1.0, device=device),
        torch.tensor(0.9, device=device),
    )
    turn = [0]

    def ours(name: str) -> None:
        turn[0] = (turn[0] + 1) % len(sets)
        x, v, out = sets[turn[0]]
        with pf.use_backend(name):
            pf.euler_step(x, v, vz, z, z_next, out=out)

    def plain() -> None:
        turn[0] = (turn[0] + 1) % len(sets)
        peers.plain_euler(sets[turn[0]][0], sets[turn[0]][1], vz, 1.0, 0.9)

    functions: dict[str, Function] = {
        name: partial(ours, name) for name in setting.ours() if status()[name] == "ok"
    }
    functions["plain PyTorch"] = plain
    x, v, _ = sets[0]
    from pfgm_fast.backends import reference

    expected = reference.euler_step(
        x.double(), v.double(), vz.double(), z.double(), z_next.double(), 5.0, 5.0
    )
    gates = {}
    for name in list(functions)[:-1]:
        with pf.use_backend(name):
            error = float((pf.euler_step(x, v, vz, z, z_next) - expected).norm() / expected.norm())
        gates[name] = {"error": error, "failed": not error <= 1e-6}
    times = measure(functions, device, budget=0.3)
    first = next(iter(times))
    for name, took in times.items():
        moved = 3 * 4 * batch * dim / took.median
        yield row(
            name,
            took,
            **gates.get(name, {}),
            speedup=ratio(took, times[first]),
            share_of_copy=moved / roof.copy,
        )
