"""The one reader of settings: text (`--set`), JSON and TOML → the fields of dataclasses, by the fields' annotations.

Known annotations: bool, int, float, str, Literal, tuples, unions with None, dataclasses, dicts, and `Annotated` with `Variants` or
`Spelling`. Text is read by the type of its target: `no` is False where a bool is due and the word where a str is. Values that have a
type already (JSON, TOML, Python) must be of it; a whole number is also a float, and 12.0 is also an int.
Whatever does not fit is an ArgumentError that names the setting, its type and what was given.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pfgm_fast.errors import ArgumentError
from pfgm_fast.training.annotations import AS_IS, FROM_TEXT, NOTHING, refused
from pfgm_fast.training.annotations import Spelling as Spelling
from pfgm_fast.training.annotations import Variants as Variants
from pfgm_fast.training.annotations import describe as describe
from pfgm_fast.training.annotations import fields_of as fields_of

T = TypeVar("T")


def build(kind: type[T], values: object, name: str = "") -> T:
    """A dataclass from typed values of its fields. name: how the group is called, "" at the top.

    Raises: ArgumentError for a value of another type, an unknown field (with the nearest known), or what the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ArgumentError(f"{name or 'the settings'} must be a group of settings; got {values!r}")
    hints = fields_of(kind)
    given = {
        key: typed(hints[_known(key, hints, name)], value, _dotted(name, key))
        for key, value in values.items()
    }
    try:
        return kind(**given)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}" if name else str(error)) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"{name or 'the settings'}: {error}") from None


def check(instance: Any) -> None:
    """For `__post_init__` of a frozen dataclass: every field is of its annotation's type. Lists become tuples, ints floats."""
    for key, hint in fields_of(type(instance)).items():
        object.__setattr__(instance, key, typed(hint, getattr(instance, key), key))


