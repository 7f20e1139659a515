"""The networks of score_sde_pytorch, from the paper (arXiv 2011.13456, appendix H), as plain functions of their numbered modules.

Independent of `pfgm_fast.nn`: no UNet there is used. `modules(...)` draws random weights in the order and by the names of their checkpoints;
`forward` computes what their network does, in float64 where the weights are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def _conv(name: str, into: int, out: int, kernel: int) -> Weights:
    scale = 1 / math.sqrt(into * kernel**2)
    return {
        f"{name}weight": scale * torch.randn(out, into, kernel, kernel),
        f"{name}bias": 0.1 * torch.randn(out),
    }


def _norm(name: str, channels: int) -> Weights:
    return {f"{name}weight": 1 + 0.1 * torch.randn(channels), f"{name}bias": 0.1 * torch.randn(channels)}


def _linear(name: str, into: int, out: int) -> Weights:
    return {f"{name}weight": torch.randn(out, into) / math.sqrt(into), f"{name}bias": 0.1 * torch.randn(out)}


def _block(into: int, out: int, embedding: int, resampled: bool = False) -> Weights:
    parts = {
        **_norm("GroupNorm_0.", into),
        **_conv("Conv_0.", into, out, 3),
        **_linear("Dense_0.", embedding, out),
    }
    parts |= {**_norm("GroupNorm_1.", out), **_conv("Conv_1.", out, out, 3)}
    return parts | (_conv("Conv_2.", into, out, 1) if into != out or resampled else {})


def _attention(channels: int) -> Weights:
    parts = _norm("GroupNorm_0.", channels)
    for k in range(4):
        parts[f"NIN_{k}.W"] = torch.randn(channels, channels) / math.sqrt(channels)
        parts[f"NIN_{k}.b"] = 0.1 * torch.randn(channels)
    return parts


def modules(spec: dict[str, Any]) -> list[Weights]:
    """spec: channels, out, size, width, multipliers, blocks, attention (resolutions), fourier, pyramid (None, "residual", "skip"), progressive."""
    width, channels, out_channels = spec["width"], spec["channels"], spec["out"]
    embedding, noise = 4 * width, (2 if spec["fourier"] else 1) * width
    made = [{"W": 16 * torch.randn(width)}] if spec["fourier"] else []
    made += [_linear("", noise, embedding), _linear("", embedding, embedding), _conv("", channels, width, 3)]
    features, image, size, skips = width, channels, spec["size"], [width]
    last = len(spec["multipliers"]) - 1
    for level, multiplier in enumerate(spec["multipliers"]):
        for _ in range(spec["blocks"]):
            made.append(_block(features, width * multiplier, embedding))
            features = width * multiplier
            if size in spec["attention"]:
                made.append(_attention(features))
            skips.append(features)
        if level != last:
            made.append(_block(features, features, embedding, True))
            if spec["pyramid"] == "residual":
                made.append(_conv("Conv2d_0.", image, features, 3))
                image = features
            elif spec["pyramid"] == "skip":
                made.append(_conv("Conv_0.", image, features, 1))
            skips.append(features)
            size //= 2
    made += [
        _block(features, features, embedding),
        _attention(features),
        _block(features, features, embedding),
    ]
    for level in range(last, -1, -1):
        for _ in range(spec["blocks"] + 1):
            made.append(_block(features + skips.pop(), width * spec["multipliers"][level], embedding))
            features = width * spec["multipliers"][level]
        if size in spec["attention"]:
            made.append(_attention(features))
        if spec["progressive"]:
            made += [_norm("", features), _conv("", features, out_channels, 3)]
        if level:
            made.append(_block(features, features, embedding, True))
            size *= 2
    return made if spec["progressive"] else [*made, _norm("", features), _conv("", features, out_channels, 3)]


def _group_norm(x: Tensor, module: Weights, name: str = "") -> Tensor:
    channels = x.shape[1]
    return F.group_norm(x, min(channels // 4, 32), module[f"{name}weight"], module[f"{name}bias"], 1e-6)


def _fir(x: Tensor, taps: tuple[float, ...], up: bool) -> Tensor:
    """Their upfirdn2d: zeros between pixels, or every second pixel, after padding and a two-dimensional filter."""
    filter = torch.outer(torch.tensor(taps), torch.tensor(taps)).to(x)
    filter = filter / filter.sum() * (4 if up else 1)
    length, spare = len(taps), len(taps) - 2
    if up:
        wide = x.new_zeros(*x.shape[:2], x.shape[2], 2, x.shape[3], 2)
        wide[:, :, :, 0, :, 0] = x
        x = wide.reshape(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        pads = ((spare + 1) // 2 + 1, spare // 2)
    else:
        pads = ((spare + 1) // 2, spare // 2)
    x = F.pad(x, (*pads, *pads)).unfold(2, length, 1).unfold(3, length, 1)
    x = (x * filter.flip((0, 1))).sum((4, 5))
    return x if up else x[:, :, ::2, ::2]


def _residual(
    x: Tensor, module: Weights, embedding: Tensor, resample: str, taps: tuple[float, ...]
) -> Tensor:
    h = F.silu(_group_norm(x, module, "GroupNorm_0."))
    if resample:
        h, x = (_fir(value, taps, resample == "up") for value in (h, x))
    h = F.conv2d(h, module["Conv_0.weight"], module["Conv_0.bias"], padding=1)
    h = h + F.linear(F.silu(embedding), module["Dense_0.weight"], module["Dense_0.bias"])[:, :, None, None]
    h = F.silu(_group_norm(h, module, "GroupNorm_1."))
    h = F.conv2d(h, module["Conv_1.weight"], module["Conv_1.bias"], padding=1)
    if "Conv_2.weight" in module:
        x = F.conv2d(x, module["Conv_2.weight"], module["Conv_2.bias"])
    return (x + h) / math.sqrt(2)


def _attend(x: Tensor, module: Weights) -> Tensor:
    h = _group_norm(x, module, "GroupNorm_0.")

    def nin(value: Tensor, k: int) -> Tensor:
        bias = module[f"NIN_{k}.b"][:, None, None]
        return torch.einsum("bchw,cd->bdhw", value, module[f"NIN_{k}.W"]) + bias

    query, key, value = (nin(h, k) for k in range(3))
    weights = torch.einsum("bchw,bcij->bhwij", query, key) / math.sqrt(x.shape[1])
    weights = weights.flatten(3).softmax(-1).view_as(weights)
    return (x + nin(torch.einsum("bhwij,bcij->bchw", weights, value), 3)) / math.sqrt(2)


def forward(spec: dict[str, Any], made: list[Weights], x: Tensor, condition: Tensor) -> Tensor:
    """The network's output before it is divided by σ: condition is σ with Fourier features, else 999 t."""
    taps = (1.0, 3.0, 3.0, 1.0) if spec["fourier"] or spec["pyramid"] else (1.0, 1.0)
    left = iter(made)
    half = spec["width"] // 2
    if spec["fourier"]:
        angle = condition.log()[:, None] * next(left)["W"][None] * 2 * math.pi
    else:
        angle = condition[:, None] * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half).to(x))[None]
    embedding = torch.cat([angle.sin(), angle.cos()], 1)
    for activated in (False, True):
        module = next(left)
        embedding = F.linear(F.silu(embedding) if activated else embedding, module["weight"], module["bias"])
    stem = next(left)
    hs, image, size = [F.conv2d(x, stem["weight"], stem["bias"], padding=1)], x, spec["size"]
    last = len(spec["multipliers"]) - 1
    for level in range(last + 1):
        for _ in range(spec["blocks"]):
            h = _residual(hs[-1], next(left), embedding, "", taps)
            hs.append(_attend(h, next(left)) if size in spec["attention"] else h)
        if level != last:
            h = _residual(hs[-1], next(left), embedding, "down", taps)
            if spec["pyramid"] == "residual":
                module = next(left)
                spare = len(taps) - 2 + 2
                filter = torch.outer(torch.tensor(taps), torch.tensor(taps)).to(x)
                padded = F.pad(image, ((spare + 1) // 2, spare // 2) * 2)
                channels = image.shape[1]
                kernel = (filter / filter.sum()).expand(channels, 1, -1, -1)
                blurred = F.conv2d(padded, kernel, groups=channels)
                image = F.conv2d(blurred, module["Conv2d_0.weight"], module["Conv2d_0.bias"], stride=2)
                h = image = (image + h) / math.sqrt(2)
            elif spec["pyramid"] == "skip":
                module, image = next(left), _fir(image, taps, False)
                h = h + F.conv2d(image, module["Conv_0.weight"], module["Conv_0.bias"])
            hs.append(h)
            size //= 2
    h = _residual(hs[-1], next(left), embedding, "", taps)
    h = _residual(_attend(h, next(left)), next(left), embedding, "", taps)
    pyramid = None
    for level in range(last, -1, -1):
        for _ in range(spec["blocks"] + 1):
            h = _residual(torch.cat([h, hs.pop()], 1), next(left), embedding, "", taps)
        if size in spec["attention"]:
            h = _attend(h, next(left))
        if spec["progressive"] or not level:
            norm, head = next(left), next(left)
            out = F.conv2d(F.silu(_group_norm(h, norm)), head["weight"], head["bias"], padding=1)
            pyramid = out if pyramid is None else out + _fir(pyramid, taps, True)
        if level:
            h = _residual(h, next(left), embedding, "up", taps)
            size *= 2
    assert next(left, None) is None and not hs
    return pyramid


def checkpoint(made: list[Weights]) -> dict[str, Any]:
    """Their checkpoint's dict: DataParallel's names, a gap in the numbers for a layer without parameters, W without an average."""
    model = {"module.sigmas": torch.ones(3)}
    for number, module in enumerate(made):
        at = number + int(number > 5)
        model |= {f"module.all_modules.{at}.{name}": value for name, value in module.items()}
    averaged = [
        value for name, value in model.items() if "all_modules" in name and not name.endswith("modules.0.W")
    ]
    return {
        "model": {name: value + (0 if name.endswith("modules.0.W") else 1) for name, value in model.items()},
        "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": averaged},
        "optimizer": {"state": {}, "param_groups": []},
        "step": 3,
    }
