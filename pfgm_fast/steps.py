"""One step of a sampler's ODE, fused: row norm, z substitution, division and update in one pass over the data.

x and the network's output share the shape (B, *shape); z and z' are numbers, () or (B,) tensors, z > 0 above z' ≥ 0 when
sampling. v_x and v_z may be bfloat16 or float16 (a network under autocast); they are read in x's dtype. Wrong shapes, dtypes,
devices or values raise ArgumentError.

radius: R > 0, where the charges are known to lie within ‖y‖ ≤ R. The mean of the charges that the network's field implies, m = x − E
with E = z v_x/v_z, is then held to that ball, where charges have it whatever the network says. v says it badly: ‖E_x‖ = γn/(1 − n) of
n = ‖v_x‖/√N makes 37% of an error of 0.6% where n = 0.98, and steps of 1e6 of n ≥ 1. Where m is outside, the amplitude of E moves to
the end of the chord that its line cuts out of the ball; if the line misses the ball, m moves to the nearest point of the sphere
(`backends.reference.bounded`). A field with m inside, as the true one, is not touched; with z' = 0 the result is in the ball.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.errors import ArgumentError
from pfgm_fast.ops import front


def _row_z(name: str, value: Tensor | float, x: Tensor, *, positive: bool) -> Tensor:
    """() or (B,) in x's dtype and on its device."""
    if not isinstance(value, Tensor):
        return checks.filled(x, (), checks.number(name, value, positive=positive, dtype=x.dtype))
    if isinstance(value, Tensor) and value.dim() == 0 and value.device.type != "cpu":
        checks.same_device(name, value, "x", x)
        return value.to(x.dtype)  # reading it, or expanding it, would cost a stop or a launch
    return checks.per_row(name, value, x, positive=positive)


def _network(x: Tensor, vx: Tensor, vz: Tensor, suffix: str = "") -> tuple[Tensor, Tensor]:
    """The network's output, flat."""
    vx = checks.tensor("vx" + suffix, vx, checks.NETWORK)
    checks.same("vx" + suffix, vx, "x", x)
    vz = checks.tensor("vz" + suffix, vz, checks.NETWORK)
    if vz.shape != (x.shape[0],):
        raise ArgumentError(f"vz{suffix} must have shape ({x.shape[0]},); got {tuple(vz.shape)}")
    checks.same_device("vz" + suffix, vz, "x", x)
    return checks.flat(vx), vz.contiguous()


def drift(
    vx: Tensor,  # (B, *shape)
    vz: Tensor,  # (B,)
    z: Tensor | float,  # (B,)
    gamma: float = 5.0,
    z_exp: float = 5.0,
    x: Tensor | None = None,  # (B, *shape)
    radius: float | None = None,
) -> Tensor:
    """dx/dz = v_x/v_z (B, *shape), with v_z replaced below z_exp by what ‖v_x‖ implies.

    PFGM (arXiv 2209.11178) eq. 6 and appendix B.2.3: n = ‖v_x‖/√N, ‖E‖ = √((γn/(1 − n))² + z²), v_z = −√N z/(‖E‖ + γ). n ≥ 1,
    which a network can give and no field has, is held just below 1: never NaN.

    Args:
        vx: The network's v_x (B, *shape): float32, float64, bfloat16 or float16.
        vz: Its v_z (B,), of the same dtypes.
        z: Height > 0, () or (B,) or a number.
        gamma: γ > 0 of the target, in units of the data.
        z_exp: Height ≥ 0 below which v_z is substituted; 0 turns it off.
        x: Points (B, *shape), needed by radius alone; the result is then in their dtype.
        radius: R > 0 of the ball that the charges lie in, or None: the field is held to it as the module says.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value.
    """
    vx = checks.batch("vx", vx, checks.NETWORK)
    constants = _constants(gamma, z_exp)
    if radius is not None:
        x = checks.batch("x, which a radius needs,", x)
        flat, vz = _network(x, vx, vz)
        z = _row_z("z", z, x, positive=True)
        return front.drift(flat, vz, z, *constants, checks.flat(x), _radius(radius)).view(vx.shape)
    like = vx if vx.dtype in checks.REAL else vx.new_empty((vx.shape[0], 1), dtype=torch.float32)
    z = _row_z("z", z, like, positive=True)
    flat, vz = _network(vx, vx, vz)
    return front.drift(flat, vz, z, *constants).view(vx.shape)


def _constants(gamma: float, z_exp: float) -> tuple[float, float]:
    return checks.positive("gamma", gamma), checks.nonnegative("z_exp", z_exp)


