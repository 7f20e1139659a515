"""What the machine's files share: its error, the windows of the generic address space, a warp's width."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
SHARED_WINDOW = 1 << 48
LOCAL_WINDOW = 1 << 49
PARAMETER_WINDOW = 1 << 50
WARP = 32


class PtxError(Exception):
    """What the instruction set forbids, or this machine does not know."""
