"""The definition of right: every operator in plain PyTorch, by direct differences, in the dtype that it is given.

Written to be read. The field operators take a `Query`, of which `center` and `sq_norms`, which only help speed, are not
looked at. One query at a time, charges in chunks, so that
memory stays O(M + chunk N). Run it in float64 to judge the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pfgm_fast.ops.schema import Query

CHUNK_ELEMENTS = 1 << 22
"""Elements of the largest intermediate (charges in a chunk times N): 32 MiB in float64."""


def unavailable() -> str | None:
    return None


def refuses(op: str, x: Tensor, charges: Tensor | None) -> str | None:
    return None


def byte_values(
    divisor: float, offset: float, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """(256,) on the device: `byte / divisor + offset`, each operation rounded to dtype; float32 where that is a half.

    By a tensor: PyTorch on a GPU divides by a Python number through its reciprocal, and 111 of the 256 values differ. Made on the
    device, not copied to it: a copy cannot be captured in a CUDA graph.
    """
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    byte = torch.arange(256, dtype=kind, device=device)
    return byte / torch.full_like(byte, divisor) + offset


def decode(charges: Tensor, divisor: float, offset: float, dtype: torch.dtype) -> Tensor:
    """The values of charges in dtype; a byte's is looked up in `byte_values`, the same on every device."""
    if charges.dtype != torch.uint8:
        return charges.to(dtype)
    return byte_values(divisor, offset, dtype, charges.device)[charges.int()]


