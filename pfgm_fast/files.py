"""Files that are whole or not there: written beside, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder; renamed to `path` where the block succeeds, removed where it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """The new name is on the disk too, where the system can say so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def writable(path: Path) -> None:
    """A file can be written there: asked before long work. Raises: OSError as the disk gives it; nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


def write_beside(path: Path, content: bytes) -> None:
    """A file of this content, whole or not there. Raises: OSError as the disk gives it."""
    with beside(path) as partial:
        partial.write_bytes(content)
