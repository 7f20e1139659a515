"""The pictures of docs/mathematics.md: `python -m tools.docs_pictures`. Field lines of 2,000 charges on a heart, three ways."""

from __future__ import annotations

import math
from pathlib import Path

import torch

import pfgm_fast as pf

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    t = 2 * math.pi * torch.rand(2000, generator=generator)
    heart = torch.stack([16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos()], 1)
    charges = pf.Charges(heart / 10)
    for view, lines in (("plane", 360), ("half-plane", 60)):
        pf.plots.field_lines(charges, PICTURES / f"field-{view}.png", view=view, lines=lines)


if __name__ == "__main__":
    main()
