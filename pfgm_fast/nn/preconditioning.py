"""Preconditioning: a network F made into a denoiser D(x; σ) = c_skip x + c_out F(c_in x; c_noise) (arXiv 2206.00364, eq. 7).

| class | c_skip | c_out | c_in | c_noise | source |
|---|---|---|---|---|---|
| `EDM` | σ_d²/(σ² + σ_d²) | σ σ_d/√(σ² + σ_d²) | 1/√(σ² + σ_d²) | ln(σ)/4 | table 1; PFGM++ for every D |
| `VP` | 1 | −σ | 1/√(σ² + 1) | 999 t(σ) | table 1 and 11; score-SDE |
| `SubVP` | 1 | −σ | a(t) | 999 t(σ) | score-SDE, eq. 12 |
| `VE` | 1 | σ | 1 | ln(σ/2) | table 1 and 11; score-SDE |
| `IDDPM` | 1 | −σ | 1/√(σ² + 1) | M − 1 − index of σ | table 1, improved DDPM |

x has σ's noise added to data in [−1, 1] and is not scaled: D = E[y | y + noise = x]. PFGM++ ties its radius to σ by r = σ√D.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pfgm_fast import checks
from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn.unet import UNet, one_hot

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


class Preconditioned(nn.Module):
    """net(x, sigma, labels=None) → D(x; σ), in x's dtype: a `UNet` behind coefficients, which a subclass gives.

    Attributes for samplers: sigma_min, sigma_max (the range in which the network was trained), aug_dim (D of PFGM++, ∞ for diffusion),
    img_channels, img_resolution, label_dim, round_sigma.
    half: "float16" (on CUDA only), "bfloat16" or None: how the network, not the coefficients, is computed.
    """

    def __init__(
        self, model: UNet, *, sigma_min: float = 0.0, sigma_max: float = math.inf, half: str | None = None
    ) -> None:
        super().__init__()
        if half is not None and half not in HALF:
            raise ArgumentError(f"half must be float16, bfloat16 or None; got {half!r}")
        self.model, self.half_precision = model, half
        self.sigma_min, self.sigma_max, self.aug_dim = float(sigma_min), float(sigma_max), math.inf
        self.img_channels, self.img_resolution = model.config.channels, model.config.image_size
        self.label_dim = model.config.classes

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in, c_noise (B,) of σ (B,)."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest σ that the network knows: σ itself, as a tensor, unless levels are discrete."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,  # (B, C, H, W) float32, float64, bfloat16 or float16
        sigma: Tensor | float,  # one number, or one an image, in any shape of B elements such as (B, 1, 1, 1)
        labels: Tensor
        | None = None,  # (B,) classes or (B, label_dim) one-hot; None or a row of zeros: no class
        *,
        augment_labels: Tensor | None = None,  # (B, augment_dim)
        force_fp32: bool = False,
    ) -> Tensor:
        """The denoised images (B, C, H, W). force_fp32: without half precision this once.

        Raises: ArgumentError for images that do not fit, σ of another number of elements or ≤ 0, labels of another shape or none here.
        """
        x = checks.batch("x", x, checks.NETWORK)
        wide = x if x.dtype in checks.REAL else x.float()
        dtype = next(self.model.parameters()).dtype
        # σ in the network's dtype, so that a float64 sampler's condition is the one it was trained with
        sigma = self._sigma(sigma, wide).to(torch.float64 if dtype == torch.float64 else torch.float32)
        skip, out, into, noise = (part.to(wide.dtype) for part in self.coefficients(sigma))
        with self._precision(x.device.type, force_fp32):
            prediction = self.model(
                (into.view(-1, 1, 1, 1) * wide).to(dtype),
                noise.to(dtype),
                self._labels(labels, wide),
                augment_labels,
            )
        prediction = prediction[:, : self.img_channels].to(wide.dtype)
        return (skip.view(-1, 1, 1, 1) * wide + out.view(-1, 1, 1, 1) * prediction).to(x.dtype)

    def _precision(self, device: str, force: bool) -> Any:
        if force or self.half_precision is None or (self.half_precision == "float16" and device != "cuda"):
            return nullcontext()
        return torch.autocast(device, HALF[self.half_precision])

    def _sigma(self, sigma: Tensor | float, x: Tensor) -> Tensor:
        value = torch.as_tensor(sigma, device=x.device, dtype=x.dtype)
        if value.numel() not in (1, len(x)) or (value.numel() > 1 and value.shape[0] != len(x)):
            raise ArgumentError(
                f"sigma must be one number, or one for each of the {len(x)} images; got shape {tuple(value.shape)}"
            )
        return checks.per_row("sigma", value.reshape(-1 if value.numel() > 1 else ()), x, positive=True)

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if labels is None:
            return None
        if not self.label_dim:
            raise ArgumentError("labels were given to a network without classes (label_dim = 0)")
        if isinstance(labels, Tensor) and labels.dim() == 1:
            return one_hot(checks.index("labels", labels.to(x.device), x, self.label_dim), self.label_dim)
        if not isinstance(labels, Tensor) or labels.shape not in (
            (len(x), self.label_dim),
            (1, self.label_dim),
        ):
            found = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ArgumentError(
                f"labels must be classes ({len(x)},) or one-hot ({len(x)}, {self.label_dim}); got {found}"
            )
        return labels.to(x.device).expand(len(x), -1)


class EDM(Preconditioned):
    """EDM's and PFGM++'s preconditioning. sigma_data: standard deviation of the data's values. aug_dim: D of PFGM++."""

    def __init__(
        self, model: UNet, *, sigma_data: float = 0.5, aug_dim: float = math.inf, **given: Any
    ) -> None:
        super().__init__(model, **given)
        self.sigma_data, self.aug_dim = checks.positive("sigma_data", sigma_data), checks.aug_dim(aug_dim)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return edm_coefficients(sigma, self.sigma_data)


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """c_skip, c_out, c_in, c_noise of σ > 0 (arXiv 2206.00364, table 1)."""
    total = sigma.square() + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt(), sigma.log() / 4


