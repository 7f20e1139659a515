"""ADM: the UNet of Dhariwal and Nichol 2021 (arXiv 2105.05233), as EDM trains it (arXiv 2206.00364, appendix F.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfgm_fast.nn.config import UNetConfig
from pfgm_fast.nn.layers import UNetBlock, conv, group_norm, output_layer, positional_embedding
from pfgm_fast.nn.unet import UNet

HEAD = 64
"""Features of one head of attention; a level narrower than that has none."""


class ADM(UNet):
    """The network of a UNetConfig with architecture "adm": the embedding scales and shifts, sums are not rescaled. See `UNet`.

    out: channels of the result, by default the image's.
    """

    def __init__(self, config: UNetConfig, out: int | None = None) -> None:
        super().__init__()
        self.config, out = config, out or config.channels
        embedding = config.width * config.embedding_multiplier
        self.map_augment = (
            nn.Linear(config.augment_dim, config.width, bias=False) if config.augment_dim else None
        )
        self.map_layer0, self.map_layer1 = nn.Linear(config.width, embedding), nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(config.classes, embedding, bias=False) if config.classes else None

        def block(channels: int, features: int, attends: bool = False, **more: Any) -> UNetBlock:
            return UNetBlock(
                channels,
                features,
                embedding,
                heads=features // HEAD if attends else 0,
                dropout=config.dropout,
                skip_scale=1.0,
                adaptive=True,
                project=False,
                eps=1e-5,
                **more,
            )

        encoder: dict[str, nn.Module] = {}
        features, skips = config.levels[0][0], []
        for level, (wide, (height, width)) in enumerate(config.levels):
            at = f"{height}x{width}"
            if level == 0:
                encoder[f"{at}_conv"] = conv(config.channels, features, 3)
            else:
                encoder[f"{at}_down"] = block(features, features, resample="down")
            skips.append(features)
            for index in range(config.blocks):
                encoder[f"{at}_block{index}"] = block(features, wide, height in config.attention)
                features = wide
                skips.append(features)
        decoder: dict[str, nn.Module] = {}
        for level, (wide, (height, width)) in reversed(list(enumerate(config.levels))):
            at = f"{height}x{width}"
            if level == len(config.levels) - 1:
                decoder[f"{at}_in0"] = block(features, features, True)
                decoder[f"{at}_in1"] = block(features, features)
            else:
                decoder[f"{at}_up"] = block(features, features, resample="up")
            for index in range(config.blocks + 1):
                decoder[f"{at}_block{index}"] = block(
                    features + skips.pop(), wide, height in config.attention
                )
                features = wide
        self.enc, self.dec = nn.ModuleDict(encoder), nn.ModuleDict(decoder)
        self.out_norm, self.out_conv = group_norm(features, 1e-5), conv(features, out, 3)
        self._init()

    def _init(self) -> None:
        """PyTorch's initialisation, but a block's last layers, the head and the augmentation's map begin at zero, labels at N(0, 1)."""
        for name, module in self.named_modules():
            if name.endswith(("conv1", "proj", "out_conv", "map_augment")):
                nn.init.zeros_(module.weight)  # type: ignore[arg-type]
                if module.bias is not None:
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def _embedding(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        waves = positional_embedding(noise, self.config.width, endpoint=False)
        half = self.config.width // 2
        h = torch.cat([waves[:, half:], waves[:, :half]], 1).to(self.map_layer0.weight.dtype)  # cosines first
        if self.map_augment is not None and augment is not None:
            h = h + self.map_augment(augment.to(h.dtype))
        h = self.map_layer1(F.silu(self.map_layer0(h)))
        if self.map_label is not None:
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
        skips = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = self.up(layer, x, skips, embedding)  # type: ignore[arg-type]
        return output_layer(self.out_conv, self.out_norm(x))
