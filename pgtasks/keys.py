"""Keys over the arguments of a call: what makes two jobs the same, or share a limit, a rate, a turn.

A key is said as ``True`` (all arguments), as a function that declares the parameters of the task which it
needs, or as a template over them: ``"{customer_id}"``. It is computed by the caller, when the job is made,
and compared as text: 7 and "7" are one key.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from math import isfinite
from string import Formatter
from typing import Any
from uuid import UUID

import orjson

from pgtasks import codec
from pgtasks.errors import ConfigurationError, EncodingError

__all__ = ["LATER", "MAX_KEY", "Key", "check_key", "make_key"]

Key = bool | str | Callable[..., object]
"""``True``, a template, or a function of some of the task's parameters, called with them by name."""

MAX_KEY = 200
"""Characters of a key; the schema has the same limit."""

_Maker = Callable[[Mapping[str, Any]], object]
_TEXTS = (str, int, UUID, Decimal, date, time, timedelta)


class _Later:
    """The type of `LATER`."""

    def __repr__(self) -> str:
        return "an argument that another job will give"


LATER = _Later()
"""Stands for an argument that is not known before the job runs, such as the first of a chain's next step."""


def make_key(
    task_name: str, key: Key, bound_arguments: Mapping[str, Any], *, option: str = "key"
) -> str:
    """Return the key of a call, from 1 to `MAX_KEY` characters.

    Args:
        task_name: whose call it is, for messages.
        key: ``True``: a digest of all arguments; a template; a function.
        bound_arguments: by the names of the task's parameters, defaults among them; see
            `pgtasks.parameters.Parameters.arguments`.
        option: what said the key, for messages: "unique", "fair_by".

    Raises:
        ConfigurationError: the function raises, or returns what cannot be a key; an argument is unknown, or
            known only when the job runs.
    """
    what = f"task {task_name!r}: {option}"
    if key is True:
        return _digest(what, bound_arguments)
    if isinstance(key, str):
        return _of_template(what, key, bound_arguments)
    if not callable(key):
        raise _no_key(what, key)
    names, takes_all = _declared(key)
    given = _pick(what, names, bound_arguments)
    if takes_all:
        given = {**_known(bound_arguments), **given}
    try:
        value = key(**given)
    except Exception as error:
        raise ConfigurationError(
            f"{what}: its key function raised {type(error).__name__}: {error}"
        ) from error
    return _as_text(f"{what}: its key function", value)


def check_key(
    task_name: str, key: object, names: Collection[str] | None, *, option: str = "key"
) -> None:
    """Raise ConfigurationError for what is no key over the parameters of a task.

    Args:
        task_name: whose.
        key: what was said.
        names: the names of its parameters; None: it takes any.
        option: what said the key.
    """
    what = f"task {task_name!r}: {option}"
    if key is True:
        return
    if isinstance(key, str):
        wanted = [(name, True) for name in _fields_of(what, key)]
    elif callable(key):
        wanted = list(_parameters_of(what, key))
    else:
        raise _no_key(what, key)
    for name, required in wanted:
        if required and names is not None and name not in names:
            raise _unknown(what, name, names)


# ---- all arguments ----


def _digest(what: str, arguments: Mapping[str, Any]) -> str:
    for name, value in arguments.items():
        if value is LATER:
            raise _too_early(what, name)
    try:
        text = codec.encode(dict(arguments), "arguments")
    except EncodingError as error:
        raise ConfigurationError(f"{what} takes all arguments into the key, but {error}") from None
    if "{" in text[1:]:  # only then may something within have another order
        text = orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS).decode()
    # Not a secret's hash, and no secret either: arguments are for few eyes, keys for many.
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# ---- a template ----


@lru_cache(maxsize=256)
def _parse(template: str) -> tuple[tuple[str, str | None, str | None, str | None], ...]:
    return tuple(Formatter().parse(template))


def _fields_of(what: str, template: str) -> list[str]:
    """Return the names of the parameters that a template names."""
    try:
        fields = [field for _, field, _, _ in _parse(template) if field is not None]
    except ValueError as error:
        raise ConfigurationError(
            f"{what} is no template: {error}, found {template!r}; write the names of parameters in braces, "
            'as in "{customer_id}"'
        ) from None
    names = [field.split(".")[0].split("[")[0] for field in fields]
    if not names or not all(name.isidentifier() for name in names):
        raise ConfigurationError(
            f"{what} is a template that names no parameter, found {template!r}: write the names of "
            'parameters in braces, as in "{customer_id}"'
        )
    return names


