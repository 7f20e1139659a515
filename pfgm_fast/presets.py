"""Presets: whole runs by name. CIFAR-10, CelebA-64 and LSUN-256 as in PFGM (arXiv 2209.11178, appendix D, table 5)."""

from __future__ import annotations

from typing import Any

from pfgm_fast.errors import ArgumentError
from pfgm_fast.nn import UNetConfig
from pfgm_fast.training.config import RunConfig, TrainConfig


def _paper(m_exp: int, z_max: float, upper_norm: float) -> dict[str, Any]:
    return {"name": "pfgm", "m_exp": m_exp, "z_max": z_max, "upper_norm": upper_norm}


PRESETS: dict[str, RunConfig] = {
    "digits": RunConfig(
        data="digits",
        network=UNetConfig(1, 8, 32, (1, 2), 2, (4,), dropout=0.0),
        train=TrainConfig(
            steps=450,
            batch=256,
            lr=1e-3,
            warmup=50,
            decay=0.4,
            ema=(0.99,),
            flip=False,
            log_every=10,
            sample_every=0,
            checkpoint_every=150,
        ),
    ),
    "mnist": RunConfig(
        data="mnist",
        network=UNetConfig(1, 28, 32, (1, 2, 2), 1, (7,), dropout=0.0),
        train=TrainConfig(
            steps=6000,
            batch=64,
            lr=1e-3,
            warmup=200,
            decay=0.4,
            ema=(0.999,),
            flip=False,
            sample_every=1000,
            checkpoint_every=500,
        ),
    ),
    "cifar10": RunConfig(
        data="cifar10",
        method=_paper(291, 40.0, 3000.0),
        network=UNetConfig(3, 32, 128, (1, 2, 2, 2), 4, (16,), dropout=0.1),
        train=TrainConfig(
            steps=800_000, batch=128, lr=2e-4, warmup=5000, ema=(0.9999,), precision="bfloat16"
        ),
    ),
    "celeba64": RunConfig(
        data="celeba",
        size=64,
        method=_paper(296, 60.0, 6000.0),
        network=UNetConfig(3, 64, 128, (1, 2, 2, 2), 4, (16,), dropout=0.1),
        train=TrainConfig(steps=800_000, batch=128, lr=2e-4, warmup=5000, ema=(0.999,), precision="bfloat16"),
    ),
    "lsun256": RunConfig(
        data="lsun",
        size=256,
        method=_paper(324, 100.0, 19000.0),
        network=UNetConfig(3, 256, 128, (1, 1, 2, 2, 4, 4), 2, (16,), dropout=0.0),
        train=TrainConfig(
            steps=800_000, batch=64, lr=2e-4, warmup=5000, ema=(0.999,), precision="bfloat16", accumulate=2
        ),
    ),
}
"""name → a run; `--data` names the files where the preset is not digits."""


def preset(name: str) -> RunConfig:
    """Raises: ArgumentError for an unknown name."""
    if name not in PRESETS:
        raise ArgumentError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]
