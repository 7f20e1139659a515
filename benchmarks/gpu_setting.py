"""What the GPU table's cases share: the setting, the images, a row of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_timing import Measured

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """device; tiny: rehearse on small shapes; data: a path that pfgm_fast.data reads, or None."""

    device: torch.device
    tiny: bool = False
    data: str | None = None

    def scaled(self, value: int, small: int) -> int:
        return min(value, small) if self.tiny else value

    def ours(self) -> list[str]:
        """The backends that are compared; the first is what the ratios are of."""
        return ["cuda", "triton"] if self.device.type == "cuda" else ["reference"]


def row(what: str, took: Measured, **more: Any) -> dict[str, Any]:
    return {"what": what, "ms": took.median * 1e3, "p20": took.low * 1e3, "p80": took.high * 1e3, **more}


@cache
def read_ahead(path: str) -> Future[np.ndarray]:
    """Begin to decode the images at `path`, in a process of its own: cases that need none are measured meanwhile."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn")).submit(_decoded, path)


def _decoded(path: str) -> np.ndarray:
    """(M, N) bytes."""
    from pfgm_fast import data

    return data.load(path).images.flatten(1).numpy()


def images(setting: Setting, count: int, dim: int) -> Tensor:
    """(count, dim) bytes: the given data where they fit, else random fields with natural images' 1/f spectrum."""
    if setting.data and dim == 3072:
        flat = torch.from_numpy(read_ahead(setting.data).result())
        if len(flat) >= count and flat.shape[1] == dim:
            return flat[:count].to(setting.device)
    side = max(2, math.ceil(math.sqrt(dim / 3)))
    generator = torch.Generator(setting.device).manual_seed(0)
    axis = torch.fft.fftfreq(side, device=setting.device)
    amplitude = 1 / (axis[:, None].square() + axis.square() + (1 / side) ** 2).sqrt()
    out = torch.empty(count, dim, dtype=torch.uint8, device=setting.device)
    for part in out.split(max(1, (1 << 27) // (3 * side * side))):
        noise = torch.randn(len(part), 3, side, side, device=setting.device, generator=generator)
        field = torch.fft.ifft2(torch.fft.fft2(noise) * amplitude).real
        field = 0.8 * field.mean(1, keepdim=True) + 0.3 * field
        part.copy_((120 + 62 * field / field.std()).clamp(0, 255).flatten(1)[:, :dim])
    return out
