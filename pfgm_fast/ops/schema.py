"""The contract: what every operator takes and returns, one table of schemas, and `Query`, which the field operators begin with.

Inside an operator every array is flat: x is (B, N), charges are (M, N). docs/architecture.md has the operators' formulas;
`ops.registration` gives this table to PyTorch's dispatcher.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Query(NamedTuple):
    """What every field operator begins with. It unpacks into an operator's arguments: `torch.ops.pfgm_fast.score(*query)`."""

    x: Tensor  # (B, N) float32 or float64, contiguous
    r: Tensor  # (B,) x's dtype: the norm of the D extra coordinates; σ where D = ∞
    charges: Tensor  # (M, N) x's dtype, or uint8, contiguous
    log_weights: Tensor | None  # (M,) float64: log q_j; None: all 0
    center: Tensor | None  # (N,) μ, a shift that keeps products small
    sq_norms: Tensor | None  # (M,) float64: ‖y_j − μ‖²
    divisor: float  # a byte's value is byte / divisor + offset; 1 and 0 for float charges
    offset: float
    aug_dim: float  # D


QUERY = (
    "Tensor x, Tensor r, Tensor charges, Tensor? log_weights, Tensor? center, Tensor? sq_norms, "
    "float divisor, float offset, float aug_dim"
)
"""`Query` as a schema says it."""

BALL = "float? radius=None"
"""Where the charges are, for the steps: ‖y‖ ≤ radius; None: anywhere."""

NORM = "Tensor? add, Tensor? scale, Tensor? shift"
"""Numbers (B, C) of each image's channels: add comes before the norm, scale and shift behind it."""

SCHEMAS: dict[str, str] = {
    "posterior_mean": f"({QUERY}) -> (Tensor, Tensor)",
    "poisson_field": f"({QUERY}) -> (Tensor, Tensor)",
    "score": f"({QUERY}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "log_density": f"({QUERY}) -> Tensor",
    "second_moment": f"({QUERY}, Tensor u, int power) -> (Tensor, Tensor)",
    "gaussian_moments": f"({QUERY}) -> (Tensor, Tensor)",
    "field_step": f"({QUERY}, Tensor r_next) -> Tensor",
    "normalize_field": "(Tensor field, Tensor r, float gamma) -> (Tensor, Tensor)",
    "drift": f"(Tensor vx, Tensor vz, Tensor z, float gamma, float z_exp, Tensor? x=None, {BALL}) -> Tensor",
    "euler_step": (
        f"(Tensor x, Tensor vx, Tensor vz, Tensor z, Tensor z_next, float gamma, float z_exp, {BALL}) -> Tensor"
    ),
    "euler_step.out": (
        f"(Tensor x, Tensor vx, Tensor vz, Tensor z, Tensor z_next, float gamma, float z_exp, {BALL}, *, "
        "Tensor(a!) out) -> ()"
    ),
    "heun_step": (
        "(Tensor x, Tensor vx, Tensor vz, Tensor vx_next, Tensor vz_next, Tensor z, Tensor z_next, "
        f"float gamma, float z_exp, {BALL}) -> Tensor"
    ),
    "group_norm_silu": (
        f"(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool silu, {NORM}) -> (Tensor, Tensor, Tensor)"
    ),
    "group_norm_silu_backward": (
        "(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, int groups, bool silu, "
        f"{NORM}) -> (Tensor, Tensor)"
    ),
}

FIELD_OPERATORS = (
    "posterior_mean",
    "poisson_field",
    "score",
    "log_density",
    "second_moment",
    "gaussian_moments",
    "field_step",
)
"""The operators that sum over charges; their arguments begin with a query's."""

REFERENCE_ONLY = ("gaussian_moments",)
"""Operators that only the reference has, whichever backend is asked for: derivatives by σ at D = ∞, nobody's hot path."""

NETWORK_OPERATORS = ("group_norm_silu", "group_norm_silu_backward")
"""The operators that networks are made of: images (B, C, ...), contiguous or with channels last, as the results then are; float32,
bfloat16, float16 with float32 parameters and sums, or float64. On a GPU Triton serves them: they are bound by memory, and CUDA C++
would read and write the same bytes."""


def function_name(op: str) -> str:
    """The backend function that serves an operator: an overload's dot becomes an underscore."""
    return op.replace(".", "_")
