"""The exact nearest charges: products find candidates, direct distances order them, a rounding bound proves that none is missing."""

from __future__ import annotations

import torch
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError

_QUERIES = 512  # at a time: the charges are decoded once for each
_COLUMNS = 1024  # of one float32 product; further ones are added in float64, which keeps the bound small
_SPARE = 14  # candidates beyond those asked for
_GATHERED = 1 << 24  # elements of candidates that are compared directly at a time


@torch.no_grad()
def nearest_charges(
    x: Tensor,  # (B, *shape)
    charges: Charges | Tensor,  # (M, *shape)
    k: int = 1,
) -> tuple[Tensor, Tensor]:
    """Distances (B, k) float64, ascending, and indices (B, k) int64 of the k nearest charges, Euclidean, weights ignored.

    Distances are direct sums of squared differences in float64. Exact: a charge that is not among the candidates is proven to
    be farther, by |Σ ab − fl(Σ ab)| ≤ n u/(1 − n u) ‖a‖‖b‖ for sums of n products (Higham 2002, eq. 3.5).

    Cost: one float32 product B × M × N, and (k + 14) N a query. Raises: ArgumentError for k outside 1 … M, other shapes,
    queries that are not finite.
    """
    charges = as_charges(charges)
    x = checks.batch("x", x)
    checks.same_device("x", x, "charges", charges.data)
    if x.shape[1:] != charges.shape:
        raise ArgumentError(f"x's rows have shape {tuple(x.shape[1:])}, the charges {tuple(charges.shape)}")
    if not isinstance(k, int) or not 1 <= k <= len(charges):
        raise ArgumentError(
            f"k must be an integer from 1 to the number of charges, {len(charges)}; got {k!r}"
        )
    flat = checks.flat(x).double()
    if not bool(flat.isfinite().all()):
        raise ArgumentError("x must be finite; a query that holds NaN or infinity has no nearest charge")
    found = [_search(part, charges, k, min(k + _SPARE, len(charges))) for part in flat.split(_QUERIES)]
    if not found:
        return flat.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=x.device)
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _search(x: Tensor, charges: Charges, k: int, candidates: int) -> tuple[Tensor, Tensor]:
    rough, index, error = _candidates(x, charges, candidates)
    squares = torch.cat(
        [
            _direct(x[rows], index[rows], charges)
            for rows in torch.arange(len(x), device=x.device).split(
                max(1, _GATHERED // (candidates * x.shape[1]))
            )
        ]
    )
    squares, order = squares.sort(dim=1, stable=True)
    index = index.gather(1, order)
    if candidates < len(charges):
        open_ = squares[:, k - 1] > rough[:, -1] - error
        if bool(open_.any()):
            more = min(len(charges), 8 * candidates)
            deeper = _search(x[open_], charges, k, more)
            squares[open_, :k], index[open_, :k] = deeper[0].square(), deeper[1]
    return squares[:, :k].sqrt(), index[:, :k]


def _candidates(x: Tensor, charges: Charges, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the `count` least approximate squared distances: those (B, count), ascending, indices, and the bound (B,) on their error."""
    center = charges.center.double()
    shifted = x - center
    norms = shifted.square().sum(1)
    left = shifted.float()
    best = x.new_full((len(x), 0), 0.0)
    index = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for block in charges.blocks():
        right = (charges.values(block, charges.value_dtype).flatten(1).double() - center).float()
        product = sum(
            (a @ b.T).double() for a, b in zip(left.split(_COLUMNS, 1), right.split(_COLUMNS, 1), strict=True)
        )
        squares = norms[:, None] + charges.sq_norms[block] - 2 * product
        best = torch.cat([best, squares], 1)
        here = torch.arange(block.start, block.stop, device=x.device).expand(len(x), -1)
        index = torch.cat([index, here], 1)
        best, order = best.topk(min(count, best.shape[1]), dim=1, largest=False)
        index = index.gather(1, order)
    terms = (
        min(x.shape[1], _COLUMNS) + 6
    ) * 2.0**-24  # the products' sums, and both factors' rounding to float32
    error = 2 * terms / (1 - terms) * norms.sqrt() * charges.sq_norms.max().sqrt()
    return best, index, error + 2.0**-48 * (norms + charges.sq_norms.max())


def _direct(x: Tensor, index: Tensor, charges: Charges) -> Tensor:
    """‖x − y‖² (B, K) in float64 of the charges at index (B, K)."""
    values = charges.values(index.flatten()).flatten(1).double().view(*index.shape, -1)
    return (x[:, None] - values).square().sum(2)
