"""One process at a time trains in a folder: `run.lock` names it, and the kernel's lock on that file ends with the process.

A file that a killed process left is taken over at once on the same machine. One of another machine, to which the kernel's lock may
not reach, counts as left behind when its owner has not renewed it for STALE seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfgm_fast.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: the file alone decides
    fcntl = None  # type: ignore[assignment]

RENEW = 30.0
"""Seconds after which the owner renews the file."""
STALE = 900.0
NAME = "run.lock"


class RunLock:
    """Held from `acquire` to `release`. Raises: CheckpointError naming the process that trains there."""

    def __init__(self, run: Path) -> None:
        self.path = run / NAME
        self._file: int | None = None
        self._renewed = 0.0
        self._made = False

    def acquire(self) -> None:
        self._made = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                locked = _locked(descriptor) or (not _owner(self.path) and _locked(descriptor, patience=0.5))
                refuse_owner(self.path, locked)
                same = os.path.samestat(os.fstat(descriptor), os.stat(self.path))
            except FileNotFoundError:  # its owner removed it in between
                same = False
            except BaseException:
                os.close(descriptor)
                raise
            if same:
                break
            os.close(descriptor)
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        self._file = descriptor

    def renew(self) -> None:
        """Say that the owner lives; costs nothing more often than every RENEW seconds."""
        if self._file is not None and time.monotonic() - self._renewed > RENEW:
            os.utime(self._file)
            self._renewed = time.monotonic()

    def release(self) -> None:
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
            if self._made:  # a start that failed leaves no empty folder
                with contextlib.suppress(OSError):
                    self.path.parent.rmdir()

    @contextlib.contextmanager
    def held(self) -> Iterator[RunLock]:
        self.acquire()
        try:
            yield self
        finally:
            self.release()


def refuse_if_held(run: Path) -> None:
    """Raises: CheckpointError where another process trains in the folder now."""
    try:
        descriptor = os.open(run / NAME, os.O_RDWR)
    except OSError:
        return
    try:
        refuse_owner(run / NAME, _locked(descriptor))
    finally:
        os.close(descriptor)


def refuse_owner(path: Path, locked: bool) -> None:
    """locked: the kernel gave us the lock. Raises: CheckpointError where the owner that the file names may be alive."""
    owner = _owner(path)
    if not owner and locked:
        return
    here = owner.get("host") == socket.gethostname()
    if locked and here and fcntl is not None:
        return
    age = time.time() - path.stat().st_mtime
    if locked and age > STALE:
        return
    advice = (
        ""
        if here
        else f"; if that process is dead, remove {path} (it counts as dead after {STALE / 60:.0f} minutes)"
    )
    raise CheckpointError(
        f"{path.parent} is being trained by process {owner.get('pid', '?')} on {owner.get('host', '?')} "
        f"since {owner.get('since', '?')}: wait for it, stop it, or choose another folder{advice}"
    )


def _owner(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _locked(descriptor: int, patience: float = 0.0) -> bool:
    """Whether the kernel's lock is ours now, or within `patience` seconds; True where there is no such lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if patience <= 0:
            return False
        time.sleep(0.05)
        return _locked(descriptor, patience - 0.05)
    except OSError:  # a file system without locks
        return True
    return True
