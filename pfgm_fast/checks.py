"""The door: every check of a public call's arguments, and the message that bad input gets."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pfgm_fast.errors import ArgumentError, BackendError, DerivativeError

REAL = (torch.float32, torch.float64)
NETWORK = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICES = ("cpu", "cuda", "meta")
"""Device types that the operators are registered for."""


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
    """(B, *shape) with at least one dimension behind B, and N ≥ 1; B may be 0. On a device that some backend serves."""
    checked = tensor(name, value, dtypes)
    if checked.device.type not in DEVICES:
        raise BackendError(
            f"no backend runs on {checked.device.type} tensors, and {name} is on {checked.device}: "
            f"pfgm_fast serves CPU and CUDA; move it there, as with {name}.cpu()"
        )
    if checked.dim() < 2 or (checked.numel() == 0 and math.prod(checked.shape[1:]) == 0):
        raise ArgumentError(
            f"{name} must have shape (B, *shape) with N ≥ 1 elements a row; got {tuple(checked.shape)}"
        )
    return checked


def sizes(shape: tuple[int, ...]) -> None:
    """(B, *shape) to draw, every size ≥ 1."""
    if len(shape) < 2 or min(shape) < 1:
        raise ArgumentError(f"shape must be (B, *shape) with every size ≥ 1; got {tuple(shape)}")


def constant(name: str, value: Tensor) -> Tensor:
    """Data that no derivative reaches, without torch.func's wrappers.

    Raises: DerivativeError where a derivative by it or a map over it is asked for, instead of giving none.
    """
    if torch.compiler.is_compiling():
        return value
    functorch = torch._C._functorch
    while True:
        wanted = (torch.is_grad_enabled() and value.requires_grad) or has_tangent(value)
        if wanted or functorch.is_batchedtensor(value):
            raise DerivativeError(
                f"{name} are data: they have no derivative, and vmap cannot go over them; pass them detached, or loop"
            )
        if not functorch.is_functorch_wrapped_tensor(value):
            return value
        value = functorch.get_unwrapped(value)


def has_tangent(value: Tensor) -> bool:
    """Whether value carries a tangent of forward mode."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def filled(x: Tensor, shape: tuple[int, ...], value: float) -> Tensor:
    """A tensor of one number, like x. While compiling it is a product: a number that changes then stays one graph."""
    if torch.compiler.is_compiling():
        return x.new_ones(shape) * value
    return x.new_full(shape, value)


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


