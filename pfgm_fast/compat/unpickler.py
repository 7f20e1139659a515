"""Reads PyTorch checkpoints and pickles of objects without running what they hold.

A pickle is a small program: it names functions and calls them. Here a name finds only what `_ALLOWED` lists, each entry a function of this
file that makes a plain record out of its arguments; classes of networks become `StandIn`s, which remember their name, arguments and state;
any other name, and any call of a stand-in, is refused. No module is imported, no attribute of an imported module looked up, no source text
that the file carries (`module_src`) read. Tensors are `StoredTensor`s, whose place in the file is checked, and which are read on demand.

Understood: the zip format of `torch.save`, its format before PyTorch 1.6, and plain pickles whose tensors hold such bytes (those of
`network-snapshot-*.pkl`).
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from pfgm_fast.errors import CheckpointError

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
"""Name of a storage class, less 'Storage' → the dtype of its elements."""

_PLAIN_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
_STANDARD = frozenset(sys.stdlib_module_names) | {"__builtin__", "torch", "numpy", "copy_reg"}
_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of the format before PyTorch 1.6."""


class Refused(pickle.UnpicklingError):
    """The file names or does what a checkpoint does not need."""


# ---- what a file may be made of --------------------------------------------------------------------------------------------


class _Fixed:
    """What a pickle cannot change once it is made."""

    def __setstate__(self, state: Any) -> NoReturn:
        raise Refused(f"it changes a {type(self).__name__}")


@dataclass(frozen=True)
class Storage(_Fixed):
    """count numbers of a dtype; data(): their bytes."""

    dtype: torch.dtype
    count: int
    data: Callable[[], bytes | memoryview]


@dataclass(frozen=True)
class StoredTensor(_Fixed):
    """A tensor in the file: where in a storage it lies. `read()` makes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def read(self) -> Tensor:
        """A copy (shape), contiguous, on the CPU."""
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(self.storage.data()), dtype=self.dtype, count=self.storage.count)
        return flat.as_strided(self.shape, self.stride, self.offset).contiguous()


class _Sealed(type):
    """Classes that a pickle may name: it can make an instance, and cannot call or change the class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise Refused(f"it calls {'.'.join(getattr(cls, 'ORIGIN', (cls.__qualname__,)))}")

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise Refused(f"it changes {cls.__qualname__}")


class StandIn(metaclass=_Sealed):
    """In place of an object of the class `origin`.`name`: state, a dict where it had one. Nothing of that class is run."""

    __slots__ = ("args", "name", "origin", "state")
    args: tuple[Any, ...]
    name: str
    origin: str
    state: Any

    def __new__(cls, *args: Any) -> StandIn:
        self = object.__new__(cls)
        self.origin, self.name = getattr(cls, "ORIGIN", ("", ""))
        self.args, self.state = args, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.origin}.{self.name} of a file>"


class Record(dict, metaclass=_Sealed):  # type: ignore[misc]
    """In place of OrderedDict and other dicts of named classes; attributes on them are dropped."""

    def __new__(cls, *args: Any) -> Record:
        self = dict.__new__(cls)
        for key, value in args[0] if args else ():
            dict.__setitem__(self, key, value)
        return self

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class _Function(_Fixed):
    """A callable that a pickle may name."""

    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


# ---- what a file may call ----------------------------------------------------------------------------------------------------


