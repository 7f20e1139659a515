"""The UNet as one writes it in plain PyTorch: nn.GroupNorm, SiLU, scale and shift one after another. What the pipeline is compared with."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.nn.layers import GroupNormSiLU


class PlainNorm(nn.GroupNorm):
    """`GroupNormSiLU` without its operator."""

    def __init__(self, like: GroupNormSiLU) -> None:
        super().__init__(like.num_groups, like.num_channels, eps=like.eps)
        self.silu = like.silu
        self.load_state_dict(like.state_dict())

    def forward(
        self,
        input: Tensor,  # (B, C, H, W)
        add: Tensor | None = None,  # (B, C)
        scale: Tensor | None = None,  # (B, C)
        shift: Tensor | None = None,  # (B, C)
    ) -> Tensor:
        x = input if add is None else input + add[:, :, None, None]
        x = super().forward(x)
        if scale is not None and shift is not None:
            x = x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(x) if self.silu else x


def plain(net: nn.Module) -> nn.Module:
    """A copy of a network with plain norms, the same weights, contiguous."""
    net = copy.deepcopy(net)
    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, GroupNormSiLU):
                setattr(module, name, PlainNorm(child))
    return net
