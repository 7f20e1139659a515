"""One style for every figure: matplotlib without a screen, colours that colour-blind readers tell apart, legends off the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pfgm_fast.extras import wanted
from pfgm_fast.files import beside

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008, in the order in which two of them differ most."""

STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "image.cmap": "cividis",
}


def pyplot() -> Any:
    """matplotlib.pyplot in this package's style; it draws to files. Raises: MissingPackageError where matplotlib is not installed."""
    matplotlib = wanted("matplotlib", "figures need")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    plt.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=COLORS)
    return plt


def figure_of(**options: Any) -> tuple[Any, Any]:
    """`matplotlib.pyplot.subplots(**options)` in this package's style: figure and axes.

    Args:
        **options: As in `subplots`.

    Raises:
        MissingPackageError: Matplotlib is not installed.
    """
    return pyplot().subplots(**options)


PLAIN, DENSE = 5.0, 2.2
"""Decades of a logarithmic axis up to which its ticks are plain numbers, and up to which 2 and 5 are among them."""


def _tick(axis: Any) -> None:
    """Ticks of a logarithmic axis that neither vanish nor run into one another, whatever its range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < DENSE else (1,), numticks=12))
    if decades < PLAIN:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def finish(figure: Any, path: str | Path, dpi: int = 130, tight: bool = True) -> None:
    """Write a figure as PNG, whole or not at all, and close it. Logarithmic axes get ticks that can be read.

    Args:
        figure: Matplotlib's.
        path: Of the PNG.
        dpi: Pixels an inch, > 0.
        tight: Cut to what is drawn, or at the figure's own edges.

    Raises:
        OSError: It cannot be written.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _tick(axis)
    with beside(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=dpi, bbox_inches="tight" if tight else None)
    pyplot().close(figure)