def _radius(radius: float | None) -> float | None:
    return None if radius is None else checks.positive("radius", radius)


def euler_step(
    x: Tensor,  # (B, *shape)
    vx: Tensor,  # (B, *shape)
    vz: Tensor,  # (B,)
    z: Tensor | float,  # (B,)
    z_next: Tensor | float,  # (B,)
    gamma: float = 5.0,
    z_exp: float = 5.0,
    out: Tensor | None = None,  # (B, *shape)
    radius: float | None = None,
) -> Tensor:
    """x + (z' − z) v_x/v_z (B, *shape): Euler's method on the backward ODE, v_z substituted below z_exp as in `drift`.

    PFGM (arXiv 2209.11178) eq. 6 and appendix B.2.3.

    Args:
        x: Points (B, *shape), float32 or float64.
        vx: The network's v_x (B, *shape) there: float32, float64, bfloat16 or float16.
        vz: Its v_z (B,), of the same dtypes.
        z: Height > 0 at x, () or (B,) or a number.
        z_next: Height ≥ 0 to step to, on either side of z, () or (B,) or a number.
        gamma: γ > 0 of the target, in units of the data.
        z_exp: Height ≥ 0 below which v_z is substituted; 0 turns it off.
        out: Where the result goes, contiguous, of x's shape (B, *shape) and dtype; it may be x or vx itself, but not overlap them
            otherwise. As with torch.add(out=), it takes no part in autograd.
        radius: R > 0 of the ball that the charges lie in, or None: the field is held to it as the module says.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; an `out` that overlaps.
        DerivativeError: An `out`, or inputs beside one, that want a gradient.
    """
    x = checks.batch("x", x)
    flat_vx, vz = _network(x, vx, vz)
    z = _row_z("z", z, x, positive=True)
    z_next = _row_z("z_next", z_next, x, positive=False)
    constants = *_constants(gamma, z_exp), _radius(radius)
    if out is None:
        return front.euler_step(checks.flat(x), flat_vx, vz, z, z_next, *constants).view(x.shape)
    checks.tensor("out", out, (x.dtype,))
    checks.same("out", out, "x", x)
    if not out.is_contiguous():
        raise ArgumentError("out must be contiguous")
    flat_out = out if out.dim() == 2 else out.view(len(x), -1)
    front.euler_step_into(checks.flat(x), flat_vx, vz, z, z_next, *constants, out=flat_out)
    return out


def heun_step(
    x: Tensor,  # (B, *shape)
    vx: Tensor,  # (B, *shape)
    vz: Tensor,  # (B,)
    vx_next: Tensor,  # (B, *shape)
    vz_next: Tensor,  # (B,)
    z: Tensor | float,  # (B,)
    z_next: Tensor | float,  # (B,)
    gamma: float = 5.0,
    z_exp: float = 5.0,
    radius: float | None = None,
) -> Tensor:
    """x + (z' − z)/2 (dx/dz at (x, z) + dx/dz at (x', z')) (B, *shape), z' > 0: the correction of Heun's method.

    v at (x', z') is the network at the Euler prediction x' (PFGM, arXiv 2209.11178, appendix B.4: improved Euler).

    Args:
        x: Points (B, *shape), float32 or float64.
        vx: The network's v_x (B, *shape) at (x, z): float32, float64, bfloat16 or float16.
        vz: Its v_z (B,), of the same dtypes.
        vx_next: v_x (B, *shape) at (x', z').
        vz_next: v_z (B,) at (x', z').
        z: Height > 0 at x, () or (B,) or a number.
        z_next: Height > 0 to step to, on either side of z, () or (B,) or a number.
        gamma: γ > 0 of the target, in units of the data.
        z_exp: Height ≥ 0 below which v_z is substituted; 0 turns it off.
        radius: R > 0 of the ball that the charges lie in, or None: the field is held to it as the module says, at (x', z')
            too; x' is then that of `euler_step` with the same radius.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value.
    """
    x = checks.batch("x", x)
    flat_vx, vz = _network(x, vx, vz)
    flat_next, vz_next = _network(x, vx_next, vz_next, "_next")
    z = _row_z("z", z, x, positive=True)
    z_next = _row_z("z_next", z_next, x, positive=True)
    constants = *_constants(gamma, z_exp), _radius(radius)
    stepped = front.heun_step(checks.flat(x), flat_vx, vz, flat_next, vz_next, z, z_next, *constants)
    return stepped.view(x.shape)