class VP(Preconditioned):
    """The variance-preserving SDE's: β(t) = β_min + β_d t, and the network sees a(t) x at the condition (M − 1) t."""

    def __init__(
        self,
        model: UNet,
        *,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        steps: int = 1000,
        t_min: float = 1e-5,
        **given: Any,
    ) -> None:
        self.beta_d, self.beta_min = checks.positive("beta_d", beta_d), checks.positive("beta_min", beta_min)
        self.steps = steps
        ends = {"sigma_min": self.sigma(t_min), "sigma_max": self.sigma(1.0)}
        super().__init__(model, **{**ends, **given})

    def _integral(self, t: float) -> float:
        return self.beta_min * t + 0.5 * self.beta_d * t * t

    def sigma(self, t: float) -> float:
        """σ(t) = √(exp ∫β − 1), the noise over the scale a(t) (arXiv 2206.00364, table 1)."""
        return math.sqrt(math.expm1(self._integral(t)))

    def time(self, sigma: Tensor) -> Tensor:
        """t(σ), the root of ½ β_d t² + β_min t = ln(1 + σ²).

        As table 1 writes it, with float32's rounding and cancellation at small σ, because that is the condition that released networks
        were trained with: an exact one (`VPSDE.time_of`) differs by up to 6e-4 in 999 t, and D by 4e-6 on the fixtures instead of 3e-7.
        """
        return self._time((1 + sigma.square()).log())

    def _time(self, integral: Tensor) -> Tensor:
        return ((self.beta_min**2 + 2 * self.beta_d * integral).sqrt() - self.beta_min) / self.beta_d

    def coefficients(self, sigma: Tensor) -> Coefficients:
        scale = (sigma.square() + 1).rsqrt()
        return torch.ones_like(sigma), -sigma, scale, (self.steps - 1) * self.time(sigma)


