"""DDPMpp: PFGM's network (arXiv 2209.11178, appendix D), a UNet with one more channel for the field's component v_z."""

from __future__ import annotations

from torch import Tensor, nn

from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn.adm import ADM
from pfgm_fast.nn.config import UNetConfig
from pfgm_fast.nn.ncsnpp import NCSNpp
from pfgm_fast.nn.unet import UNet


def unet(config: UNetConfig, out: int | None = None) -> UNet:
    """The network of config.architecture. out: channels of the result, by default the image's."""
    return ADM(config, out) if config.architecture == "adm" else NCSNpp(config, out)


class DDPMpp(nn.Module):
    """net(x, z, labels=None) → (v_x, v_z): x (B, C, H, W), z (B,) → v_x (B, C, H, W), v_z (B,).

    v_z is the mean over the pixels of one more output channel. z enters the embedding as it is. labels (B,) int64 in [0, classes)
    where the network is conditional; None there gives the embedding of no class. Any UNetConfig will do; the authors' is DDPM++.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = unet(config, config.channels + 1)

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
        z: Tensor,  # (B,)
        labels: Tensor | None = None,  # (B,) or (B, classes)
    ) -> tuple[Tensor, Tensor]:
        """v_x (B, C, H, W), v_z (B,), in the parameters' dtype: under autocast the output layer is computed in full.

        Raises: ArgumentError for images that do not fit, or labels where the network has no classes.
        """
        if labels is not None and not self.config.classes:
            raise ArgumentError("labels were given to a network without classes (UNetConfig.classes = 0)")
        out = self.unet(x, z.expand(len(x)), labels)
        return out[:, :-1], out[:, -1].mean((1, 2))
