"""The empirical Poisson field of a data set, and what follows from it.

Every function takes queries x (B, *shape), float32 or float64; r (B,), () or a number, > 0: the norm of the D extra
coordinates, r = σ√D (z where D = 1, σ itself where D = ∞), or, where a user thinks in noise levels, sigma in its place; and the
charges (M, *shape), a `Charges` or a plain tensor. Symbols are those of docs/architecture.md: w_j is the softmax over the charges
of log q_j − (N + D)/2 log(‖x − y_j‖² + r²).

Shared behaviour. A row of x that holds NaN or infinity gives a row of NaN. r ≤ 0 or NaN raises ArgumentError where reading
it is free (CPU) and gives a row of NaN on a GPU. Wrong shapes, dtypes, devices and D ≤ 0 raise ArgumentError; a backend that
cannot serve the call raises BackendError. `labels` (B,): each query sees only the charges of its class. B may be 0.

Derivatives by x and r, in reverse and forward mode, and torch.func's transforms of them: first order of all functions, second
order of `log_density` and of what else needs no third moments (`ops/derivatives.py` has the table); what is not there raises
DerivativeError. Charges, their weights and labels are data. vmap goes over x and r.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.ops.schema import Query
from pfgm_fast.special import log_gamma_ratio, radius_scale


def _query(x: Tensor, r: Tensor | float, charges: Charges, aug_dim: float) -> Query:
    """The one place where public arguments become flat ones."""
    x = checks.batch("x", x)
    return charges.query(x, checks.per_row("r", r, x, positive=True), checks.aug_dim(aug_dim))


def _radius(
    x: Tensor, r: Tensor | float | None, sigma: Tensor | float | None, aug_dim: float
) -> Tensor | float:
    """r as it was given, or σ√D of sigma (σ where D = ∞)."""
    if sigma is None and r is not None:
        return r
    if (sigma is None) == (r is None):
        given = "neither" if r is None else "both"
        raise ArgumentError(
            f"give one of r and sigma, which are tied by r = σ√D (r = σ for D = ∞); got {given}"
        )
    return checks.per_row("sigma", sigma, checks.batch("x", x), positive=True) * radius_scale(
        checks.aug_dim(aug_dim)
    )


def _given(charges: Charges | Tensor | None) -> Charges:
    """Charges of what was given; with sigma= they come by name, and may be forgotten."""
    if charges is None:
        raise ArgumentError("charges are missing: the data (M, *shape), Charges or a tensor")
    return as_charges(charges)


Operator = Callable[[Any, Query], tuple[Tensor, ...]]
"""What is done with a Query by the charges' `operators`; its outputs have B rows."""


def _over_classes(
    operator: Operator,
    x: Tensor,
    r: Tensor | float,
    charges: Charges | Tensor | None,
    aug_dim: float,
    labels: Tensor | None,
) -> tuple[Tensor, ...]:
    """Call an operator once, or once a class with the rows and the charges of that class."""
    charges = _given(charges)
    query = _query(x, r, charges, aug_dim)
    if labels is None:
        return operator(charges.operators, query)
    labels = checks.constant("labels", checks.index("labels", labels, x))
    flat, radius = query.x, query.r
    outputs: list[Tensor] = []
    for label in charges.classes_among(labels):
        rows = (labels == label).nonzero().flatten()
        part, _ = charges.of_label(label)
        # the class's rows have the shape that the charges' own check has already seen
        part_query = _query(flat[rows].reshape(len(rows), *charges.shape), radius[rows], part, aug_dim)
        results = operator(part.operators, part_query)
        if not outputs:
            outputs = [result.new_empty((len(flat), *result.shape[1:])) for result in results]
        outputs = [out.index_copy(0, rows, result) for out, result in zip(outputs, results, strict=True)]
    return tuple(outputs) if outputs else operator(charges.operators, query)


