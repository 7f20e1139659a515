"""What a checkpoint's pickle may be made of, and what it may call: see `unpickler`."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

DTYPES = {
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

_PLAIN_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
STANDARD = frozenset(sys.stdlib_module_names) | {"__builtin__", "torch", "numpy", "copy_reg"}


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


class Sealed(type):
    """Classes that a pickle may name: it can make an instance, and cannot call or change the class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise Refused(f"it calls {'.'.join(getattr(cls, 'ORIGIN', (cls.__qualname__,)))}")

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise Refused(f"it changes {cls.__qualname__}")


class StandIn(metaclass=Sealed):
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


class Record(dict, metaclass=Sealed):  # type: ignore[misc]
    """In place of OrderedDict and other dicts of named classes; attributes on them are dropped."""

    def __new__(cls, *args: Any) -> Record:
        self = dict.__new__(cls)
        for key, value in args[0] if args else ():
            dict.__setitem__(self, key, value)
        return self

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Function(_Fixed):
    """A callable that a pickle may name."""

    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


# ---- what a file may call ----------------------------------------------------------------------------------------------------


def integers(values: Any, what: str) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(v) is int and v >= 0 for v in numbers):
        raise Refused(f"a tensor's {what} is {numbers!r}")
    return numbers


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor and its later versions."""
    if not isinstance(storage, Storage):
        raise Refused(f"a tensor's storage is a {type(storage).__name__}")
    shape, stride = integers(shape, "shape"), integers(stride, "stride")
    (offset,) = integers([offset], "offset")
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
    return np.frombuffer(data, kind.make()).reshape(integers(shape, "shape"), order=order).copy()


def persistent(meta: Any) -> StandIn:
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
    if not isinstance(kind, Sealed) or not (state is None or (kind is Record and isinstance(state, dict))):
        raise Refused("it makes an object of a built-in class")
    made: Any = kind.__new__(kind)  # type: ignore[call-overload]
    if kind is Record:
        made.update(state or {})
    return made


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are dropped."""
    if not isinstance(function, Function) or not isinstance(args, tuple):
        raise Refused("a tensor of a class of its own")
    return function(*args)


def _set(values: Any = ()) -> set[Any]:
    return set(values)


ALLOWED: dict[tuple[str, str], Any] = {
    **{("torch._utils", f"_rebuild_tensor{version}"): Function(_tensor) for version in ("", "_v2")},
    ("torch._utils", "_rebuild_tensor_v3"): Function(_tensor_of_dtype),
    **{
        ("torch._utils", f"_rebuild_parameter{more}"): Function(_parameter) for more in ("", "_with_state")
    },
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_from_type),
    ("torch", "Size"): Function(lambda sizes=(): integers(sizes, "size")),
    ("torch", "device"): Function(lambda *parts: ":".join(map(str, parts))),
    **{("torch", name): dtype for name, dtype in _PLAIN_DTYPES.items()},
    ("collections", "OrderedDict"): Function(lambda *args: Record.__new__(Record, *args)),
    **{(module, name): Function(_set) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **{(module, "object"): object() for module in ("builtins", "__builtin__")},
    **{(module, "bytearray"): Function(lambda data=b"", *e: _latin(data, *e) if e else bytes(_bytes(data)))
       for module in ("builtins", "__builtin__")},
    ("_codecs", "encode"): Function(_latin),
    **{(module, "_reconstructor"): Function(_reconstructor) for module in ("copyreg", "copy_reg")},
    ("numpy", "dtype"): Function(_numpy_type),
    ("numpy", "ndarray"): None,
    ("torch", "Tensor"): None,
    **{
        (f"numpy.{core}.{module}", name): Function(call)
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


@dataclass(frozen=True)
class StorageType(_Fixed):
    dtype: torch.dtype
