"""Reads PyTorch checkpoints and pickles of objects without running what they hold.

A pickle is a small program: it names functions and calls them. Here a name finds only what `vocabulary.ALLOWED` lists, each entry a function
that makes a plain record out of its arguments; classes of networks become `StandIn`s, which remember their name, arguments and state;
any other name, and any call of a stand-in, is refused. No module is imported, no attribute of an imported module looked up, no source text
that the file carries (`module_src`) read. Tensors are `StoredTensor`s, whose place in the file is checked, and which are read on demand.

Understood: the zip format of `torch.save`, its format before PyTorch 1.6, and plain pickles whose tensors hold such bytes (those of
`network-snapshot-*.pkl`).
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pfgm_fast.compat.vocabulary import (
    ALLOWED,
    DTYPES,
    STANDARD,
    Function,
    Record,
    Refused,
    Sealed,
    StandIn,
    Storage,
    StorageType,
    StoredTensor,
    integers,
    persistent,
)
from pfgm_fast.errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of the format before PyTorch 1.6."""


class _Unpickler(pickle.Unpickler):
    """load() with the rules of this file. storages: (dtype, key, count) → Storage, of persistent ids; nested: only storages."""

    def __init__(self, file: Any, storages: Callable[..., Storage] | None, nested: bool) -> None:
        super().__init__(file, encoding="latin1")
        self.storages, self.nested = storages, nested

    def find_class(self, module: str, name: str) -> Any:
        kind = name.removesuffix("Storage")
        if (module in ("torch", "torch.storage", "torch.cuda") and name != kind) and (
            kind in DTYPES or kind in ("Untyped", "Typed")
        ):
            return StorageType(DTYPES.get(kind, torch.uint8))
        if not self.nested:
            if (module, name) == ("torch.storage", "_load_from_bytes"):
                return Function(_storage_from_bytes)
            if (module, name) in ALLOWED:
                return ALLOWED[module, name]
            root = module.split(".")[0]
            if module.endswith("persistence") and name == "_reconstruct_persistent_obj":
                return Function(persistent)
            if module.startswith("dnnlib") and name == "EasyDict":
                return Record
            if root.isidentifier() and (
                root not in STANDARD or module.startswith(("torch.nn.", "torch.optim."))
            ):
                return Sealed(name, (StandIn,), {"__slots__": (), "ORIGIN": (module, name)})
        raise Refused(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module" and isinstance(pid[1], Sealed):
            return pid[1]  # before 1.6: a class, and its source text behind, which is not read
        if self.storages is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise Refused(f"a reference {str(pid)[:80]!r} to something outside")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, StorageType) or (view and view[0] is not None):
            raise Refused(f"a storage {str(pid)[:80]!r}")
        return self.storages(kind.dtype, str(key), integers([count], "length")[0])


# ---- the three formats ---------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Any:
    """What the file holds: numbers, strings, lists, dicts, tuples, sets, `StoredTensor`s and `StandIn`s.

    Raises: CheckpointError where there is no file, it is truncated or of another format, or holds anything else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    try:
        return _loads(data)
    except Refused as error:
        raise CheckpointError(
            f"{path} is refused: {error}; expected nothing but tensors, numbers, strings, containers and networks"
        ) from None
    except Exception as error:  # pickle, zip and format errors all mean one thing
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected a file of torch.save or a pickle of one"
        ) from error


class _View(io.RawIOBase):
    """Bytes as a file."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, len(self.data))[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        part = self.data[self.place : self.place + len(buffer)]
        buffer[: len(part)] = part
        self.place += len(part)
        return len(part)


def _loads(data: memoryview, nested: bool = False) -> Any:
    if bytes(data[:4]) == b"PK\x03\x04":
        return _load_zip(data, nested)
    file = _View(data)
    first = _Unpickler(file, None, nested).load()
    return _load_legacy(file, nested) if type(first) is int and first == _MAGIC else first


def _load_zip(data: memoryview, nested: bool) -> Any:
    """torch.save's format: NAME/data.pkl, NAME/data/KEY for every storage, NAME/byteorder."""
    archive = zipfile.ZipFile(_View(data))
    main = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") < 2]
    if len(main) != 1:
        raise Refused("a zip archive without one data.pkl")
    prefix = main[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder").strip() != b"little":
        raise Refused("numbers in big-endian order")

    def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
        entry = archive.getinfo(f"{prefix}data/{key}")
        if entry.file_size < count * dtype.itemsize:
            raise Refused(f"storage {key} has {entry.file_size} bytes for {count} elements of {dtype}")
        return Storage(dtype, count, lambda: archive.read(entry))

    return _Unpickler(io.BytesIO(archive.read(main[0])), storage, nested).load()


def _load_legacy(file: _View, nested: bool) -> Any:
    """The format before PyTorch 1.6, behind its first pickle: version, system, object, keys; then every storage's length and bytes."""
    version, system = (_Unpickler(file, None, True).load() for _ in range(2))
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused(f"torch.save's format {version!r}")
    places: dict[str, int] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
        def read() -> memoryview:
            first = places[key]
            return file.data[first : first + count * dtype.itemsize]

        sizes[key] = max(count, sizes.get(key, 0)) * dtype.itemsize
        return Storage(dtype, count, read)

    sizes: dict[str, int] = {}
    found = _Unpickler(file, storage, nested).load()
    for key in map(str, _Unpickler(file, None, True).load()):
        if key not in sizes:
            raise Refused(f"a storage {key} that nothing names")
        (_,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell()
        if file.seek(sizes[key], 1) > len(file.data):
            raise Refused("it is cut off")
    if len(places) != len(sizes):
        raise Refused("it lacks storages")
    return found


def _storage_from_bytes(data: Any) -> Storage:
    """torch.storage._load_from_bytes: a whole `torch.save` of one storage."""
    if not isinstance(data, (bytes, bytearray)):
        raise Refused("a storage is not made of bytes")
    loaded = _loads(memoryview(data), nested=True)
    if not isinstance(loaded, Storage):
        raise Refused(f"a storage's bytes hold a {type(loaded).__name__}")
    return loaded


__all__ = ["Refused", "StandIn", "StoredTensor", "load"]
