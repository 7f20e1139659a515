"""The network that learns the field: DDPM++."""

from pfgm_fast.nn.ddpmpp import DDPMpp, UNetConfig

__all__ = ["DDPMpp", "UNetConfig"]