def posterior_mean(
    x: Tensor,  # (B, *shape)
    r: Tensor | float | None = None,  # (B,)
    charges: Charges | Tensor | None = None,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    sigma: Tensor | float | None = None,  # (B,)
    labels: Tensor | None = None,  # (B,)
) -> Tensor:
    """m = Σ_j w_j y_j (B, *shape): the mean of the data behind a perturbed point, the ideal denoiser.

    PFGM++ (arXiv 2302.04265) eq. 4 and proposition 1; D = ∞ is the denoiser of diffusion models. Inside the convex hull
    of the charges.

    Args:
        x: Queries (B, *shape), float32 or float64.
        r: The norm > 0 of the D extra coordinates, () or (B,) or a number: r = σ√D (z where D = 1, σ itself where D = ∞).
        charges: The data (M, *shape), `Charges` or a plain tensor.
        aug_dim: D ∈ (0, ∞].
        sigma: The noise level σ > 0, () or (B,) or a number, in r's place.
        labels: Classes (B,); each query sees the charges of its own class only.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; both r and sigma, or neither; a class without charges.
        BackendError: No backend can serve the call.
    """
    r = _radius(x, r, sigma, aug_dim)
    mean, _ = _over_classes(lambda ops, query: ops.posterior_mean(*query), x, r, charges, aug_dim, labels)
    return mean.view(x.shape)


def posterior(
    x: Tensor,  # (B, *shape)
    r: Tensor | float,  # (B,)
    charges: Charges | Tensor,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    labels: Tensor | None = None,  # (B,)
) -> tuple[Tensor, Tensor]:
    """`posterior_mean` (B, *shape) and `log_partition` (B,) float64, which it needs anyway, in one pass. Raises: as `posterior_mean`."""
    mean, lse = _over_classes(lambda ops, query: ops.posterior_mean(*query), x, r, charges, aug_dim, labels)
    return mean.view(x.shape), lse


def poisson_field(
    x: Tensor,  # (B, *shape)
    r: Tensor | float | None = None,  # (B,)
    charges: Charges | Tensor | None = None,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    sigma: Tensor | float | None = None,  # (B,)
    labels: Tensor | None = None,  # (B,)
) -> tuple[Tensor, Tensor]:
    """(E_x, E_r) ∝ the Poisson field: E_x = x − m (B, *shape) as a sum of differences, E_r = r (B,).

    PFGM (arXiv 2209.11178) eq. 4, PFGM++ (arXiv 2302.04265) eq. 3, scaled by Σ_j q_j/d_j^(N+D) > 0; it points away from
    the charges. On top of a lone charge E_x is 0.

    Args:
        x: Queries (B, *shape), float32 or float64.
        r: The norm > 0 of the D extra coordinates, () or (B,) or a number: r = σ√D (z where D = 1, σ itself where D = ∞).
        charges: The data (M, *shape), `Charges` or a plain tensor.
        aug_dim: D ∈ (0, ∞].
        sigma: The noise level σ > 0, () or (B,) or a number, in r's place.
        labels: Classes (B,); each query sees the charges of its own class only.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; both r and sigma, or neither; a class without charges.
        BackendError: No backend can serve the call.
    """
    r = _radius(x, r, sigma, aug_dim)
    field, _ = _over_classes(lambda ops, query: ops.poisson_field(*query), x, r, charges, aug_dim, labels)
    return field.view(x.shape), checks.per_row("r", r, x, positive=False)


def pfgm_target(
    x: Tensor,  # (B, *shape)
    z: Tensor | float,  # (B,)
    charges: Charges | Tensor,  # (M, *shape)
    gamma: float = 5.0,
    *,
    labels: Tensor | None = None,  # (B,)
) -> tuple[Tensor, Tensor]:
    """v = −√N E/(‖E‖ + γ), the training target of PFGM: v_x (B, *shape) and v_z (B,), with D = 1.

    PFGM (arXiv 2209.11178) algorithm 1, with E = (x − m, z). ‖(v_x, v_z)‖ < √N, and v points to the charges.

    Args:
        x: Queries (B, *shape), float32 or float64.
        z: Height > 0 above the data, () or (B,) or a number: the r of D = 1, which is σ too.
        charges: The data (M, *shape), `Charges` or a plain tensor.
        gamma: γ ≥ 0, in units of the data: keeps v finite where the field vanishes.
        labels: Classes (B,); each query sees the charges of its own class only.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; a class without charges.
        BackendError: No backend can serve the call.
    """
    gamma = checks.nonnegative("gamma", gamma)

    def operator(ops: Any, query: Query) -> tuple[Tensor, Tensor]:
        field, _ = ops.poisson_field(*query)
        return ops.normalize_field(field, query.r, gamma)

    vx, vz = _over_classes(operator, x, z, charges, 1.0, labels)
    return vx.view(x.shape), vz


