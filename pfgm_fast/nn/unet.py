"""What the UNets share: the door, labels, and the walk down and up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn.config import UNetConfig
from pfgm_fast.nn.layers import UNetBlock


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, classes) of labels (B,) or (B, classes)."""
    return F.one_hot(labels.long(), classes) if labels.dim() == 1 else labels


class UNet(nn.Module):
    """net(x, noise, labels=None, augment=None) → (B, out, H, W).

    x (B, C, H, W), H and W multiples of 2^(levels − 1); noise (B,) the embedded condition; labels (B,) classes or (B, classes)
    one-hot, a row of zeros for no class; augment (B, augment_dim). `enc` and `dec` hold the layers in order, named by their resolution.
    """

    config: UNetConfig
    map_label: nn.Linear | None
    map_augment: nn.Linear | None
    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def checked(self, x: Tensor) -> None:
        """Raises: ArgumentError for another number of channels, or a size that cannot be halved as often as the network does."""
        shrink, channels = self.config.shrink, self.config.channels
        if x.dim() != 4 or x.shape[1] != channels or x.shape[2] % shrink or x.shape[3] % shrink:
            raise ArgumentError(
                f"the network expects images of shape (B, {channels}, H, W), H and W multiples of {shrink}; "
                f"x has shape {tuple(x.shape)}"
            )

    def labels(self, labels: Tensor | None, like: Tensor) -> Tensor:
        """Labels (B, classes) in like's dtype, zeros where there are none; in training each is withheld with `label_dropout`."""
        if labels is None:
            return like.new_zeros(len(like), self.config.classes)
        labels = one_hot(labels, self.config.classes).to(like.dtype)
        if self.training and self.config.label_dropout:
            kept = torch.rand(len(labels), 1, device=labels.device) >= self.config.label_dropout
            labels = labels * kept.to(labels.dtype)
        return labels

    @staticmethod
    def once(noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """noise (B,), or its first element (1,) where it is one number expanded over the batch and nothing else tells images apart: then
        their embedding, and what the blocks make of it, is computed once for all, as in a sampler's step."""
        shared = labels is None and augment is None and noise.dim() == 1 and noise.stride(0) == 0
        return noise[:1] if shared else noise

    @staticmethod
    def up(block: UNetBlock, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """A block on the way up: beside the features of the same size on the way down, where it takes them."""
        if x.shape[1] != block.channels:
            x = torch.cat([x, skips.pop()], 1)
        return block(x, embedding)
