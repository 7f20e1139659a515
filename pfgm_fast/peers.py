"""What the kernels are compared with: the same quantities in plain PyTorch, as others compute them. Floats only.

A `*_field` takes x (B, N), r (B,), charges (M, N) and D, and gives x − m (B, N); `target` turns one into PFGM's (v_x, v_z).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def authors_field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float = 1.0) -> Tensor:
    """The broadcast formula of PFGM (arXiv 2209.11178, algorithm 1): every difference formed, B×M×(N + 1) numbers in memory.

    Weights are 1/d^(N+D) over their sum, through ratios to the row's nearest charge, as float32 demands.
    """
    points = torch.cat([x, r[:, None]], 1)
    padded = torch.cat([charges, charges.new_zeros(len(charges), 1)], 1)
    differences = points[:, None] - padded[None]
    distance = differences.square().sum(2).sqrt()
    if math.isinf(aug_dim):
        weights = torch.softmax(-distance.square() / (2 * r.square())[:, None], 1)
    else:
        ratio = (distance.min(1, keepdim=True).values / distance) ** (x.shape[1] + aug_dim)
        weights = ratio / ratio.sum(1, keepdim=True)
    return (weights[..., None] * differences).sum(1)[:, :-1]


def _softmax_field(squares: Tensor, x: Tensor, r: Tensor, charges: Tensor, aug_dim: float) -> Tensor:
    """x − w·charges from ‖x − y‖² (B, M), in place."""
    if math.isinf(aug_dim):
        logits = squares.mul_((-0.5 / r.square())[:, None])
    else:
        squares += r.square()[:, None]
        logits = squares.clamp_(min=torch.finfo(x.dtype).tiny).log_().mul_(-0.5 * (x.shape[1] + aug_dim))
    return torch.addmm(x, torch.softmax(logits, 1), charges, alpha=-1)


def gram_field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float = 1.0) -> Tensor:
    """The best plain PyTorch that is known: ‖x‖² + ‖y‖² − 2x·y by one product, in place, softmax, a second product."""
    squares = torch.linalg.vector_norm(charges, dim=1).square_()
    product = torch.addmm(squares[None], x, charges.T, alpha=-2)
    product += torch.linalg.vector_norm(x, dim=1).square_()[:, None]
    return _softmax_field(product, x, r, charges, aug_dim)


def cdist_field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float = 1.0) -> Tensor:
    """torch.cdist, softmax, a product: what one writes first."""
    return _softmax_field(torch.cdist(x, charges).square_(), x, r, charges, aug_dim)


def keops_field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float = 1.0) -> Tensor:
    """pykeops LazyTensor: a reduction compiled for the shape, in tiles, without B×M numbers. Raises ImportError without it."""
    from pykeops.torch import LazyTensor

    queries, points = LazyTensor(x[:, None].contiguous()), LazyTensor(charges[None].contiguous())
    radii = LazyTensor(r.square().view(-1, 1, 1))
    squares = ((queries - points) ** 2).sum(-1)
    if math.isinf(aug_dim):
        logits = -squares / (2 * radii)
    else:
        logits = (squares + radii).log() * (-0.5 * (x.shape[1] + aug_dim))
    return x - logits.sumsoftmaxweight(points, dim=1)


@cache
def _jax_field() -> Any:
    """x − m by one jitted function of JAX on the CPU, D a constant of the compilation."""
    import jax
    import jax.numpy as jnp

    def field(x: Any, r: Any, charges: Any, aug_dim: float) -> Any:
        squares = (charges**2).sum(1)[None] - 2 * x @ charges.T + (x**2).sum(1)[:, None]
        if math.isinf(aug_dim):
            logits = -squares / (2 * r**2)[:, None]
        else:
            logits = -0.5 * (x.shape[1] + aug_dim) * jnp.log(squares + (r**2)[:, None])
        return x - jax.nn.softmax(logits, axis=1) @ charges

    return jax.jit(field, static_argnums=3)


def jax_field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float = 1.0) -> Tensor:
    """JAX's jit of the Gram version. Raises ImportError without JAX."""
    return torch.from_dlpack(_jax_field()(x.numpy(), r.numpy(), charges.numpy(), aug_dim).block_until_ready())