def _integers(values: Any, what: str) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(v) is int and v >= 0 for v in numbers):
        raise Refused(f"a tensor's {what} is {numbers!r}")
    return numbers


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor and its later versions."""
    if not isinstance(storage, Storage):
        raise Refused(f"a tensor's storage is a {type(storage).__name__}")
    shape, stride = _integers(shape, "shape"), _integers(stride, "stride")
    (offset,) = _integers([offset], "offset")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if count else 0
    if count > storage.count or (count and last >= storage.count):
        raise Refused(f"a tensor of shape {shape} lies outside its storage of {storage.count} elements")
    return StoredTensor(storage, offset, shape, stride)


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> StoredTensor:  # fmt: skip
    """torch._utils._rebuild_tensor_v3: bytes, and the dtype beside."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Refused("a tensor without storage or dtype")
    typed = Storage(dtype, storage.count * storage.dtype.itemsize // dtype.itemsize, storage.data)
    return _tensor(typed, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Refused(f"a parameter holds a {type(data).__name__}")
    return data


def _storage_from_bytes(data: Any) -> Storage:
    """torch.storage._load_from_bytes: a whole `torch.save` of one storage."""
    if not isinstance(data, (bytes, bytearray)):
        raise Refused("a storage is not made of bytes")
    loaded = _loads(memoryview(data), nested=True)
    if not isinstance(loaded, Storage):
        raise Refused(f"a storage's bytes hold a {type(loaded).__name__}")
    return loaded


def _latin(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"bytes are encoded as {encoding!r}")
    return text.encode("latin-1")


@dataclass(slots=True)
class _NumpyType:
    code: str

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.code = state[1] + self.code

    def make(self) -> np.dtype[Any]:
        return np.dtype(self.code)


def _numpy_type(code: Any, *_: Any) -> _NumpyType:
    if not isinstance(code, str) or code.lstrip("<>|=")[:1] not in tuple("biufcSU?") or len(code) > 6:
        raise Refused(f"numbers of NumPy's type {code!r}")
    return _NumpyType(code.lstrip("<>|="))


def _numpy_scalar(kind: Any, data: Any = b"") -> Any:
    if not isinstance(kind, _NumpyType) or not isinstance(data, (bytes, bytearray)):
        raise Refused("a NumPy scalar without type or bytes")
    return np.frombuffer(data, kind.make(), 1)[0].item()


class NumpyArray:
    """In place of an array: numpy's `_reconstruct`, whose contents come as state, or `_frombuffer`. value: the array."""

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray[Any, Any] | None = None) -> None:
        self.value = np.empty(0) if value is None else value

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.value = _numpy_buffer(data, kind, shape, "F" if fortran else "C")


def _numpy_buffer(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    if (
        not isinstance(kind, _NumpyType)
        or not isinstance(data, (bytes, bytearray))
        or order not in ("C", "F")
    ):
        raise Refused("a NumPy array without type or bytes")
    return np.frombuffer(data, kind.make()).reshape(_integers(shape, "shape"), order=order).copy()


def _persistent(meta: Any) -> StandIn:
    """torch_utils.persistence: {type, version, module_src, class_name, state}; only the last two are read."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise Refused("a persistent object without class name")
    return named(meta["class_name"], meta.get("state", {}))


def named(name: str, state: Any, origin: str = "persistent") -> StandIn:
    """A stand-in with this state."""
    self = StandIn.__new__(StandIn)
    self.origin, self.name, self.state = origin, name, state
    return self


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    """copyreg._reconstructor: how protocols 0 and 1 make an object."""
    if not isinstance(kind, _Sealed) or not (state is None or (kind is Record and isinstance(state, dict))):
        raise Refused("it makes an object of a built-in class")
    made: Any = kind.__new__(kind)  # type: ignore[call-overload]
    if kind is Record:
        made.update(state or {})
    return made


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are dropped."""
    if not isinstance(function, _Function) or not isinstance(args, tuple):
        raise Refused("a tensor of a class of its own")
    return function(*args)


def _set(values: Any = ()) -> set[Any]:
    return set(values)


_ALLOWED: dict[tuple[str, str], Any] = {
    **{("torch._utils", f"_rebuild_tensor{version}"): _Function(_tensor) for version in ("", "_v2")},
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_of_dtype),
    **{
        ("torch._utils", f"_rebuild_parameter{more}"): _Function(_parameter) for more in ("", "_with_state")
    },
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_from_type),
    ("torch.storage", "_load_from_bytes"): _Function(_storage_from_bytes),
    ("torch", "Size"): _Function(lambda sizes=(): _integers(sizes, "size")),
    ("torch", "device"): _Function(lambda *parts: ":".join(map(str, parts))),
    **{("torch", name): dtype for name, dtype in _PLAIN_DTYPES.items()},
    ("collections", "OrderedDict"): _Function(lambda *args: Record.__new__(Record, *args)),
    **{(module, name): _Function(_set) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **{(module, "object"): object() for module in ("builtins", "__builtin__")},
    **{(module, "bytearray"): _Function(lambda data=b"", *e: _latin(data, *e) if e else bytes(_bytes(data)))
       for module in ("builtins", "__builtin__")},
    ("_codecs", "encode"): _Function(_latin),
    **{(module, "_reconstructor"): _Function(_reconstructor) for module in ("copyreg", "copy_reg")},
    ("numpy", "dtype"): _Function(_numpy_type),
    ("numpy", "ndarray"): None,
    ("torch", "Tensor"): None,
    **{
        (f"numpy.{core}.{module}", name): _Function(call)
        for core in ("core", "_core")
        for module, name, call in (
            ("multiarray", "scalar", _numpy_scalar),
            ("multiarray", "_reconstruct", lambda *_: NumpyArray()),
            ("numeric", "_frombuffer", lambda *given: NumpyArray(_numpy_buffer(*given))),
        )
    },
}  # fmt: skip
"""(module, name) in a pickle → what stands for it."""


def _bytes(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray)):
        raise Refused("bytes made of something else")
    return bytes(data)


class _Unpickler(pickle.Unpickler):
    """load() with the rules of this file. storages: (dtype, key, count) → Storage, of persistent ids; nested: only storages."""

    def __init__(self, file: Any, storages: Callable[..., Storage] | None, nested: bool) -> None:
        super().__init__(file, encoding="latin1")
        self.storages, self.nested = storages, nested

    def find_class(self, module: str, name: str) -> Any:
        kind = name.removesuffix("Storage")
        if (module in ("torch", "torch.storage", "torch.cuda") and name != kind) and (
            kind in _DTYPES or kind in ("Untyped", "Typed")
        ):
            return _StorageType(_DTYPES.get(kind, torch.uint8))
        if not self.nested:
            if (module, name) in _ALLOWED:
                return _ALLOWED[module, name]
            root = module.split(".")[0]
            if module.endswith("persistence") and name == "_reconstruct_persistent_obj":
                return _Function(_persistent)
            if module.startswith("dnnlib") and name == "EasyDict":
                return Record
            if root.isidentifier() and (
                root not in _STANDARD or module.startswith(("torch.nn.", "torch.optim."))
            ):
                return _Sealed(name, (StandIn,), {"__slots__": (), "ORIGIN": (module, name)})
        raise Refused(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module" and isinstance(pid[1], _Sealed):
            return pid[1]  # before 1.6: a class, and its source text behind, which is not read
        if self.storages is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise Refused(f"a reference {str(pid)[:80]!r} to something outside")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageType) or (view and view[0] is not None):
            raise Refused(f"a storage {str(pid)[:80]!r}")
        return self.storages(kind.dtype, str(key), _integers([count], "length")[0])


@dataclass(frozen=True)
class _StorageType(_Fixed):
    dtype: torch.dtype


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
