"""Which state of the source was measured: a field of every benchmark's rows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def commit() -> str:
    """What was measured: COMMIT, where a copy of the tree came without its history, else git's; "-dirty" where files differ from it."""
    given = os.environ.get("COMMIT", "").strip()
    if given:
        return given
    root, describe = (
        Path(__file__).resolve().parent.parent,
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
    )
    try:
        done = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"
