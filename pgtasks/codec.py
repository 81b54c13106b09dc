"""Arguments and results as strict JSON text.

What `encode` accepts is stored and read back without loss; the rest is refused in the caller with
the path of the offending value. orjson does the work. What it lets through is caught here: it
writes NaN and Infinity as `null`, reads integers beyond 64 bits as floats, and keeps the last of
two equal keys. Each check looks at the text first and walks the value only on suspicion.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any, NoReturn
from uuid import UUID

import msgspec
import orjson

from pgtasks.errors import DecodingError, EncodingError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "decode", "encode", "write_as"]

MAX_BYTES = 1_048_576
"""The cap on one encoded value: beyond it a row costs more than a look-up elsewhere."""

MAX_DEPTH = 64
"""How deep lists and objects may nest; every JSON reader in use manages that."""

# A text this short cannot be nested too deeply: each level takes an opening and a closing bracket.
_FLAT_BYTES = 2 * MAX_DEPTH + 1

_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

# orjson rounds an offset to minutes, leaves out underscored fields and forgets what a subclass
# is; with these it asks `_expand` instead.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def encode(value: object, where: str = "value", *, max_bytes: int = MAX_BYTES) -> str:
    """Return the value as JSON text.

    Beyond JSON's own types: tuples (as lists), dataclasses, attrs classes, msgspec structs,
    pydantic models, enums (their value), dates, times and time spans (ISO 8601), UUIDs, decimals
    (as text) and bytes (base64). `pgtasks.parameters` rebuilds them from annotations. What else there
    is, `write_as` was told.

    Args:
        value: what to encode.
        where: what to call it in messages: `args`, `kwargs`, `result`.
        max_bytes: the cap on the text, in bytes of UTF-8.

    Raises:
        EncodingError: the value cannot be carried; the message starts with its path.
    """
    try:
        data = orjson.dumps(value, _expand, _OPTIONS)
    except orjson.JSONEncodeError as error:
        _refuse_unfit(value, where)
        raise EncodingError(f"{where}: {error}") from None
    text = data.decode()  # a search in str takes 0.05 µs, in bytes 0.2
    if "null" in text and not _is_plain(value):
        _refuse_unfit(value, where)
    if "\\u0000" in text:  # maybe only a backslash followed by u0000, which is fine
        _refuse_unfit(value, where)
    if len(data) > _FLAT_BYTES and _may_be_deep(data) and _is_deep(orjson.loads(data)):
        _refuse_unfit(value, where)
    if len(data) > max_bytes:
        raise EncodingError(
            f"{where}: {len(data):,} bytes of JSON, expected at most {max_bytes:,}: "
            "store it elsewhere and pass a reference"
        )
    return text


def decode(text: str | bytes, where: str = "value") -> Any:
    """Return what the JSON text says.

    Text that is byte for byte what `encode` would write is strict by that very fact: writing it
    again costs 0.2 µs and a reader in Python 3 µs, so only text from elsewhere (rows inserted
    with SQL) is read a second time, for duplicate keys and integers beyond 64 bits.

    Args:
        text: what is stored.
        where: what to call it in messages; they never quote the text, which may be private.

    Raises:
        DecodingError: the text is not strict JSON.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DecodingError(f"{where}: {error}") from None
    data = text.encode() if isinstance(text, str) else text
    if len(data) > _FLAT_BYTES and _may_be_deep(data) and _is_deep(value):
        raise DecodingError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    if orjson.dumps(value) != data:
        _read_strictly(data.decode(), where)
    return value


