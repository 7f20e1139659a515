"""What the kernels are compared with: the same quantities in plain PyTorch, as others compute them. For D = 1, floats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def authors_target(x: Tensor, z: Tensor, charges: Tensor, gamma: float = 5.0) -> tuple[Tensor, Tensor]:
    """The broadcast formula of PFGM (arXiv 2209.11178, algorithm 1): every difference formed, B×M×(N + 1) numbers in memory.

    x (B, N), z (B,), charges (M, N) → v_x (B, N), v_z (B,). Weights are 1/d^(N+1) over their sum, through ratios to the row's
    nearest charge, as float32 demands.
    """
    dim = x.shape[1]
    points = torch.cat([x, z[:, None]], 1)
    padded = torch.cat([charges, charges.new_zeros(len(charges), 1)], 1)
    differences = points[:, None] - padded[None]
    distance = differences.square().sum(2).sqrt()
    ratio = (distance.min(1, keepdim=True).values / distance) ** (dim + 1)
    weights = ratio / ratio.sum(1, keepdim=True)
    field = (weights[..., None] * differences).sum(1)
    v = -math.sqrt(dim) * field / (field.norm(dim=1, keepdim=True) + gamma)
    return v[:, :-1], v[:, -1]


def gram_target(x: Tensor, z: Tensor, charges: Tensor, gamma: float = 5.0) -> tuple[Tensor, Tensor]:
    """The best plain PyTorch that is known: ‖x‖² + ‖y‖² − 2x·y by one product, in place, softmax, a second product."""
    dim = x.shape[1]
    squares = torch.linalg.vector_norm(charges, dim=1).square_()
    logits = torch.addmm(squares[None], x, charges.T, alpha=-2)
    logits += (torch.linalg.vector_norm(x, dim=1).square_() + z * z)[:, None]
    logits.clamp_(min=torch.finfo(x.dtype).tiny).log_().mul_(-0.5 * (dim + 1))
    weights = torch.softmax(logits, 1)
    field = torch.addmm(x, weights, charges, alpha=-1)
    scale = -math.sqrt(dim) / ((field.square().sum(1) + z * z).sqrt_() + gamma)
    return field * scale[:, None], z * scale


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
