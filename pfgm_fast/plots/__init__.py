"""Pictures: field lines, grids of images, trajectories, animations, loss curves. Matplotlib draws, Pillow writes."""

from pfgm_fast.plots.lines import field_lines, trace_lines
from pfgm_fast.plots.motion import animation
from pfgm_fast.plots.pictures import (
    compare_grids,
    image_grid,
    loss_curve,
    save_image,
    to_bytes,
    trajectories,
)
from pfgm_fast.plots.style import figure_of, finish

__all__ = [
    "animation",
    "compare_grids",
    "field_lines",
    "figure_of",
    "finish",
    "image_grid",
    "loss_curve",
    "save_image",
    "to_bytes",
    "trace_lines",
    "trajectories",
]
