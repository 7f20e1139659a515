"""Augmentation with labels, so that it does not leak into samples (EDM, arXiv 2206.00364, appendix F.2, table 6; arXiv 2006.06676).

The network sees transformed images and is told, by nine numbers, how they were transformed; zeros, the labels of no transformation, are
what samplers give, so samples look like the data.

**Targets.** Given its labels a, an image is a draw from the data *transformed by a*: charges {T_a y_j}, not {y_j}. So the exact target of a
query made from T_a y_i is the posterior mean over the charges transformed alike, `augmented_posterior_mean`. Charges that are left as
they are belong to another distribution: close to x there is then no charge, and the target pulls towards the upright neighbours of a rotated
image (test_augment.py measures it). T_a costs one resampling of every charge, so a reference batch is transformed, once for each `group`
of images that share their a; flips alone are free, T m(T x) over the charges as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pfgm_fast import checks
from pfgm_fast.charges import Charges, as_charges
from pfgm_fast.errors import ArgumentError
from pfgm_fast.field import posterior_mean

AUGMENT_DIM = 9
"""Numbers of an augmentation label."""


@dataclass(frozen=True)
class Augmentation:
    """How each of B images is transformed: table 6's a_0 … a_7, all (B,), 0 for no change.

    flip_x, flip_y: 0 or 1. scale: a_2, a factor 2^(0.2 a_2). angle: a_3, radians. direction, stretch: a_4, radians, and a_5, a factor 2^(0.2 a_5)
    along the direction and its inverse across. shift_x, shift_y: a_6, a_7 in eighths of the image's width and height.
    """

    flip_x: Tensor
    flip_y: Tensor
    scale: Tensor
    angle: Tensor
    direction: Tensor
    stretch: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def __len__(self) -> int:
        return len(self.flip_x)

    def rows(self, index: Tensor | slice) -> Augmentation:
        """Those of some images, index (K,) int64: also one of them for many images."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def labels(self) -> Tensor:
        """(B, 9): a_0, a_1, a_2, cos a_3 − 1, sin a_3, a_5 cos a_4, a_5 sin a_4, a_6, a_7; a row of zeros for no change."""
        turned = (self.angle.cos() - 1, self.angle.sin())
        stretched = (self.stretch * self.direction.cos(), self.stretch * self.direction.sin())
        return torch.stack(
            [self.flip_x, self.flip_y, self.scale, *turned, *stretched, self.shift_x, self.shift_y], 1
        )

    @property
    def lossless(self) -> Tensor:
        """(B,) whether flips are all that is done: pixels only change places."""
        return (
            (self.scale == 0)
            & (self.angle == 0)
            & (self.stretch == 0)
            & (self.shift_x == 0)
            & (self.shift_y == 0)
        )

    def apply(self, images: Tensor) -> Tensor:
        """T_a of images (B, C, H, W), float. Flips are exact; all else is one resampling, mirrored at the borders.

        Raises: ArgumentError for another number of images.
        """
        if images.dim() != 4 or len(images) != len(self):
            raise ArgumentError(f"images must have shape ({len(self)}, C, H, W); got {tuple(images.shape)}")
        for flip, dim in ((self.flip_x, 3), (self.flip_y, 2)):
            images = torch.where(flip.bool().view(-1, 1, 1, 1), images.flip(dim), images)
        moved = ~self.lossless
        if not bool(moved.any()):
            return images
        out = images.clone()
        out[moved] = _resampled(images[moved], self.rows(moved.nonzero().flatten())._inverse(images))
        return out

    def _inverse(self, images: Tensor) -> Tensor:
        """(B, 2, 3): where in the image, in coordinates from −1 to 1, each pixel of the result lies."""
        height, width = images.shape[2:]

        def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
            return torch.stack([torch.stack([a, b], 1), torch.stack([c, d], 1)], 1)

        def turn(angle: Tensor) -> Tensor:
            return matrix(angle.cos(), -angle.sin(), angle.sin(), angle.cos())

        along, zero = torch.exp2(-0.2 * self.stretch), torch.zeros_like(self.stretch)
        squeeze = turn(self.direction) @ matrix(along, zero, zero, 1 / along) @ turn(-self.direction)
        # x_out = L x_in + t in pixels from the centre, so x_in = L⁻¹ (x_out − t)
        inverse = squeeze @ turn(self.angle) * torch.exp2(-0.2 * self.scale)[:, None, None]
        sides = inverse.new_tensor([width, height])
        shift = torch.stack([self.shift_x, self.shift_y], 1) / 8 * sides
        offset = -(inverse @ shift[:, :, None]) * 2 / sides[:, None]
        return torch.cat([inverse * sides / sides[:, None], offset], 2).to(images.dtype)