def attention_field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float = math.inf) -> Tensor:
    """scaled_dot_product_attention with a bias: softmax(x·y/σ² − ‖y‖²/(2σ²)) y. Only D = ∞ is an attention."""
    inverse = r.square().reciprocal()[:, None]
    bias = -0.5 * inverse * charges.square().sum(1)[None]
    keys = charges[None, None]
    query = (x * inverse)[None, None]
    mean = torch.nn.functional.scaled_dot_product_attention(query, keys, keys, bias[None, None], scale=1.0)
    return x - mean[0, 0]


@cache
def _flat_index(address: int, count: int, dim: int) -> Any:
    import faiss

    return faiss.IndexFlatL2(dim)


def faiss_field(x: Tensor, r: Tensor, charges: Tensor, aug_dim: float = 1.0) -> Tensor:
    """FAISS: the 2,000 nearest charges of a flat index, and the softmax over them: not exact. Raises ImportError without it."""
    index = _flat_index(charges.data_ptr(), *charges.shape)
    if index.ntotal == 0:
        index.add(charges.numpy())
    squares, which = index.search(x.numpy(), min(2000, len(charges)))
    near = torch.from_numpy(squares)
    if math.isinf(aug_dim):
        logits = near * (-0.5 / r.square())[:, None]
    else:
        logits = (near + r.square()[:, None]).log() * (-0.5 * (x.shape[1] + aug_dim))
    weights = torch.zeros(len(x), len(charges)).scatter_(1, torch.from_numpy(which), torch.softmax(logits, 1))
    return torch.addmm(x, weights, charges, alpha=-1)


def bytes_needed(field: Field, batch: int, count: int, dim: int) -> int:
    """About how much memory a peer takes at its peak, the float charges included."""
    special: dict[Field, int] = {authors_field: 3 * (dim + 1), keops_field: 0}
    pairs = special.get(field, 2)
    return 4 * (count * dim + batch * count * pairs)


def target(field: Field, x: Tensor, z: Tensor, charges: Tensor, gamma: float = 5.0) -> tuple[Tensor, Tensor]:
    """PFGM's training target v = −√N E/(‖E‖ + γ), E = (x − m, z), by a peer: v_x (B, N), v_z (B,)."""
    difference = field(x, z, charges, 1.0)
    scale = -math.sqrt(x.shape[1]) / ((difference.square().sum(1) + z * z).sqrt_() + gamma)
    return difference * scale[:, None], z * scale


def authors_target(x: Tensor, z: Tensor, charges: Tensor, gamma: float = 5.0) -> tuple[Tensor, Tensor]:
    """`target` by the authors' broadcast formula."""
    return target(authors_field, x, z, charges, gamma)


def gram_target(x: Tensor, z: Tensor, charges: Tensor, gamma: float = 5.0) -> tuple[Tensor, Tensor]:
    """`target` by the best Gram version."""
    return target(gram_field, x, z, charges, gamma)


def plain_euler(
    x: Tensor, vx: Tensor, vz: Tensor, z: float, z_next: float, gamma: float = 5.0, z_exp: float = 5.0
) -> Tensor:
    """One Euler step of the sampler as it is written in plain PyTorch: some ten passes over the data."""
    dim = math.prod(x.shape[1:])
    if z < z_exp:
        n = vx.flatten(1).norm(dim=1) / math.sqrt(dim)
        length = ((gamma * n / (1 - n)) ** 2 + z * z).sqrt()
        vz = -math.sqrt(dim) * z / (length + gamma)
    return x + (z_next - z) * vx / vz.view(-1, *[1] * (x.dim() - 1))
