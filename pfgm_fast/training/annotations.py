"""What the fields of settings are annotated with: kinds of values, how each is read from text or taken as it is, and called in words."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pfgm_fast.errors import ArgumentError

BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
NOTHING = frozenset({"none", "null"})


@dataclass(frozen=True)
class Variants:
    """Of a dict that stands for one of several dataclasses: `tag` names which, the other entries are some of its fields.

    update: brings entries of earlier versions to today's.
    """

    kinds: Mapping[str, type]
    default: str
    tag: str = "name"
    update: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True)
class Spelling:
    """Of a value with a way of its own to be written: `read` gives the value, or raises ArgumentError; `what` describes it."""

    read: Callable[[Any], Any]
    what: str


def fields_of(kind: Any) -> dict[str, Any]:
    """name → annotation of the fields that a dataclass is made from."""
    return _fields(kind)


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]


def describe(hint: Any) -> str:
    """An annotation in words: "true or false", "an integer or none"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if isinstance(arguments[1], Spelling):
            return arguments[1].what
        return describe(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(kind) for kind in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        item = _PLURALS.get(arguments[0], describe(arguments[0]))
        return f"{item}, such as (1, 2)" if arguments[-1] is ... else f"{len(arguments)} {item}"
    if dataclasses.is_dataclass(hint) or origin is dict or hint is dict:
        return "a group of settings"
    return _WORDS.get(hint, str(hint))


_WORDS = {
    bool: "true or false (bool)",
    int: "an integer (int)",
    float: "a number (float)",
    str: "text (str)",
    type(None): "none",
}
_PLURALS: dict[Any, str] = {bool: "truth values", int: "integers", float: "numbers", str: "words"}


def refused(hint: Any, value: object, name: str) -> ArgumentError:
    shown = repr(value)
    return ArgumentError(
        f"{name} must be {describe(hint)}; got {shown if len(shown) < 80 else shown[:76] + '…'}"
    )


def _finite_or_infinite(value: float) -> float:
    if math.isnan(value):
        raise ValueError
    return value


def _text_bool(text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise ValueError
    return BOOLEANS[text.lower()]


def _whole(value: float) -> int:
    if not float(value).is_integer():
        raise ValueError
    return int(value)


def _text_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return _whole(float(text))


def _plain_bool(value: object) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's too
        raise TypeError
    return bool(value)


def _plain_int(value: Any) -> int:
    if type(value).__name__ in ("bool", "bool_"):
        raise TypeError
    return _whole(value) if isinstance(value, float) else operator.index(value)


def _plain_float(value: Any) -> float:
    if type(value).__name__ in ("bool", "bool_") or isinstance(value, (str, bytes)):
        raise TypeError
    return _finite_or_infinite(float(value))


def _plain_str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str(value)


FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    bool: _text_bool,
    int: _text_int,
    float: lambda text: _finite_or_infinite(float(text)),
    str: str,
}
AS_IS: dict[Any, Callable[[Any], Any]] = {
    bool: _plain_bool,
    int: _plain_int,
    float: _plain_float,
    str: _plain_str,
}