class SubVP(VP):
    """The sub-VP SDE's: noise 1 − a² beside the scale a, so σ = (1 − a²)/a (arXiv 2011.13456, eq. 12 and appendix C)."""

    def sigma(self, t: float) -> float:
        return -math.expm1(-self._integral(t)) * math.exp(0.5 * self._integral(t))

    def time(self, sigma: Tensor) -> Tensor:
        return self._time(2 * torch.asinh(sigma / 2))  # σ = 2 sinh(½ ∫β)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        integral = 2 * torch.asinh(sigma / 2)
        return torch.ones_like(sigma), -sigma, (-0.5 * integral).exp(), (self.steps - 1) * self.time(sigma)


class VE(Preconditioned):
    """The variance-exploding SDE's. noise_scale: of σ in the condition, ½ because score-SDE's σ is of data in [0, 1]."""

    def __init__(self, model: UNet, *, noise_scale: float = 0.5, **given: Any) -> None:
        super().__init__(model, **{"sigma_min": 0.02, "sigma_max": 100.0, **given})
        self.noise_scale = checks.positive("noise_scale", noise_scale)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (self.noise_scale * sigma).log()


class IDDPM(Preconditioned):
    """Improved DDPM's (arXiv 2102.09672; EDM, table 1): M discrete levels u_j; the network may predict variances beside, unused.

    u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C₁) − 1), u_M = 0, ᾱ_j = sin²(½π j/(M (C₂ + 1))). σ is rounded to the nearest u_j for the condition.
    """

    u: Tensor

    def __init__(
        self, model: UNet, *, c_1: float = 0.001, c_2: float = 0.008, steps: int = 1000, **given: Any
    ) -> None:
        levels = [0.0]
        for j in range(steps, 0, -1):
            below, here = (math.sin(0.5 * math.pi * k / steps / (c_2 + 1)) ** 2 for k in (j - 1, j))
            levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(below / here, c_1) - 1))
        levels.reverse()
        ends = {"sigma_min": levels[steps - 1], "sigma_max": levels[0]}
        super().__init__(model, **{**ends, **given})
        self.steps = steps
        self.register_buffer("u", torch.tensor(levels))

    def index(self, sigma: Tensor) -> Tensor:
        """The nearest level's index j, of σ's shape."""
        return (sigma.to(torch.float32).unsqueeze(-1) - self.u).abs().argmin(-1)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        value = torch.as_tensor(sigma, device=self.u.device)
        rounded = self.u[self.index(value)]
        return rounded.to(value.dtype) if value.is_floating_point() else rounded

    def coefficients(self, sigma: Tensor) -> Coefficients:
        scale = (sigma.square() + 1).rsqrt()
        return torch.ones_like(sigma), -sigma, scale, (self.steps - 1 - self.index(sigma)).to(sigma)


class Guided(nn.Module):
    """Classifier-free guidance (arXiv 2207.12598): D = D_without + weight (D_with − D_without), two evaluations in one.

    weight: 1 is the network itself, above 1 the class weighs more. without: another network for the part without labels
    (a smaller or less trained one is autoguidance, arXiv 2406.02507, and then sees the labels too); None: the same, without them.
    """

    def __init__(self, net: nn.Module, weight: float, without: nn.Module | None = None) -> None:
        super().__init__()
        if without is None and not getattr(net, "label_dim", 0):
            raise ArgumentError("guidance needs a network with classes, or another network as `without`")
        self.net, self.weight, self.without = net, checks.number("weight", weight, positive=False), without
        for name in ("sigma_min", "sigma_max", "aug_dim", "img_channels", "img_resolution", "label_dim"):
            setattr(self, name, getattr(net, name))

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        return self.net.round_sigma(sigma)  # type: ignore[operator]

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, **more: Any) -> Tensor:
        """As the network itself."""
        with_labels = self.net(x, sigma, labels, **more)
        if self.weight == 1:
            return with_labels
        other = self.net(x, sigma, None, **more) if self.without is None else self.without(x, sigma, labels)
        return torch.lerp(other, with_labels, self.weight)


PRECONDITIONINGS: dict[str, type[Preconditioned]] = {
    "edm": EDM,
    "vp": VP,
    "subvp": SubVP,
    "ve": VE,
    "iddpm": IDDPM,
}
