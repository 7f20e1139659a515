"""Files below a folder or inside a zip: their names, their bytes, and what is left out."""

from __future__ import annotations

import os
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pfgm_fast.errors import DataError

LARGEST_FILE = 1 << 30
_SYSTEM = frozenset(
    {
        "__macosx",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "@eadir",
        "#recycle",
    }
)


def is_hidden(component: str) -> bool:
    """A file or folder that people do not mean by 'my images': a dot file, or one that a system keeps there."""
    return component.startswith(".") or component.lower() in _SYSTEM


def shown(name: str) -> str:
    """A file's name that can be printed, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


def some(names: list[str], limit: int = 3) -> str:
    """The first few names, for a message."""
    return ", ".join(map(shown, names[:limit])) + (", …" if len(names) > limit else "")


@dataclass
class Tree:
    """names: of the regular files that are not hidden, with `/`, sorted. hidden: what was passed over, folders with a `/` at the end."""

    path: Path
    names: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises: DataError naming it."""
        try:
            return self._read(name)
        except DataError:
            raise
        except Exception as error:  # a zip's decompressors raise what they like
            raise DataError(f"{self.where(name)} cannot be read: {error or type(error).__name__}") from error

    def where(self, name: str) -> str:
        return shown(f"{self.path}/{name}")

    def _read(self, name: str) -> bytes:
        raise NotImplementedError

    def _too_large(self, name: str, size: int) -> DataError:
        return DataError(
            f"{self.where(name)} has {size:,} bytes (unpacked), more than the {LARGEST_FILE:,} that an image may have"
        )


def open_tree(path: Path) -> Tree:
    """Raises: DataError where the folder cannot be listed, or the zip is none."""
    try:
        return _Folder(path) if path.is_dir() else _Zip(path)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


class _Folder(Tree):
    """Symbolic links are followed, once round a circle of them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._root = os.fspath(path)
        self._list("", frozenset())
        self.names.sort()
        self.hidden.sort()

    def _list(self, below: str, above: frozenset[tuple[int, int]]) -> None:
        here = self.path / below
        status = here.stat()
        if (status.st_dev, status.st_ino) in above:
            return
        with os.scandir(here) as entries:
            for entry in entries:
                name = below + entry.name
                folder = entry.is_dir()
                if is_hidden(entry.name):
                    self.hidden.append(f"{name}/" if folder else name)
                elif folder:
                    self._list(f"{name}/", above | {(status.st_dev, status.st_ino)})
                else:
                    self.names.append(name)

    def _read(self, name: str) -> bytes:
        # Not to be blocked by a named pipe.
        with open(
            os.open(self.path / name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY), "rb"
        ) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{self.where(name)} is no regular file")
            if status.st_size > LARGEST_FILE:
                raise self._too_large(name, status.st_size)
            return file.read()


_BINARY = getattr(os, "O_BINARY", 0)


class _Zip(Tree):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except OSError:
            raise
        except Exception as error:  # a damaged directory of the archive raises more than BadZipFile
            raise DataError(f"{path} is not a zip file, or is truncated: {error}") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        hidden = set()
        for member in self._archive.infolist():
            parts = PurePosixPath(member.filename.replace("\\", "/")).parts
            first = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
            if first is not None:
                within = first + 1 < len(parts) or member.is_dir()
                hidden.add("/".join(parts[: first + 1]) + "/" * within)
            elif parts and not member.is_dir():
                self._members["/".join(parts)] = member
        self.names = sorted(self._members)
        self.hidden = sorted(hidden)

    def _read(self, name: str) -> bytes:
        member = self._members[name]
        if member.flag_bits & 1:
            raise DataError(f"{self.where(name)} is encrypted: unpack the archive with its password first")
        if member.file_size > LARGEST_FILE:
            raise self._too_large(name, member.file_size)
        return self._archive.read(member)
