"""IdealDenoiser: the exact posterior mean of a data set behind the interface of a denoising network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pfgm_fast import checks
from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import posterior_mean
from pfgm_fast.special import radius_scale


class IdealDenoiser(nn.Module):
    """D(x; σ) = E[y | x]: what a network of unlimited capacity would learn from these data, and no network can beat.

    Called as `(x, sigma, labels=None)`, with the attributes of EDM's networks, so that it takes a network's place in EDM, k-diffusion
    and plain sampling loops, and in `pf.sample(ideal, shape, method=PFGMpp(aug_dim=...))`. No parameters; `.to(device)` moves the
    data, `.half()` and `.double()` leave them alone. Not differentiated in the data; in x and σ as `posterior_mean` is.
    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 57 for D = ∞; PFGM++ (arXiv 2302.04265) proposition 1.

    Args:
        data: Charges, or a tensor (M, *shape) of what they are made of. With labels where it is to be asked for classes.
        aug_dim: D ∈ (0, ∞]. ∞, the default, is the denoiser of diffusion models; for finite D, r = σ√D (PFGM++, section 4).
        sigma_min, sigma_max: What a sampler that asks for them is told, σ ≥ 0; 0 and ∞ as EDM's networks say.

    Raises:
        ArgumentError: As `Charges` for data; D that is not in (0, ∞].
    """

    def __init__(
        self,
        data: Charges | Tensor,  # (M, *shape)
        aug_dim: float = math.inf,
        *,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
    ) -> None:
        super().__init__()
        self.charges = as_charges(data)
        self.aug_dim = checks.aug_dim(aug_dim)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        shape = self.charges.shape
        self.img_channels = shape[0] if len(shape) == 3 else None
        self.img_resolution = shape[-1] if len(shape) == 3 else None
        self.label_dim = max(self.charges.classes, default=-1) + 1
        # Follows the module from device to device; the charges follow it.
        self._where: Tensor
        self.register_buffer("_where", torch.empty(0, device=self.charges.device), persistent=False)

    def forward(
        self,
        x: Tensor,  # (B, *shape) float32, float64, bfloat16 or float16
        sigma: Tensor | float,  # () or (B,) or anything that broadcasts over B alone, such as (B, 1, 1, 1)
        labels: Tensor | None = None,  # (B,) classes, or (B, K) one-hot; a row of zeros sees all classes
        **ignored: Any,
    ) -> Tensor:
        """The posterior mean (B, *shape) in x's dtype; half precision is computed in float32.

        Further keywords that samplers pass to networks (`force_fp32`, `augment_labels`) are ignored: they change nothing here.
        Raises: ArgumentError for σ ≤ 0 or of a shape that differs within an image, labels that the data lack, other shapes.
        """
        if self.charges.device != self._where.device:
            self.charges = self.charges.to(self._where.device)
        x = checks.batch("x", x, checks.NETWORK)
        wide = x if x.dtype in checks.REAL else x.float()
        if self.charges.dtype == torch.float64 or (
            wide.dtype == torch.float64 and self.charges.dtype == torch.float32
        ):
            wide = wide.to(self.charges.dtype)  # float charges are of one dtype; bytes take either
        radius = self._sigma(sigma, wide) * radius_scale(self.aug_dim)
        if labels is None:
            return posterior_mean(wide, radius, self.charges, self.aug_dim).to(x.dtype)
        classes, free = self._classes(labels, wide)
        out = torch.empty_like(wide)
        for rows, of in ((free, None), (~free, classes)):
            if self.charges.collective or bool(rows.any()):
                part = None if of is None else of[rows]
                out = out.index_put(
                    (rows,), posterior_mean(wide[rows], radius[rows], self.charges, self.aug_dim, labels=part)
                )
        return out.to(x.dtype)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """σ as a tensor: every σ is known exactly."""
        return torch.as_tensor(sigma)

    def _sigma(self, sigma: Tensor | float, x: Tensor) -> Tensor:
        value = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if value.numel() not in (1, len(x)) or (
            value.dim() and value.numel() > 1 and value.shape[0] != len(x)
        ):
            raise ArgumentError(
                f"sigma must be one number, or one for each of the {len(x)} images; got shape {tuple(value.shape)}"
            )
        return checks.per_row(
            "sigma", value.flatten() if value.numel() > 1 else value.reshape(()), x, positive=True
        )

    def _classes(self, labels: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Classes (B,), and which rows have none."""
        if not isinstance(labels, Tensor) or labels.shape[:1] != x.shape[:1] or labels.dim() > 2:
            shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ArgumentError(f"labels must be classes ({len(x)},) or one-hot ({len(x)}, K); got {shape}")
        labels = labels.to(x.device)
        if labels.dim() == 1:
            return labels, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        hot = labels != 0
        if not bool((hot.sum(1) <= 1).all()):
            raise ArgumentError("labels must be one-hot: at most one element of a row is not zero")
        return hot.to(torch.int8).argmax(1), ~hot.any(1)

    def extra_repr(self) -> str:
        return f"{self.charges!r}, aug_dim={self.aug_dim:g}"