def _log_normalizer(dim: int, aug_dim: float, r: Tensor) -> Tensor:
    """log of the perturbation kernel's value at its centre, (B,) float64: the density of x given y at x = y."""
    r = r.double()
    if math.isinf(aug_dim):
        return -0.5 * dim * math.log(2 * math.pi) - dim * r.log()
    constant = log_gamma_ratio(aug_dim / 2, dim / 2) - 0.5 * dim * math.log(math.pi)
    return constant - dim * r.log()


def log_partition(
    x: Tensor,  # (B, *shape)
    r: Tensor | float,  # (B,)
    charges: Charges | Tensor,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    labels: Tensor | None = None,  # (B,)
) -> Tensor:
    """log Σ_j q_j (1 + ‖x − y_j‖²/r²)^(−(N+D)/2) (B,) float64; D = ∞: log Σ_j q_j exp(−‖x − y_j‖²/(2r²)).

    `log_density` less its constants, relative to r, so that it stays small where densities of many dimensions are huge.
    """
    (lse,) = _over_classes(lambda ops, query: (ops.log_density(*query),), x, r, charges, aug_dim, labels)
    return lse


def log_density(
    x: Tensor,  # (B, *shape)
    r: Tensor | float | None = None,  # (B,)
    charges: Charges | Tensor | None = None,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    sigma: Tensor | float | None = None,  # (B,)
    labels: Tensor | None = None,  # (B,)
) -> Tensor:
    """log p_r(x) (B,) in nats: the normalised density over R^N of the data perturbed at r.

    p_r(x) = Σ_j q_j k_r(x − y_j)/Σ_j q_j with k_r ∝ (‖x − y‖² + r²)^(−(N+D)/2) (PFGM++, arXiv 2302.04265, eq. 4), or the
    Gaussian of standard deviation r where D = ∞. Sums in float64, returned in x's dtype.

    Args:
        x: Queries (B, *shape), float32 or float64.
        r: The norm > 0 of the D extra coordinates, () or (B,) or a number: r = σ√D (z where D = 1, σ itself where D = ∞).
        charges: The data (M, *shape), `Charges` or a plain tensor.
        aug_dim: D ∈ (0, ∞].
        sigma: The noise level σ > 0, () or (B,) or a number, in r's place.
        labels: Classes (B,); each query sees the charges of its own class only.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; both r and sigma, or neither; a class without charges.
        BackendError: No backend can serve the call.
    """
    r = _radius(x, r, sigma, aug_dim)
    charges = _given(charges)
    (lse,) = _over_classes(lambda ops, query: (ops.log_density(*query),), x, r, charges, aug_dim, labels)
    radius = checks.per_row("r", r, x, positive=False)
    if labels is None:
        total: float | Tensor = charges.mean_log_weight()
    else:
        labels = checks.constant("labels", labels)
        per_class = {k: charges.of_label(k)[0].mean_log_weight() for k in labels.unique().tolist()}
        total = lse.new_tensor([float(per_class[k]) for k in labels.tolist()])
    return (lse - total + _log_normalizer(charges.dim, checks.aug_dim(aug_dim), radius)).to(x.dtype)


def score(
    x: Tensor,  # (B, *shape)
    r: Tensor | float | None = None,  # (B,)
    charges: Charges | Tensor | None = None,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    sigma: Tensor | float | None = None,  # (B,)
    labels: Tensor | None = None,  # (B,)
) -> Tensor:
    """∇_x log p_r(x) = −(N + D) Σ_j w_j (x − y_j)/d²_j (B, *shape); D = ∞: (m − x)/σ².

    PFGM++ (arXiv 2302.04265) section 3: the field is the score times a factor only at D = ∞.

    Args:
        x: Queries (B, *shape), float32 or float64.
        r: The norm > 0 of the D extra coordinates, () or (B,) or a number: r = σ√D (z where D = 1, σ itself where D = ∞).
        charges: The data (M, *shape), `Charges` or a plain tensor.
        aug_dim: D ∈ (0, ∞].
        sigma: The noise level σ > 0, () or (B,) or a number, in r's place.
        labels: Classes (B,); each query sees the charges of its own class only.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; both r and sigma, or neither; a class without charges.
        BackendError: No backend can serve the call.
    """
    r = _radius(x, r, sigma, aug_dim)

    def operator(ops: Any, query: Query) -> tuple[Tensor]:
        if math.isinf(query.aug_dim):  # where the field says it all, and its derivatives need fewer moments
            return (ops.poisson_field(*query)[0] / -query.r.square()[:, None],)
        return (ops.score(*query)[0],)

    (gradient,) = _over_classes(operator, x, r, charges, aug_dim, labels)
    return gradient.view(x.shape)


