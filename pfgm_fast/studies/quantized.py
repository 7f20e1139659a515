"""Post-training quantisation of a network's weights: the second robustness experiment of PFGM++ (arXiv 2302.04265, section 6)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn.unet import UNet

MOST_BITS = 16


class Quantized(NamedTuple):
    """net: a copy whose weights are those of integers. share: of the parameters that were quantised."""

    net: nn.Module
    share: float


def quantized(net: nn.Module, bits: int, everywhere: bool = False) -> Quantized:
    """A copy of a network with each weight tensor on a grid of 2^bits values, evenly from its least to its largest, 0 among them.

    As in the paper's experiment, those are the convolutions below the full resolution; biases, norms, embeddings and what is at full
    resolution, where the image comes in and goes out, stay. everywhere: the convolutions at full resolution too. A network that is
    none of `pfgm_fast.nn` has all its weights of two dimensions and more quantised.

    Args:
        bits: 1 to 16.

    Raises:
        ArgumentError: Other bits; a network in which nothing is left to quantise, such as one of a single resolution.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= MOST_BITS:
        raise ArgumentError(f"bits must be an integer from 1 to {MOST_BITS}; got {bits!r}")
    out = copy.deepcopy(net)
    chosen = _weights(out, everywhere)
    if not chosen:
        raise ArgumentError(
            f"{type(net).__name__} has no weights to quantise below its full resolution: quantise everywhere"
        )
    with torch.no_grad():
        for weight in chosen:
            weight.copy_(on_grid(weight, bits))
    total = sum(p.numel() for p in out.parameters())
    return Quantized(out, sum(w.numel() for w in chosen) / total)


def on_grid(values: Tensor, bits: int) -> Tensor:
    """Values (any shape) rounded to scale · (q − zero), q = 0 … 2^bits − 1, scale = (max − min)/(2^bits − 1), with 0 in the range."""
    most = 2**bits - 1
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / most
    if scale == 0:
        return values.clone()
    zero = round(-low / scale)
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, most).to(values.dtype)


def _weights(net: nn.Module, everywhere: bool) -> list[nn.Parameter]:
    unets = [module for module in net.modules() if isinstance(module, UNet)]
    if not unets:
        return [p for p in net.parameters() if p.dim() > 1]
    found = []
    for unet in unets:
        height, width = unet.config.size
        for part in (unet.enc, unet.dec):
            for name, layer in part.items():
                if everywhere or not name.startswith(f"{height}x{width}_"):
                    found += [p for p in layer.parameters() if p.dim() == 4]
    return found