def chunks(
    charges: Tensor, divisor: float, offset: float, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """Decoded blocks of charges, each with at most CHUNK_ELEMENTS elements, and where they stand."""
    rows = max(1, CHUNK_ELEMENTS // max(1, charges.shape[1]))
    for start in range(0, charges.shape[0], rows):
        part = slice(start, min(start + rows, charges.shape[0]))
        yield part, decode(charges[part], divisor, offset, dtype)


class Row(NamedTuple):
    """What one query sees."""

    weights: Tensor  # (M,) w_j, the softmax over the charges
    rate: Tensor  # (M,) c_j = (N + D)/d²_j, or 1/σ² where D is infinite
    squares: Tensor  # (M,) ‖ρ_j‖²
    lse: Tensor  # () log Σ_j q_j (1 + ‖ρ_j‖²/r²)^(−p)


def row(
    x: Tensor,  # (N,)
    r: Tensor,  # ()
    charges: Tensor,  # (M, N)
    log_weights: Tensor | None,  # (M,)
    divisor: float,
    offset: float,
    aug_dim: float,
) -> Row:
    """Weights of all charges for one query: PFGM++ (arXiv 2302.04265) eq. 4 for D < ∞, the Gaussian kernel for D = ∞."""
    squares = torch.cat([(y - x).square_().sum(1) for _, y in chunks(charges, divisor, offset, x.dtype)])
    if math.isinf(aug_dim):
        logits = -squares / (2 * r * r)
        rate = (1 / (r * r)).expand_as(squares)
    else:
        total = x.shape[0] + aug_dim
        logits = -0.5 * total * torch.log1p(squares / (r * r))
        rate = total / (squares + r * r)
    if log_weights is not None:
        logits = logits + log_weights.to(x.dtype)
    return Row(torch.softmax(logits, 0), rate, squares, torch.logsumexp(logits, 0))


def weighted_difference(
    x: Tensor, coefficient: Tensor, charges: Tensor, divisor: float, offset: float
) -> Tensor:
    """Σ_j coefficient_j ρ_j, with ρ_j = y_j − x formed first: (N,).

    As sums of products, here and below: a matrix product would obey the caller's TF32 and bfloat16 settings.
    """
    total = torch.zeros_like(x)
    for part, y in chunks(charges, divisor, offset, x.dtype):
        total += (y - x).mul_(coefficient[part, None]).sum(0)
    return total


def posterior_mean(query: Query) -> tuple[Tensor, Tensor]:
    """m_i = Σ_j w_ij y_j and the relative log-sum-exp (float64)."""
    x, r, charges, log_weights, _, _, divisor, offset, aug_dim = query
    mean = torch.zeros_like(x)
    lse = x.new_empty(x.shape[0], dtype=torch.float64)
    for i in range(x.shape[0]):
        seen = row(x[i], r[i], charges, log_weights, divisor, offset, aug_dim)
        for part, y in chunks(charges, divisor, offset, x.dtype):
            mean[i] += (seen.weights[part, None] * y).sum(0)
        lse[i] = seen.lse
    return mean, lse


def poisson_field(query: Query) -> tuple[Tensor, Tensor]:
    """x_i − m_i = −Σ_j w_ij ρ_ij, a sum of differences, and the relative log-sum-exp (float64)."""
    x, r, charges, log_weights, _, _, divisor, offset, aug_dim = query
    field = torch.empty_like(x)
    lse = x.new_empty(x.shape[0], dtype=torch.float64)
    for i in range(x.shape[0]):
        seen = row(x[i], r[i], charges, log_weights, divisor, offset, aug_dim)
        field[i] = -weighted_difference(x[i], seen.weights, charges, divisor, offset)
        lse[i] = seen.lse
    return field, lse


def score(query: Query) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """g = Σ w c ρ, x − m, s = Σ w c, t = Σ w c ‖ρ‖², and the relative log-sum-exp."""
    x, r, charges, log_weights, _, _, divisor, offset, aug_dim = query
    gradient, field = torch.empty_like(x), torch.empty_like(x)
    rate, trace = torch.empty_like(r), torch.empty_like(r)
    lse = x.new_empty(x.shape[0], dtype=torch.float64)
    for i in range(x.shape[0]):
        seen = row(x[i], r[i], charges, log_weights, divisor, offset, aug_dim)
        pull = seen.weights * seen.rate
        gradient[i] = weighted_difference(x[i], pull, charges, divisor, offset)
        field[i] = -weighted_difference(x[i], seen.weights, charges, divisor, offset)
        rate[i] = pull.sum()
        trace[i] = (pull * seen.squares).sum()
        lse[i] = seen.lse
    return gradient, field, rate, trace, lse


def log_density(query: Query) -> Tensor:
    """log Σ_j q_j (1 + ‖ρ_j‖²/r²)^(−p) in float64; D = ∞: log Σ_j q_j exp(−‖ρ_j‖²/(2σ²))."""
    x, r, charges, log_weights, _, _, divisor, offset, aug_dim = query
    lse = x.new_empty(x.shape[0], dtype=torch.float64)
    for i in range(x.shape[0]):
        lse[i] = row(x[i], r[i], charges, log_weights, divisor, offset, aug_dim).lse
    return lse


def second_moment(query: Query, u: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Σ_j w_j c_j^power (ρ_j·u) ρ_j (B, N) and Σ_j w_j c_j^power (ρ_j·u) (B,)."""
    x, r, charges, log_weights, _, _, divisor, offset, aug_dim = query
    moment, projection = torch.empty_like(x), torch.empty_like(r)
    for i in range(x.shape[0]):
        seen = row(x[i], r[i], charges, log_weights, divisor, offset, aug_dim)
        parts = chunks(charges, divisor, offset, x.dtype)
        along = torch.cat([(y - x[i]).mul_(u[i]).sum(1) for _, y in parts])
        coefficient = seen.weights * seen.rate**power * along
        moment[i] = weighted_difference(x[i], coefficient, charges, divisor, offset)
        projection[i] = coefficient.sum()
    return moment, projection


def gaussian_moments(query: Query) -> tuple[Tensor, Tensor]:
    """Σ_j w_j ‖ρ_j‖² ρ_j (B, N) and Σ_j w_j ‖ρ_j‖⁴ (B,), which derivatives by σ at D = ∞ need."""
    x, r, charges, log_weights, _, _, divisor, offset, aug_dim = query
    cubic, quartic = torch.empty_like(x), torch.empty_like(r)
    for i in range(x.shape[0]):
        seen = row(x[i], r[i], charges, log_weights, divisor, offset, aug_dim)
        coefficient = seen.weights * seen.squares
        cubic[i] = weighted_difference(x[i], coefficient, charges, divisor, offset)
        quartic[i] = (coefficient * seen.squares).sum()
    return cubic, quartic


def field_step(query: Query, r_next: Tensor) -> Tensor:
    """One Euler step of dx/dr = E_x/E_r = (x − m)/r in the true field (PFGM eq. 6, PFGM++ eq. 5)."""
    field, _ = poisson_field(query)
    return query.x + ((r_next - query.r) / query.r)[:, None] * field


def normalize_field(field: Tensor, r: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """v = −√N E/(‖E‖ + γ), E = (field, r): PFGM eq. 5, the training target. field (B, N), r (B,)."""
    length = (field.square().sum(1) + r * r).sqrt() + gamma
    factor = -math.sqrt(field.shape[1]) / length
    return field * factor[:, None], r * factor


def drift(
    vx: Tensor,
    vz: Tensor,
    z: Tensor,
    gamma: float,
    z_exp: float,
    x: Tensor | None = None,
    radius: float | None = None,
) -> Tensor:
    """dx/dz = v_x/v_z (PFGM eq. 6), v_z replaced below z_exp by what ‖v_x‖ implies (PFGM appendix B.2.3).

    n = ‖v_x‖/√N is the share of the field along x; ‖E_x‖ = γ n/(1 − n) inverts the normalisation, so
    ‖E‖ = √((γn/(1 − n))² + z²) and v_z = −√N z/(‖E‖ + γ). A network may give n ≥ 1, which no finite field has:
    n is held below 1 by the dtype's resolution, so ‖E‖ is large, v_z small, and nothing is NaN.
    Where a radius is given, the field z v_x/v_z at x is `bounded`.
    """
    square = None if x is None or radius is None else ball(x.to(z.dtype), radius)
    return _drift(vx, vz, z, gamma, z_exp, x, square)


def _drift(
    vx: Tensor, vz: Tensor, z: Tensor, gamma: float, z_exp: float, x: Tensor | None, square: Tensor | None
) -> Tensor:
    vx, vz = vx.to(z.dtype), vz.to(z.dtype)
    rows, dim = vx.shape
    z = z.expand(rows)
    n = (vx.norm(dim=1) / math.sqrt(dim)).clamp(max=1 - torch.finfo(z.dtype).eps)
    length = ((gamma * n / (1 - n)).square() + z * z).sqrt()
    substitute = -math.sqrt(dim) * z / (length + gamma)
    divisor = torch.where(z < z_exp, substitute, vz)
    if x is None or square is None:
        return vx / divisor[:, None]
    return bounded(x.to(z.dtype), vx, z / divisor, square) / z[:, None]


SLACK = 2.0**-10
"""`ball` is of radius R (1 + SLACK): the rounding of a charge on the sphere does not count."""

ROUNDING = 2.0**-17
"""`ball` leaves as many ‖x‖² beside R²: 64 units of float32's resolution, where ‖x‖ ≫ R, for the sums of a row and the field itself."""


def ball(x: Tensor, radius: float) -> Tensor:
    """The square (B,) that ‖m‖² is held to at x (B, N)."""
    return (radius * (1 + SLACK)) ** 2 + ROUNDING * x.square().sum(1)


def bounded(x: Tensor, vx: Tensor, scale: Tensor, square: Tensor) -> Tensor:
    """E (B, N), the field scale · v_x at x, such that the mean of the charges m = x − E lies in their ball
    ‖m‖² ≤ square (B,): untouched where it does.

    A true field is never changed: its m is a mean of charges with weights ≥ 0, so it lies in every ball that holds them; `ball` has
    more room than the rounding of both needs.
    Else first its amplitude moves to the end of the line's chord through the ball (where the line misses the ball, to its nearest
    point), which is all that an error of n needs; then m moves to the sphere, which changes the direction, where it still is outside.
    """
    tiny = torch.finfo(x.dtype).tiny
    length = vx.norm(dim=1).clamp(min=tiny)
    along = (x * vx).sum(1) / length  # of x, on the line x − t v_x/‖v_x‖: the t nearest to 0
    miss = (x.square().sum(1) - along.square()).clamp(min=0)  # the square of the line's distance from it
    offset = scale * length - along
    inside = ~(miss + offset.square() > square)  # NaN stays as it is
    reach = (square - miss).clamp(min=tiny).sqrt()
    offset = offset.maximum(-reach).minimum(reach)
    shrink = (square / (miss + offset.square()).maximum(square)).sqrt()
    field = (shrink * (along + offset) / length)[:, None] * vx + (1 - shrink)[:, None] * x
    return torch.where(inside[:, None], scale[:, None] * vx, field)


def euler_step(
    x: Tensor,
    vx: Tensor,
    vz: Tensor,
    z: Tensor,
    z_next: Tensor,
    gamma: float,
    z_exp: float,
    radius: float | None = None,
) -> Tensor:
    """x + (z' − z) dx/dz."""
    h = (z_next - z).to(x.dtype).expand(x.shape[0])
    return x + h[:, None] * drift(vx, vz, z.to(x.dtype), gamma, z_exp, x, radius)


@torch.no_grad()
def euler_step_out(x, vx, vz, z, z_next, gamma, z_exp, radius=None, *, out):
    """`euler_step` into out, which may be x."""
    out.copy_(euler_step(x, vx, vz, z, z_next, gamma, z_exp, radius))


def heun_step(
    x: Tensor,
    vx: Tensor,
    vz: Tensor,
    vx_next: Tensor,
    vz_next: Tensor,
    z: Tensor,
    z_next: Tensor,
    gamma: float,
    z_exp: float,
    radius: float | None = None,
) -> Tensor:
    """x + (z' − z)/2 · (dx/dz at z + dx/dz at z'), the correction of Heun's method (the paper's improved Euler); the field at z' is
    that at the Euler prediction."""
    h = (0.5 * (z_next - z)).to(x.dtype).expand(x.shape[0])[:, None]
    square = None if radius is None else ball(x, radius)
    first = _drift(vx, vz, z.to(x.dtype), gamma, z_exp, x, square)
    second = _drift(vx_next, vz_next, z_next.to(x.dtype), gamma, z_exp, x + 2 * h * first, square)
    return x + h * (first + second)


def _columns(values: Tensor, x: Tensor) -> Tensor:
    """(B, C) or (C,) as it applies to x (B, C, ...)."""
    return values.reshape(*values.shape, *(1,) * (x.dim() - 2))


def group_norm_silu(
    x: Tensor,  # (B, C, ...)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    groups: int,
    eps: float,
    silu: bool,
    add: Tensor | None = None,  # (B, C)
    scale: Tensor | None = None,  # (B, C)
    shift: Tensor | None = None,  # (B, C)
) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU of the group norm (arXiv 1803.08494) of x + add, by (1 + scale), + shift: (B, C, ...) in x's dtype; silu = False: without SiLU.

    Computed in weight's dtype. Then each group's mean and 1/√(variance + eps), (B, groups).
    """
    wide = x.to(weight.dtype)
    if add is not None:
        wide = wide + _columns(add, x)
    batch, channels, pixels = len(x), x.shape[1], math.prod(x.shape[2:])
    wide = wide.contiguous()  # the one layout that it takes on every device: on CUDA no channels-last one
    z, mean, rstd = torch.native_group_norm(wide, weight, bias, batch, channels, pixels, groups, eps)
    if scale is not None:
        z = z * (1 + _columns(scale, x))
    if shift is not None:
        z = z + _columns(shift, x)
    return _laid_as(x, z * z.sigmoid() if silu else z), mean, rstd


def _laid_as(x: Tensor, values: Tensor) -> Tensor:
    """values in x's dtype and layout."""
    channels_last = x.dim() == 4 and not x.is_contiguous()
    return values.to(x.dtype).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def group_norm_silu_backward(
    dy: Tensor,  # (B, C, ...) x's dtype
    x: Tensor,  # (B, C, ...)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    mean: Tensor,  # (B, groups)
    rstd: Tensor,  # (B, groups)
    groups: int,
    silu: bool,
    add: Tensor | None = None,  # (B, C)
    scale: Tensor | None = None,  # (B, C)
    shift: Tensor | None = None,  # (B, C)
) -> tuple[Tensor, Tensor]:
    """The gradient by x, and (B, 3, C), of which the others are made: Σ dz, Σ dz x̂ and Σ dx over the pixels.

    With x̂ = (x + add − mean) rstd, g = weight (1 + scale), z = g x̂ + bias (1 + scale) + shift, dz = dy silu'(z), and means over a group,
    dx = rstd (g dz − mean(g dz) − x̂ mean(g dz x̂)).
    """
    each = x.shape[1] // groups
    mean, rstd = (_columns(part.repeat_interleave(each, 1), x) for part in (mean, rstd))
    wide = x.to(weight.dtype)
    if add is not None:
        wide = wide + _columns(add, x)
    normed, dz = (wide - mean) * rstd, dy.to(weight.dtype)
    factor = 1 if scale is None else 1 + scale
    gain, offset = _columns(weight * factor, x), _columns(bias * factor, x)
    if silu:
        z = gain * normed + offset
        if shift is not None:
            z = z + _columns(shift, x)
        s = z.sigmoid()
        dz = dz * s * (1 + z * (1 - s))

    def over_group(values: Tensor) -> Tensor:
        return values.reshape(len(x), groups, -1).mean(2).repeat_interleave(each, 1)

    pull = gain * dz
    dx = rstd * (pull - _columns(over_group(pull), x) - normed * _columns(over_group(pull * normed), x))
    sums = torch.stack([part.flatten(2).sum(2) for part in (dz, dz * normed, dx)], 1)
    return _laid_as(x, dx), sums
