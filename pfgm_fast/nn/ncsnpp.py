"""NCSN++ and DDPM++: the UNets of the score-SDE line (Song et al. 2021, arXiv 2011.13456, appendix H; EDM, arXiv 2206.00364, appendix F)."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.nn.config import UNetConfig
from pfgm_fast.nn.layers import (
    FourierEmbedding,
    ResampleConv,
    UNetBlock,
    conv,
    group_norm,
    init_ddpm_,
    output_layer,
    positional_embedding,
)
from pfgm_fast.nn.unet import UNet


class NCSNpp(UNet):
    """The network of a UNetConfig: DDPM++ by default; NCSN++ with Fourier embedding, residual input and FIR filter. See `UNet`.

    out: channels of the result, by default the image's. Attention has one head, always at the lowest level's middle.
    """

    def __init__(self, config: UNetConfig, out: int | None = None) -> None:
        super().__init__()
        self.config, out = config, out or config.channels
        noise, embedding = config.width * config.noise_multiplier, config.width * config.embedding_multiplier
        self.map_noise = FourierEmbedding(noise) if config.embedding == "fourier" else None
        self.late = config.label_embedding == "late"
        self.map_label = None
        if config.classes:
            self.map_label = nn.Linear(config.classes, embedding if self.late else noise, bias=not self.late)
        self.map_augment = nn.Linear(config.augment_dim, noise, bias=False) if config.augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)
        taps = config.resample_filter

        def block(channels: int, features: int, attends: bool = False, **more: Any) -> UNetBlock:
            return UNetBlock(
                channels,
                features,
                embedding,
                heads=int(attends),
                dropout=config.dropout,
                filter=taps,
                **more,
            )

        encoder: dict[str, nn.Module] = {}
        features, image, skips = config.width, config.channels, []
        for level, (wide, (height, width)) in enumerate(config.levels):
            at = f"{height}x{width}"
            if level == 0:
                encoder[f"{at}_conv"] = conv(config.channels, features, 3)
            else:
                encoder[f"{at}_down"] = block(features, features, resample="down")
                if config.encoder == "skip":
                    encoder[f"{at}_aux_down"] = ResampleConv(image, image, 0, "down", taps)
                    encoder[f"{at}_aux_skip"] = conv(image, features, 1)
                elif config.encoder == "residual":
                    encoder[f"{at}_aux_residual"] = ResampleConv(image, features, 3, "down", taps, fused=True)
                    image = features
            skips.append(features)
            for index in range(config.blocks):
                encoder[f"{at}_block{index}"] = block(features, wide, height in config.attention)
                features = wide
                skips.append(features)
        decoder: dict[str, nn.Module] = {}
        for level, (wide, (height, width)) in reversed(list(enumerate(config.levels))):
            at, lowest = f"{height}x{width}", level == len(config.levels) - 1
            if lowest:
                decoder[f"{at}_in0"] = block(features, features, True)
                decoder[f"{at}_in1"] = block(features, features)
            else:
                decoder[f"{at}_up"] = block(features, features, resample="up")
            for index in range(config.blocks + 1):
                attends = index == config.blocks and height in config.attention
                decoder[f"{at}_block{index}"] = block(features + skips.pop(), wide, attends)
                features = wide
            if config.decoder == "skip" or level == 0:
                if not lowest and config.decoder == "skip":
                    decoder[f"{at}_aux_up"] = ResampleConv(out, out, 0, "up", taps)
                decoder[f"{at}_aux_norm"] = group_norm(features)
                decoder[f"{at}_aux_conv"] = conv(features, out, 3)
        self.enc, self.dec = nn.ModuleDict(encoder), nn.ModuleDict(decoder)
        init_ddpm_(self)

    def _embedding(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        features = self.map_layer0.in_features
        h = positional_embedding(noise, features) if self.map_noise is None else self.map_noise(noise)
        h = h.to(self.map_layer0.weight.dtype)
        if self.map_label is not None and not self.late:
            # one-hot labels at the size of the other features: a row of K elements has variance 1
            h = h + self.map_label(self.labels(labels, h) * math.sqrt(self.config.classes))
        if self.map_augment is not None and augment is not None:
            h = h + self.map_augment(augment.to(h.dtype))
        h = self.map_layer1(F.silu(self.map_layer0(h)))
        if self.map_label is not None and self.late:
            h = h + self.map_label(self.labels(labels, h))
        return F.silu(h)

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
        noise: Tensor,  # (B,)
        labels: Tensor | None = None,  # (B, classes)
        augment: Tensor | None = None,  # (B, augment_dim)
    ) -> Tensor:
        """(B, out, H, W). Raises: ArgumentError for images that do not fit."""
        self.checked(x)
        embedding = self._embedding(self.once(noise, labels, augment), labels, augment)
        image = x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            kind = name.partition("_")[2]
            if kind == "aux_down":
                image = layer(image)
            elif kind == "aux_skip":
                x = skips[-1] = x + layer(image)
            elif kind == "aux_residual":
                x = skips[-1] = image = (x + layer(image)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        out: Tensor | None = None
        for name, layer in self.dec.items():
            kind = name.partition("_")[2]
            if kind == "aux_up":
                out = layer(out)
            elif kind == "aux_norm":
                normed = layer(x)
            elif kind == "aux_conv":
                h = output_layer(layer, normed)
                out = h if out is None else out + h
            else:
                x = self.up(layer, x, skips, embedding)  # type: ignore[arg-type]
        assert out is not None
        return out
