"""The three parts of the data: to train on, to compare with, and to train the classifier whose features the metric sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pfgm_fast.data import ImageSet
from pfgm_fast.errors import DataError
from pfgm_fast.metrics.features import Classifier, accuracy, cached_classifier

UPDATES = 400
"""Of the classifier's training, at least."""


@dataclass(frozen=True)
class Parts:
    """Disjoint. train: what networks see, and the starts of the floor. reference: the metric's data side. features: the classifier's."""

    train: ImageSet
    reference: ImageSet
    features: ImageSet

    @classmethod
    def of(cls, images: ImageSet, most: int = 10_000, seed: int = 0) -> Parts:
        """A quarter for the reference and a fifth for the classifier, of `most` images at most; the rest to train on.

        Raises: DataError for fewer than 40 images, or images without labels.
        """
        if images.labels is None:
            raise DataError(
                f"{images.name} has no labels: quality is measured in the features of a classifier of them"
            )
        if len(images) < 40:
            raise DataError(f"{images.name}: a comparison needs at least 40 images; got {len(images)}")
        reference, rest = images.split(min(most, len(images) // 4), seed)
        features, train = rest.split(min(most, len(images) // 5), seed + 1)
        return cls(train, reference, features)

    def classifier(self, cache: Path | None) -> tuple[Classifier, float]:
        """Trained on its own part, and its accuracy on the reference, which it has not seen. cache: None, it is not trained."""
        if cache is None:
            return Classifier(self.train.shape[0], 10).eval(), 0.0
        epochs = max(3, math.ceil(UPDATES / math.ceil(len(self.features) / 128)))
        net = cached_classifier(self.features, cache, epochs)
        return net, accuracy(net, self.reference)


@dataclass(frozen=True)
class Frame:
    """The values (C·H·W) that are the same in every image of the data: noise that a sample has there is noise that was left over."""

    mask: Tensor  # (N,) bool
    value: Tensor  # (N,)

    @classmethod
    def of(cls, images: ImageSet) -> Frame:
        flat = images.images.flatten(1)
        mask = (flat == flat[:1]).all(0)
        return cls(mask, images.charges().values(slice(0, 1)).flatten())

    def noise(self, samples: Tensor) -> Tensor | None:
        """Root mean square (n,) of what samples (n, *shape) differ by from the data's constant values; None where there are none."""
        if not bool(self.mask.any()):
            return None
        away = samples.flatten(1)[:, self.mask].double() - self.value[self.mask].double()
        return torch.nan_to_num(away, nan=math.inf).square().mean(1).sqrt()