def _may_be_deep(text: bytes) -> bool:
    """Say whether the text may nest beyond the limit; False is certain, True is not.

    On 200 small objects (8 kB) this takes 40 µs, reading them and walking the tree 90.
    """
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    if b'\\"' in text:  # a quote within a string: it cannot be told from those that end one
        return True
    outside_strings = b"".join(text.split(b'"')[::2])
    brackets = outside_strings.translate(_SQUARE, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):  # each time the innermost level goes
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def _is_deep(tree: object) -> bool:
    """Say whether lists and dicts nest beyond the limit, going down level by level."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for parent in level
            for item in (parent.values() if type(parent) is dict else parent)  # type: ignore[attr-defined]
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return False
    return True


def _is_plain(value: object) -> bool:
    """Say whether the value is made of JSON's own types only, without NaN or infinity."""
    kind = type(value)
    if value is None or kind is str or kind is int or kind is bool:
        return True
    if kind is float:
        return isfinite(value)  # type: ignore[arg-type]
    if kind is dict:
        items = value.values()  # type: ignore[attr-defined]
    elif kind is list or kind is tuple:
        items = value
    else:
        return False
    for item in items:
        kind = type(item)
        # The two commonest are decided here: a call costs more than the rest of the loop.
        if kind is not str and item is not None and not _is_plain(item):
            return False
    return True


# ---- what is not JSON by itself, one level at a time ----


def _expand(value: object) -> object:
    """Return the JSON-ward form of the value, one level deep.

    Raises:
        TypeError: there is none; the message says why. orjson turns it into its own.
    """
    kind = type(value)
    form = _FORMS.get(kind)
    if form is not None:
        return form(value)
    if dataclasses.is_dataclass(kind):
        return _fields(value, [field.name for field in dataclasses.fields(kind)])
    if hasattr(kind, "__attrs_attrs__"):
        return _attrs_fields(value)
    if isinstance(value, msgspec.Struct):
        return _struct_fields(value)
    if hasattr(kind, "model_dump"):
        # `round_trip` leaves out computed fields, which the model would not accept back.
        return value.model_dump(mode="json", by_alias=True, round_trip=True)  # type: ignore[attr-defined]
    for base, form in _FORMS.items():
        if isinstance(value, base):
            return form(value)
    raise TypeError(f"{kind.__name__} is not JSON: pass str, numbers, lists, dicts or an id")


def _fields(value: object, names: Iterable[str]) -> dict[str, object]:
    fields = {}
    for name in names:
        field = getattr(value, name)
        # The field's annotation says that it is a set, so its list is rebuilt as one.
        fields[name] = list(field) if isinstance(field, (set, frozenset)) else field
    return fields


def _attrs_fields(value: object) -> dict[str, object]:
    names = [a.name for a in type(value).__attrs_attrs__]  # type: ignore[attr-defined]
    private = [name for name in names if name.startswith("_")]
    if private:
        # msgspec neither writes nor reads them: the rebuilt object would differ in silence.
        raise TypeError(
            f"{type(value).__name__}.{private[0]} is a private attrs field, which would be lost: "
            "pass its content instead"
        )
    return _fields(value, names)


def _struct_fields(value: msgspec.Struct) -> object:
    config = value.__struct_config__
    named = _fields(value, value.__struct_fields__)
    if config.array_like:
        return ([] if config.tag is None else [config.tag]) + list(named.values())
    written = zip(value.__struct_encode_fields__, named.values(), strict=True)
    fields = {name: field for name, field in written if field is not msgspec.UNSET}
    if config.tag is not None and config.tag_field is not None:
        fields[config.tag_field] = config.tag
    return fields


def _datetime_text(value: datetime) -> str:
    if _is_odd(value.utcoffset()):
        value = value.astimezone(UTC)  # the same moment, in a form that JSON readers know
    return value.isoformat()


def _time_text(value: time) -> str:
    if _is_odd(value.utcoffset()):
        raise TypeError("a time whose offset is not in whole minutes is not ISO 8601: use UTC")
    return value.isoformat()


def _is_odd(offset: timedelta | None) -> bool:
    return offset is not None and (offset.seconds % 60 != 0 or offset.microseconds != 0)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _refuse_set(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} has no order, JSON lists have: pass a sorted list")