def _of_template(what: str, template: str, arguments: Mapping[str, Any]) -> str:
    _pick(what, tuple((name, True) for name in _fields_of(what, template)), arguments)
    formatter, parts = Formatter(), []
    for literal, field, how, conversion in _parse(template):
        parts.append(literal)
        if field is None:
            continue
        try:
            value, _ = formatter.get_field(field, (), arguments)
            if how or conversion:
                value = formatter.format_field(
                    formatter.convert_field(value, conversion), how or ""
                )
        except Exception as error:
            raise ConfigurationError(
                f"{what}: {{{field}}} of its template raised {type(error).__name__}: {error}"
            ) from error
        parts.append(_plain(f"{what}: {{{field}}} of its template", value))
    return _checked(f"{what}: its template", "".join(parts))


# ---- a function ----


def _parameters_of(what: str, key: Callable[..., object]) -> Iterator[tuple[str, bool]]:
    """Yield each parameter that a key function declares, and whether it must be given."""
    if inspect.iscoroutinefunction(key):
        raise ConfigurationError(
            f"{what}: a key function is called, not awaited: write def, not async def"
        )
    try:
        parameters = inspect.signature(key).parameters.values()
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"{what}: {key!r} does not say what it takes: write lambda name: … around it"
        ) from None
    for one in parameters:
        if one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL):
            raise ConfigurationError(
                f"{what}: a key function is called with arguments by name, but {one} takes them by position"
            )
        if one.kind is not one.VAR_KEYWORD:
            yield one.name, one.default is one.empty


def _declared(key: Callable[..., object]) -> tuple[tuple[tuple[str, bool], ...], bool]:
    """Return a key function's parameters, each with whether it must be given, and whether it takes all."""
    try:
        return _declared_once(key)
    except TypeError:  # it has no hash
        return _declared_once.__wrapped__(key)


@lru_cache(maxsize=256)
def _declared_once(key: Callable[..., object]) -> tuple[tuple[tuple[str, bool], ...], bool]:
    names = tuple(_parameters_of("key", key))
    kinds = [one.kind for one in inspect.signature(key).parameters.values()]
    return names, inspect.Parameter.VAR_KEYWORD in kinds


def _pick(
    what: str, names: tuple[tuple[str, bool], ...], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    picked = {}
    for name, required in names:
        if name in arguments:
            picked[name] = arguments[name]
            if picked[name] is LATER:
                raise _too_early(what, name)
        elif required:
            raise _unknown(what, name, arguments)
    return picked


def _known(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not LATER}


# ---- what may be a key ----


def _as_text(what: str, value: object) -> str:
    if type(value) is int:  # most are this, or text
        return str(value)
    if isinstance(value, (list, tuple)):
        try:
            return _checked(what, codec.encode(value, "key"))
        except EncodingError as error:
            raise ConfigurationError(f"{what} returned what cannot be a key: {error}") from None
    return _checked(what, _plain(what, value))


def _plain(what: str, value: object) -> str:
    """Return a single value as text, ConfigurationError if it has no lasting one."""
    if type(value) is str:
        return value
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float) and isfinite(value):
        return repr(float(value))
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, _TEXTS) and not (isinstance(value, Decimal) and not value.is_finite()):
        return str(value)
    if inspect.iscoroutine(value):
        value.close()
    raise ConfigurationError(
        f"{what} gave {_shown(value)}, which cannot be a key: expected a text, a number, a UUID, a date, "
        "or a list of these"
    )


def _checked(what: str, text: str) -> str:
    if not 0 < len(text) <= MAX_KEY:
        raise ConfigurationError(
            f"{what} gave {len(text)} characters, expected 1 to {MAX_KEY}: "
            + ("take an id, or a digest of it" if text else "an empty text cannot be a key")
        )
    if "\0" in text or not text.isascii():
        try:
            codec.encode(text, "key")
        except EncodingError as error:
            raise ConfigurationError(f"{what} gave what cannot be a key: {error}") from None
    return text


def _shown(value: object) -> str:
    small = value is None or isinstance(value, float | Decimal)
    return f"{value!r:.80}" if small else type(value).__name__


def _no_key(what: str, key: object) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is True, a function of the task's parameters, or a template such as "
        f'"{{customer_id}}", found {key!r:.120}'
    )


def _unknown(what: str, name: str, names: Collection[str]) -> ConfigurationError:
    known = ", ".join(sorted(names)) or "none"
    return ConfigurationError(
        f"{what} takes {name!r} into its key, but the task has no such parameter: found {known}"
    )


def _too_early(what: str, name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} takes {name!r} into its key, but here another job gives that argument when it ends: "
        "make the key of other arguments, or turn it off for this call"
    )