def _resampled(images: Tensor, inverse: Tensor) -> Tensor:
    """Bicubic at twice the resolution, and the mean of 2 × 2: little is lost and little aliased."""
    batch, channels, height, width = images.shape
    fine = F.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False)
    grid = F.affine_grid(inverse, [batch, channels, 2 * height, 2 * width], align_corners=False)
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(moved, 2)


@dataclass(frozen=True)
class AugmentPipe:
    """Draws augmentations. probability: of each of the five kinds but x-flip (EDM: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ).

    flip_x: probability of mirroring left to right (EDM: ½ always). flip_y: whether top and bottom may be exchanged.
    Raises: ArgumentError for probabilities outside [0, 1].
    """

    probability: float = 0.12
    flip_x: float = 0.5
    flip_y: bool = True

    def __post_init__(self) -> None:
        for name in ("probability", "flip_x"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ArgumentError(f"{name} must lie in [0, 1]; got {value!r}")

    def draw(
        self,
        count: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str = "cpu",
        group: int = 1,
    ) -> Augmentation:
        """For `count` images; each `group` images in turn share theirs, which makes exact targets cheap."""
        sets = -(-checks.integer("count", count, 1) // checks.integer("group", group, 1))

        def uniform() -> Tensor:
            return torch.rand(sets, device=device, generator=generator)

        def normal() -> Tensor:
            return torch.randn(sets, device=device, generator=generator)

        def chosen() -> Tensor:
            return (uniform() < self.probability).float()

        def turned() -> Tensor:
            return (2 * uniform() - 1) * math.pi

        flip_x, flip_y = (uniform() < self.flip_x).float(), chosen() * (uniform() < 0.5).float() * self.flip_y
        scale, angle, direction, stretched, moved = (
            chosen() * normal(),
            chosen() * turned(),
            turned(),
            chosen(),
            chosen(),
        )
        drawn = Augmentation(
            flip_x,
            flip_y,
            scale,
            angle,
            direction * stretched,
            stretched * normal(),
            moved * normal(),
            moved * normal(),
        )
        return drawn.rows(torch.arange(count, device=device) // group)


def augmented_posterior_mean(
    x: Tensor,  # (B, C, H, W)
    r: Tensor,  # (B,); sigma where aug_dim is infinite, else sigma √D
    reference: Charges
    | Tensor,  # (M, C, H, W): the data, or a batch of them that holds the images that x was made from
    augmentation: Augmentation,  # (B,)
    aug_dim: float = math.inf,
    labels: Tensor | None = None,  # (B,): over the charges of x's class alone; the reference needs labels
) -> Tensor:
    """Σ_j w_ij T_i y_j (B, C, H, W): the posterior mean of each x over the charges transformed as x's image was.

    Neighbouring rows with the same augmentation (and class) share their transformed charges. Flips alone transform x instead: exact, and free.
    Raises: ArgumentError for sizes that do not fit, labels that the reference lacks.
    """
    x = checks.batch("x", x)
    if len(augmentation) != len(x) or r.shape != (len(x),):
        raise ArgumentError(
            f"r and the augmentation must be for {len(x)} images; got {tuple(r.shape)} and {len(augmentation)}"
        )
    charges = as_charges(reference)
    out = torch.empty_like(x)
    plain = augmentation.lossless.nonzero().flatten()
    if len(plain):
        flips = augmentation.rows(plain)
        classes = None if labels is None else labels[plain]
        mean = posterior_mean(flips.apply(x[plain]), r[plain], charges, aug_dim, labels=classes)
        out[plain] = flips.apply(mean)
    rest = (~augmentation.lossless).nonzero().flatten()
    if len(rest):
        columns = [getattr(augmentation, f.name)[rest] for f in fields(augmentation)]
        columns += [] if labels is None else [labels[rest].to(columns[0].dtype)]
        _, kinds = torch.unique_consecutive(torch.stack(columns, 1), dim=0, return_inverse=True)
        for kind in range(int(kinds.max()) + 1):
            rows = rest[kinds == kind]
            seen = charges if labels is None else charges.of_label(int(labels[rows[0]]))[0]
            weights = None if seen.log_weights is None else seen.log_weights.exp()
            moved = Charges(_all_moved(seen, augmentation.rows(rows[:1])), weights)
            out[rows] = posterior_mean(x[rows], r[rows], moved, aug_dim)
    return out


def _all_moved(charges: Charges, one: Augmentation) -> Tensor:
    """(M, C, H, W): every charge under the one augmentation, a block after the other."""
    parts = (charges.values(block) for block in charges.blocks())
    return torch.cat(
        [
            one.rows(torch.zeros(len(part), dtype=torch.int64, device=part.device)).apply(part)
            for part in parts
        ]
    )
