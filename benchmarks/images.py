"""The data of the benchmarks: real images where the shared data is (../shared or PFGM_FAST_SHARED), a stand-in that says so else."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_cases import Setting
from benchmarks.gpu_cases import images as natural_spectrum
from pfgm_fast import data

SHARED = Path(os.environ.get("PFGM_FAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))


class Images(NamedTuple):
    """values (M, N): bytes, or floats where the data are no bytes. what: where they come from, for the report's row."""

    values: Tensor
    what: str


def _stand_in(count: int, dim: int, instead_of: str) -> Images:
    values = natural_spectrum(Setting(torch.device("cpu")), count, dim)
    return Images(values, f"synthetic, natural spectrum ({instead_of} absent)")


@lru_cache(maxsize=1)
def _cifar10() -> Tensor | None:
    path = SHARED / "data" / "cifar10-jpeg-train.zip"
    return data.load(path).images if path.is_file() else None


def cifar10(count: int) -> Images:
    """(count, 3072) bytes, count ≤ 50,000."""
    images = _cifar10()
    if images is None:
        return _stand_in(count, 3072, "CIFAR-10")
    return Images(images[:count].flatten(1).contiguous(), "CIFAR-10")


def dequantised_cifar10(count: int) -> Images:
    """(count, 3072) floats: each byte's value plus uniform noise of its width, so that no value is a byte's."""
    images = cifar10(count)
    noise = torch.rand(images.values.shape, generator=torch.Generator().manual_seed(5))
    return Images((images.values + noise - 0.5) / 127.5 - 1, f"{images.what}, dequantised")


def doubled_cifar10(count: int) -> Images:
    """(count, 12288) bytes: 64² images."""
    images = _cifar10()
    if images is None:
        return _stand_in(count, 12288, "CIFAR-10")
    doubled = torch.nn.functional.interpolate(images[:count].float(), scale_factor=2, mode="bilinear")
    return Images(doubled.round().to(torch.uint8).flatten(1), "CIFAR-10 doubled to 64²")


def mnist(count: int) -> Images:
    """(count, 784) bytes, count ≤ 60,000: MNIST's 10,000 test images, each also shifted by a pixel in five directions."""
    path = SHARED / "data" / "mnist-t10k"
    if not path.is_dir():
        return _stand_in(count, 784, "MNIST")
    images = data.load(path).images.flatten(1).view(-1, 28, 28)
    shifts = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1))
    shifted = torch.cat([images.roll(shift, (1, 2)) for shift in shifts])
    return Images(shifted[:count].flatten(1).contiguous(), "MNIST test, shifted by a pixel")


def digits() -> Images:
    """(1797, 64) floats in [−1, 1]: scikit-learn's digits."""
    from sklearn.datasets import load_digits

    return Images(torch.from_numpy(load_digits().data).float() / 8 - 1, "digits")


def digit_bytes() -> Images:
    """(1797, 64) bytes: the package's `digits`."""
    return Images(data.load("digits").images.flatten(1).contiguous(), "digits")


def toy(count: int) -> Images:
    """(count, 2) floats: a noisy ring of eight clusters."""
    generator = torch.Generator().manual_seed(11)
    angle = torch.randint(8, (count,), generator=generator) * (torch.pi / 4)
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return Images(centre + 0.1 * torch.randn(count, 2, generator=generator), "2-D toy")