def field_divergence(
    x: Tensor,  # (B, *shape)
    r: Tensor | float | None = None,  # (B,)
    charges: Charges | Tensor | None = None,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    sigma: Tensor | float | None = None,  # (B,)
    labels: Tensor | None = None,  # (B,)
) -> Tensor:
    """Σ_k ∂(x − m)_k/∂x_k (B,): the trace of the Jacobian of E_x = x − m, exact, as weighted sums.

    PFGM++ (arXiv 2302.04265) eq. 4 differentiated: tr J_m = Σ w c ‖ρ‖² − e·g (docs/architecture.md), so the divergence is N − Σ w c ‖ρ‖² − (x − m)·g. The flow of the true
    field, dx/dr = (x − m)/r, has the divergence of this over r: the instantaneous change of variables without an estimate.

    Args:
        x: Queries (B, *shape), float32 or float64.
        r: The norm > 0 of the D extra coordinates, () or (B,) or a number: r = σ√D (z where D = 1, σ itself where D = ∞).
        charges: The data (M, *shape), `Charges` or a plain tensor.
        aug_dim: D ∈ (0, ∞].
        sigma: The noise level σ > 0, () or (B,) or a number, in r's place.
        labels: Classes (B,); each query sees the charges of its own class only.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; both r and sigma, or neither; a class without charges.
        BackendError: No backend can serve the call.
    """
    r = _radius(x, r, sigma, aug_dim)

    def operator(ops: Any, query: Query) -> tuple[Tensor]:
        gradient, field, _, trace, _ = ops.score(*query)
        return (query.x.shape[1] - trace - (field * gradient).sum(1),)

    (divergence,) = _over_classes(operator, x, r, charges, aug_dim, labels)
    return divergence


def field_step(
    x: Tensor,  # (B, *shape)
    z: Tensor | float,  # (B,)
    z_next: Tensor | float,  # (B,)
    charges: Charges | Tensor,  # (M, *shape)
    aug_dim: float = 1.0,
    *,
    labels: Tensor | None = None,  # (B,)
) -> Tensor:
    """One Euler step of dx/dz = E_x/E_z in the true field, x + (z' − z)/z (x − m): (B, *shape), no network.

    PFGM (arXiv 2209.11178) eq. 6; for other D with r = σ√D for z (PFGM++ eq. 5), for D = ∞ with σ. At z' = 0 the step ends on the
    posterior mean.

    Args:
        x: Points (B, *shape), float32 or float64, at z.
        z: Height > 0, () or (B,) or a number.
        z_next: Height ≥ 0 to step to, on either side of z, () or (B,) or a number.
        charges: The data (M, *shape), `Charges` or a plain tensor.
        aug_dim: D ∈ (0, ∞].
        labels: Classes (B,); each point sees the charges of its own class only.

    Raises:
        ArgumentError: A wrong shape, dtype, device or value; a class without charges.
        BackendError: No backend can serve the call.
    """

    def operator(ops: Any, query: Query) -> tuple[Tensor]:
        return (ops.field_step(*query, next_radius[: len(query.x)]),)

    next_radius = checks.per_row(
        "z_next", z_next, x if isinstance(x, Tensor) else checks.batch("x", x), positive=False
    )
    if labels is not None:
        field, r = poisson_field(x, z, charges, aug_dim, labels=labels)
        factor = ((next_radius - r) / r).view(-1, *[1] * (x.dim() - 1))
        return x + factor * field
    (stepped,) = _over_classes(operator, x, z, charges, aug_dim, None)
    return stepped.view(x.shape)
