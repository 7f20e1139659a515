"""The door: every check of a public call's arguments, and the message that bad input gets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfgm_fast.errors import ArgumentError

REAL = (torch.float32, torch.float64)
NETWORK = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...] = REAL) -> Tensor:
    """A strided tensor of one of the dtypes."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise ArgumentError(f"{name} must be {names(dtypes)}; got {str(value.dtype).removeprefix('torch.')}")
    if value.layout != torch.strided:
        raise ArgumentError(f"{name} must be a dense (strided) tensor; got layout {value.layout}")
    return value


def batch(name: str, value: object, dtypes: tuple[torch.dtype, ...] = REAL) -> Tensor:
    """(B, *shape) with at least one dimension behind B, and N ≥ 1."""
    checked = tensor(name, value, dtypes)
    if checked.dim() < 2 or (checked.numel() == 0 and math.prod(checked.shape[1:]) == 0):
        raise ArgumentError(
            f"{name} must have shape (B, *shape) with N ≥ 1 elements a row; got {tuple(checked.shape)}"
        )
    return checked


def flat(value: Tensor) -> Tensor:
    """(B, *shape) → (B, N), contiguous."""
    if value.dim() == 2 and value.is_contiguous():
        return value
    return value.reshape(value.shape[0], math.prod(value.shape[1:])).contiguous()


def same(name: str, value: Tensor, of: str, other: Tensor) -> None:
    """The same shape and device as another argument."""
    if value.shape != other.shape:
        raise ArgumentError(f"{name} must have {of}'s shape {tuple(other.shape)}; got {tuple(value.shape)}")
    same_device(name, value, of, other)


def same_device(name: str, value: Tensor, of: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ArgumentError(
            f"{name} is on {value.device}, {of} on {other.device}: they must be on one device"
        )


def per_row(name: str, value: object, x: Tensor, *, positive: bool) -> Tensor:
    """A number, a () or a (B,) tensor → (B,) in x's dtype. On the CPU its values are looked at: positive, or at least
    finite; on a GPU that would stop the stream, and a bad row becomes NaN instead."""
    if isinstance(value, (int, float)):
        return x.new_full((x.shape[0],), number(name, value, positive=positive))
    checked = tensor(name, value, REAL)
    if checked.dim() > 1 or (checked.dim() == 1 and checked.shape[0] != x.shape[0]):
        raise ArgumentError(
            f"{name} must be a number or a tensor of shape () or ({x.shape[0]},); got {tuple(checked.shape)}"
        )
    if checked.dim() == 1 or checked.device.type != "cpu":
        same_device(name, checked, "x", x)
    if checked.device.type == "cpu" and not torch.compiler.is_compiling() and _readable(checked):
        good = torch.isfinite(checked) & (checked > 0) if positive else torch.isfinite(checked)
        if not bool(good.all()):
            bad = checked[~good].flatten()[0].item()
            raise ArgumentError(f"{name} must be finite{' and > 0' if positive else ''}; it holds {bad}")
    return checked.to(x.device, x.dtype).expand(x.shape[0]).contiguous()


def _readable(value: Tensor) -> bool:
    return type(value) in (Tensor, torch.nn.Parameter)


def number(name: str, value: float, *, positive: bool) -> float:
    """A finite number, where asked for > 0."""
    if not math.isfinite(value) or (positive and value <= 0):
        raise ArgumentError(f"{name} must be finite{' and > 0' if positive else ''}; got {value}")
    return float(value)


def aug_dim(value: object) -> float:
    """D ∈ (0, ∞]."""
    if not isinstance(value, (int, float)) or math.isnan(value) or value <= 0:
        raise ArgumentError(f"aug_dim (D) must be a number in (0, inf]; got {value!r}")
    return float(value)


def positive(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ArgumentError(f"{name} must be a finite number > 0; got {value!r}")
    return float(value)


def nonnegative(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ArgumentError(f"{name} must be a finite number ≥ 0; got {value!r}")
    return float(value)


def index(name: str, value: object, x: Tensor, upper: int | None = None) -> Tensor:
    """(B,) int64 on x's device, in [0, upper) where reading it is free."""
    checked = tensor(name, value, (torch.int64, torch.int32))
    if checked.shape != (x.shape[0],):
        raise ArgumentError(f"{name} must have shape ({x.shape[0]},); got {tuple(checked.shape)}")
    same_device(name, checked, "x", x)
    if upper is not None and checked.device.type == "cpu" and _readable(checked) and checked.numel():
        low, high = int(checked.min()), int(checked.max())
        if low < 0 or high >= upper:
            raise ArgumentError(f"{name} must lie in [0, {upper}); it holds {low if low < 0 else high}")
    return checked.to(torch.int64).contiguous()