def assignments(kind: type, pairs: Iterable[str], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`a.b=text` for the settings of a dataclass → {"a": {"b": value}}, each value read by its setting's type.

    base: settings that these are laid over; it says which variant a group is, where the pairs do not.
    """
    split = []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ArgumentError(f"--set takes name=value, such as train.lr=1e-4; got {pair!r}")
        split.append((name.strip(), text.strip()))
    split.sort(key=lambda item: not item[0].endswith(".name"))  # a variant's name before its settings
    result: dict[str, Any] = {}
    for name, text in split:
        _assign(kind, name.split("."), text, "", result, base or {})
    return result


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """base with changes laid over it, group by group; a variant of another name begins anew."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = "name" in value and value["name"] != old.get("name", value["name"])
            value = dict(value) if renamed else merged(old, value)
        out[key] = value
    return out


def typed(hint: Any, value: Any, name: str, text: bool = False) -> Any:
    """value as the annotation's type; text: it is text that is still to be read.

    Raises: ArgumentError naming the setting, its type and what was given.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1], value, name, text)
    if origin in (Union, types.UnionType):
        return _union(hint, value, name, text)
    if dataclasses.is_dataclass(hint):
        return _group(hint, value, name, text)  # type: ignore[arg-type]
    if hint is Any:
        return value
    try:
        if origin is Literal:
            return next(
                c for c in arguments if (str(c) == value if text else c == value and type(c) is type(value))
            )
        if origin is tuple:
            return _tuple(arguments, value, name, text)
        if hint is dict or origin is dict:
            return dict(_json_group(value) if text else _mapping(value))
        return (FROM_TEXT if text else AS_IS)[hint](value)
    except (ValueError, TypeError, OverflowError, StopIteration, RecursionError):
        raise refused(hint, value, name) from None


def _annotated(hint: Any, extra: Any, value: Any, name: str, text: bool) -> Any:
    if type(None) in get_args(hint) and (value is None or (text and value.lower() in NOTHING)):
        return None
    if isinstance(extra, Spelling):
        try:
            return extra.read(value)
        except ArgumentError:
            raise ArgumentError(f"{name} must be {extra.what}; got {value!r}") from None
    if not isinstance(extra, Variants):
        return typed(hint, value, name, text)
    if text and value in extra.kinds:
        value = {extra.tag: value}
    try:
        values = extra.update(_json_group(value) if text and isinstance(value, str) else _mapping(value))
    except (ValueError, TypeError, RecursionError):
        raise ArgumentError(
            f"{name} must be one of {', '.join(extra.kinds)}, or a group of settings; got {value!r}"
        ) from None
    tag = values.pop(extra.tag, extra.default)
    hints = fields_of(_variant(extra, tag, name))
    return {
        extra.tag: tag,
        **{key: typed(hints[_known(key, hints, name)], v, _dotted(name, key)) for key, v in values.items()},
    }


def _variant(variants: Variants, tag: object, name: str) -> type:
    if not isinstance(tag, str) or tag not in variants.kinds:
        near = _nearest(str(tag), variants.kinds)
        raise ArgumentError(
            f"{name}.{variants.tag} must be one of {', '.join(variants.kinds)}; got {tag!r}{near}"
        )
    return variants.kinds[tag]


def _union(hint: Any, value: Any, name: str, text: bool) -> Any:
    kinds = get_args(hint)
    if type(None) in kinds and (value is None or (text and value.lower() in NOTHING)):
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others:
        try:
            return typed(kind, value, name, text)
        except ArgumentError:
            if len(others) == 1 and (dataclasses.is_dataclass(kind) or get_origin(kind) is Annotated):
                raise  # its message says more
    raise refused(hint, value, name)


def _group(kind: type, value: Any, name: str, text: bool) -> Any:
    if isinstance(value, kind):
        return value
    known = getattr(kind, "named_groups", {})
    if text and value in known:
        return build(kind, known[value], name)
    if text:
        try:
            value = _json_group(value)
        except (ValueError, TypeError, RecursionError):
            raise ArgumentError(
                f"{name} is a group of settings, {name}.{next(iter(fields_of(kind)))} one of them; got {value!r}"
            ) from None
    return build(kind, value, name)


def _tuple(kinds: tuple[Any, ...], value: Any, name: str, text: bool) -> tuple[Any, ...]:
    if text:
        inner = re.fullmatch(r"\((.*)\)|\[(.*)\]|([^()\[\]]*)", value, re.DOTALL)
        if inner is None:
            raise ValueError
        words = next(group for group in inner.groups() if group is not None).strip().removesuffix(",")
        value = [word.strip() for word in words.split(",")] if words else []
    elif not isinstance(value, (tuple, list)):
        raise TypeError
    if kinds[-1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError
    try:
        return tuple(typed(kind, item, name, text) for kind, item in zip(kinds, value, strict=True))
    except ArgumentError:
        raise ValueError from None


def _assign(
    kind: type, path: list[str], text: str, name: str, into: dict[str, Any], base: Mapping[str, Any]
) -> None:
    key, *rest = path
    hints = fields_of(kind)
    hint, name = hints[_known(key, hints, name)], _dotted(name, key)
    below, inner, tag = base.get(key), _inner(hint), None
    variants = next(
        (extra for extra in getattr(inner, "__metadata__", ()) if isinstance(extra, Variants)), None
    )
    if variants is not None:
        known = (into.get(key) or {}, below or {})
        tag = next((group[variants.tag] for group in known if variants.tag in group), variants.default)
    if not rest:
        value = typed(hint, _tagged(text, variants, tag), name, text=True)
        if dataclasses.is_dataclass(value):  # what was given of a group, not its defaults
            named = getattr(type(value), "named_groups", {})
            value = dict(named[text]) if text in named else json.loads(text)
        both = isinstance(value, dict) and isinstance(into.get(key), dict)
        into[key] = merged(into[key], value) if both else value
        return
    group = into.get(key)
    if not isinstance(group, dict):
        group = into[key] = {}
    if variants is not None:
        inner = _variant(variants, text if rest == [variants.tag] else tag, name)
        if rest == [variants.tag]:
            group[variants.tag] = text
            return
    if not dataclasses.is_dataclass(inner):
        raise ArgumentError(f"{name} is one setting ({describe(hint)}), without {'.'.join(rest)!r} within")
    _assign(inner, rest, text, name, group, below or {})  # type: ignore[arg-type]


def _tagged(text: str, variants: Variants | None, tag: str | None) -> str:
    """JSON of a variant's settings with the name that it has already, where it gives none."""
    try:
        values = _json_group(text) if variants is not None else None
    except (ValueError, TypeError, RecursionError):
        values = None
    return text if values is None or variants is None else json.dumps({variants.tag: tag, **values})


def _inner(hint: Any) -> Any:
    """The group in a union of a group and None."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((_inner(kind) for kind in get_args(hint) if kind is not type(None)), hint)
    return hint


def _known(key: object, hints: Mapping[str, Any], name: str) -> str:
    if isinstance(key, str) and key in hints:
        return key
    raise ArgumentError(
        f"{name or 'run'}: unknown setting {str(key)!r}{_nearest(str(key), hints)}; known are {', '.join(sorted(hints))}"
    )


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word[:80], list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return value


def _json_group(text: str) -> Mapping[str, Any]:
    return _mapping(json.loads(text))