def real(name: str, value: object, expected: str) -> float:
    """A Python number from a Python or NumPy one, or from a 0-d array or CPU tensor; a bool is none.

    Raises: ArgumentError "name must be EXPECTED; got VALUE".
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if not isinstance(value, (numbers.Real, Tensor)) and getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined]
    if (
        isinstance(value, Tensor)
        and value.dim() == 0
        and value.device.type == "cpu"
        and _values(value) is not None
    ):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentError(f"{name} must be {expected}; got {value!r}")
    return float(value)


def per_row(name: str, value: object, x: Tensor, *, positive: bool) -> Tensor:
    """A number, a () or a (B,) tensor → (B,) in x's dtype. On the CPU its values are looked at: positive, or at least
    finite; on a GPU that would stop the stream, and a bad row becomes NaN instead."""
    if not isinstance(value, Tensor):
        return filled(x, (x.shape[0],), number(name, value, positive=positive, dtype=x.dtype))
    checked = tensor(name, value, REAL)
    if checked.dim() > 1 or (checked.dim() == 1 and checked.shape[0] != x.shape[0]):
        raise ArgumentError(
            f"{name} must be a number or a tensor of shape () or ({x.shape[0]},); got {tuple(checked.shape)}"
        )
    if checked.dim() == 1 or checked.device.type != "cpu":
        same_device(name, checked, "x", x)
    seen = None if checked.device.type != "cpu" else _values(checked)
    if seen is not None and seen.numel():
        narrow = seen.to(x.dtype)
        low, high = (float(end) for end in torch.aminmax(narrow))  # NaN where there is one
        if not ((low > 0 if positive else low > -math.inf) and high < math.inf):
            good = torch.isfinite(narrow) & (narrow > 0) if positive else torch.isfinite(narrow)
            number(name, seen[~good].flatten()[0].item(), positive=positive, dtype=x.dtype, said="it holds")
    if checked.dim() == 1 and checked.dtype == x.dtype and checked.is_contiguous():
        return checked
    return checked.to(x.device, x.dtype).expand(x.shape[0]).contiguous()


def _values(value: Tensor) -> Tensor | None:
    """The tensor whose values can be read here: itself, or what torch.func has wrapped; None while compiling or tracing."""
    if torch.compiler.is_compiling():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value.detach() if type(value) in (Tensor, torch.nn.Parameter) else None


def number(
    name: str, value: object, *, positive: bool, dtype: torch.dtype = torch.float64, said: str = "got"
) -> float:
    """A finite number, where asked for > 0, that is so in dtype too. While compiling, its value is not looked at."""
    if type(value) is float and 1e-30 < value < 1e30:  # nearly every call, in every dtype
        return value
    expected = f"finite{' and > 0' if positive else ''}"
    given = real(name, value, f"a number, {expected}")
    if torch.compiler.is_compiling():
        return given
    if not math.isfinite(given) or (positive and given <= 0):
        raise ArgumentError(f"{name} must be {expected}; {said} {given}")
    limits = torch.finfo(dtype)
    vanishes = positive and given <= limits.smallest_normal * limits.eps / 2
    if vanishes or abs(given) > limits.max:
        raise ArgumentError(
            f"{name} must be {expected} in {names((dtype,))}; {said} {given}, which is "
            f"{0 if vanishes else 'infinite'} there: use float64, or other units"
        )
    return float(given)


def aug_dim(value: object) -> float:
    """D ∈ (0, ∞]."""
    expected = "a number in (0, inf]"
    given = real("aug_dim (D)", value, expected)
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        return guard_scalar(given)  # one graph for each D: its formulas differ
    if not given > 0:
        raise ArgumentError(f"aug_dim (D) must be {expected}; got {given!r}")
    return float(given)


def positive(name: str, value: object) -> float:
    expected = "a finite number > 0"
    given = real(name, value, expected)
    if not torch.compiler.is_compiling() and not (math.isfinite(given) and given > 0):
        raise ArgumentError(f"{name} must be {expected}; got {given!r}")
    return float(given)


def nonnegative(name: str, value: object) -> float:
    expected = "a finite number ≥ 0"
    given = real(name, value, expected)
    if not torch.compiler.is_compiling() and not (math.isfinite(given) and given >= 0):
        raise ArgumentError(f"{name} must be {expected}; got {given!r}")
    return float(given)


def integer(name: str, value: object, least: int) -> int:
    """A whole number ≥ least, Python's or NumPy's; neither a bool nor a float is one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ArgumentError(f"{name} must be an integer ≥ {least}; got {value!r}")
    return int(value)


def index(name: str, value: object, x: Tensor, upper: int | None = None) -> Tensor:
    """(B,) int64 on x's device, in [0, upper) where reading it is free."""
    checked = tensor(name, value, (torch.int64, torch.int32))
    if checked.shape != (x.shape[0],):
        raise ArgumentError(f"{name} must have shape ({x.shape[0]},); got {tuple(checked.shape)}")
    same_device(name, checked, "x", x)
    seen = _values(checked) if upper is not None and checked.device.type == "cpu" else None
    if upper is not None and seen is not None and seen.numel():
        low, high = int(seen.min()), int(seen.max())
        if low < 0 or high >= upper:
            raise ArgumentError(f"{name} must lie in [0, {upper}); it holds {low if low < 0 else high}")
    return checked.to(torch.int64).contiguous()
