"""Ctrl-C while the command line is still importing PyTorch ends it without a traceback. Imported first, and only acts in the command."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from types import FrameType


def leave(number: int, frame: FrameType | None) -> None:
    """As an interrupted command ends: exit status 130."""
    os._exit(130)


def _is_command() -> bool:
    """Whether this process was started as `pfgm-fast` or `python -m pfgm_fast`."""
    name = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    given = getattr(sys, "orig_argv", [])
    return name in ("pfgm-fast", "pfgm-fast.exe", "pfgm-fast-script.py") or (
        name == "-m" and ("-m", "pfgm_fast") in itertools.pairwise(given)
    )


quiet = False
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    try:
        signal.signal(signal.SIGINT, leave)
        quiet = True
    except ValueError:  # not the main thread
        pass