_FORMS: dict[type, Callable[[Any], object]] = {  # datetime before date: it is a subclass
    datetime: _datetime_text,
    date: date.isoformat,
    time: _time_text,
    timedelta: msgspec.to_builtins,
    UUID: str,
    Decimal: str,
    bytes: _base64,
    bytearray: _base64,
    memoryview: _base64,
    float: float,  # only subclasses come here
    tuple: list,
    set: _refuse_set,
    frozenset: _refuse_set,
}


def write_as(kind: type, form: Callable[[Any], object]) -> None:
    """Let `encode` carry the objects of a class, and of those derived from it, by what ``form`` makes of them."""
    _FORMS[kind] = form


# ---- finding out what is wrong, and where ----


def _refuse_unfit(value: object, path: str, above: tuple[int, ...] = ()) -> None:
    """Raise for the first value within that JSON or PostgreSQL cannot carry; else return."""
    match value:
        case Enum():
            _refuse_unfit(value.value, path, above)
        case None | bool():
            return
        case str():
            _refuse_text(value, path)
        case int():
            if not -(2**63) <= value < 2**64:
                raise EncodingError(f"{path}: an integer beyond 64 bits is not JSON: pass a str")
        case float():
            if not isfinite(value):
                name = {"inf": "Infinity", "-inf": "-Infinity"}.get(float.__repr__(value), "NaN")
                raise EncodingError(f"{path}: {name} is not JSON: pass None")
        case dict():
            below = _enter(value, path, above)
            for key, item in value.items():
                _refuse_key(key, path)
                _refuse_unfit(item, f"{path}[{_quote(key)}]", below)
        case list() | tuple():
            below = _enter(value, path, above)
            for index, item in enumerate(value):
                _refuse_unfit(item, f"{path}[{index}]", below)
        case _:
            _refuse_foreign(value, path, above)


def _refuse_foreign(value: object, path: str, above: tuple[int, ...]) -> None:
    try:
        form = _expand(value)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise EncodingError(f"{path}: {error}") from None
    if isinstance(form, dict):
        below = _enter(value, path, above)
        for key, item in form.items():
            _refuse_key(key, path)
            _refuse_unfit(item, f"{path}.{key}", below)
    else:
        _refuse_unfit(form, path, above)


def _enter(container: object, path: str, above: tuple[int, ...]) -> tuple[int, ...]:
    if id(container) in above:
        raise EncodingError(f"{path}: a circular reference is not JSON: pass an id")
    if len(above) == MAX_DEPTH:
        raise EncodingError(f"{path}: nested deeper than {MAX_DEPTH} levels: flatten it")
    return (*above, id(container))


def _refuse_key(key: object, path: str) -> None:
    if type(key) is not str:
        kind = type(key).__name__
        raise EncodingError(f"{path}: keys must be str, found {kind}: convert them with str()")
    _refuse_text(key, f"{path}, a key")


def _refuse_text(text: str, path: str) -> None:
    if "\0" in text:
        raise EncodingError(
            f"{path}: '\\x00' cannot be stored by PostgreSQL: remove the NUL character"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EncodingError(
            f"{path}: {text[error.start]!r} is half of a surrogate pair, not text: "
            "pass bytes, or decode it without errors='surrogateescape'"
        ) from None


def _quote(key: str) -> str:
    """Return the key as it stands in a path, in ASCII if it would not print."""
    return json.dumps(key[:40], ensure_ascii=not key.isprintable())


def _read_strictly(text: str, where: str) -> None:
    def refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
        if len({key for key, _ in pairs}) < len(pairs):
            raise DecodingError(f"{where}: a key stands twice in one object")

    def refuse_long(digits: str) -> None:
        # 20 digits and a sign; int() itself refuses beyond 4300
        if len(digits) > 21 or not -(2**63) <= int(digits) < 2**64:
            raise DecodingError(f"{where}: an integer beyond 64 bits: store it as a string")

    json.loads(text, object_pairs_hook=refuse_duplicates, parse_int=refuse_long)
