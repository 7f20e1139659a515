"""What is left to learn: the loss that a perfect network has on the very draws of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfgm_fast import checks, special
from pfgm_fast.charges import Charges
from pfgm_fast.ideal import IdealDenoiser
from pfgm_fast.methods import Method
from pfgm_fast.nn import Augmentation, augmented_posterior_mean
from pfgm_fast.training.networks import aug_dim_of


class Perfect(IdealDenoiser):
    """The exact posterior mean over the charges in the place of a network, also of images under an augmentation, which is set beforehand.

    Its loss by `Method.loss` is what cannot be learned of the run's targets: E w‖y − m‖² where the target is the one image that was
    perturbed, which `studies.optimal_loss` has as a function of σ; what a reference batch's target differs from the whole set's; 0 where
    the target is exact.
    """

    augmentation: Augmentation | None = None

    def forward(
        self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, **ignored: Any
    ) -> Tensor:
        """As `IdealDenoiser`; with an augmentation, the mean over the charges transformed alike."""
        if self.augmentation is None:
            return super().forward(x, sigma, labels)
        x = checks.batch("x", x)
        r = self._sigma(sigma, x).expand(len(x)) * special.radius_scale(self.aug_dim)
        return augmented_posterior_mean(x, r, self.charges, self.augmentation, self.aug_dim, labels)


class OptimalLoss:
    """Measures beside an update, without touching what it draws from, and gives the means since the last time.

    total: sums a tensor over the processes that share a batch.
    """

    def __init__(self, method: Method, total: Callable[[Tensor], Tensor]) -> None:
        self._method, self._aug_dim, self._total = method, aug_dim_of(method), total
        self._pairs: list[Tensor] = []

    @torch.no_grad()
    def measure(
        self,
        everything: Charges,
        state: Tensor,  # of the generator before the part's draws
        losses: Tensor,  # of the part, or of this process's rows of it
        images: Tensor,  # (K, *shape)
        index: Tensor,
        charges: Charges,
        labels: Tensor | None,
        **more: Any,  # rows, augmentation: as `Method.loss`
    ) -> None:
        """The loss of a perfect network on the same images, noise and targets as `losses`; everything: the charges it is perfect for."""
        perfect = Perfect(everything, self._aug_dim)
        if more.get("augmentation") is not None:
            perfect.augmentation = more["augmentation"].rows(more.get("rows", slice(None)))
        generator = torch.Generator(images.device)
        generator.set_state(state)
        best = self._method.loss(perfect, images, index, charges, generator, labels, **more)
        pair = torch.stack([best.double().sum(), (losses.double() - best.double()).sum()])
        self._pairs.append(self._total(pair) / len(images))

    def take(self) -> tuple[float, float] | None:
        """(the perfect loss, the excess of the network's over it), means of what was measured since the last time; None: nothing was.
        The excess is a mean of differences on the same draws, so its error is far below that of either."""
        pairs, self._pairs = self._pairs, []
        if not pairs:
            return None
        best, excess = torch.stack(pairs).mean(0).tolist()
        return best, excess
