"""What a task's function accepts: binding arguments at call time, rebuilding their types later.

JSON knows no datetime and no dataclass. Where a parameter's annotation names such a type, the
worker rebuilds it before the call; plain annotations (`int`, `str`, `dict`, none at all) are
neither converted nor checked, for people annotate loosely and Celery never looked.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import Parameter
from typing import Any
from uuid import UUID

import msgspec
import orjson

from pgtasks.codec import decode, encode
from pgtasks.errors import ConfigurationError, DecodingError, EncodingError

__all__ = ["Parameters"]

Rebuild = Callable[[Any], Any]
"""Decoded JSON in, the annotated type out; raises `_MisfitError`."""

_MESSAGE_OF_ENUM = re.compile(r"^Invalid enum value .*?(?= - at `|$)", re.DOTALL)

# Types that JSON has no form for; their subclasses too.
_REBUILT = (datetime, date, time, timedelta, UUID, Decimal, Enum, bytes, bytearray)
_REBUILT += (tuple, set, frozenset, msgspec.Struct)  # type: ignore[assignment]


# Classes of this package that were told to `read_as`, and how they are read.
_READ_AS: dict[type, Callable[[Any], Any]] = {}


def read_as(kind: type, read: Callable[[Any], object]) -> None:
    """Let parameters annotated with a class, or one derived from it, be made by ``read`` of decoded JSON.

    Args:
        kind: the class.
        read: raises ConfigurationError for what it cannot read.
    """
    _READ_AS[kind] = read


class _MisfitError(Exception):
    """A value does not fit its annotation; the message says how, without quoting the value."""


class Parameters:
    """The parameters of one task's function, looked at once.

    Args:
        function: the function behind the task.
        bound: whether its first parameter is the task itself, and so not the caller's to give.
    """

    def __init__(self, function: Callable[..., object], *, bound: bool = False) -> None:
        self._function = function
        self._bound = bound
        self._accept = _acceptor(function, bound)

    @functools.cached_property
    def names(self) -> frozenset[str] | None:
        """The names of what callers may give; None: anything, for it takes ``**kwargs`` or does not say."""
        parameters = self._given
        if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
            return None
        return frozenset(parameter.name for parameter in parameters)

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, unknown: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """Return the arguments of a call by the names of the parameters, defaults among them.

        What stands in ``**kwargs`` is found by its own name as well. Of a function that does not say what it
        takes: ``args``, ``kwargs`` and what is in these.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            unknown: what stands for arguments before these, which are not known yet.

        Raises:
            TypeError: the function could not be called so.
        """
        return self._arguments(*unknown, *args, **kwargs)

    @functools.cached_property
    def _arguments(self) -> Callable[..., dict[str, Any]]:
        return _namer(self._given)

    @functools.cached_property
    def _given(self) -> list[Parameter] | None:
        """The parameters that are the caller's to give; None: it does not say."""
        try:
            parameters = list(_signature(self._function).parameters.values())
        except (TypeError, ValueError):
            return None
        return parameters[1:] if _skips_first(parameters, self._bound) else parameters

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Raise TypeError if the function could not be called so, with the words of Python."""
        self._accept(*args, **kwargs)

    @functools.cached_property
    def converts(self) -> bool:
        """Whether `convert` has anything to do; the first look resolves the annotations."""
        plan = self._plan
        return bool(plan.by_position or plan.by_name or plan.other_args or plan.other_kwargs)

    @functools.cached_property
    def converts_result(self) -> bool:
        """Whether `convert_result` has anything to do."""
        return self._plan.result is not None

    def convert(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the decoded arguments with the annotated ones rebuilt.

        Raises:
            DecodingError: an argument does not fit its annotation.
        """
        plan = self._plan
        rebuilt_args, rebuilt_kwargs = list(args), dict(kwargs)
        for index, (name, rebuild) in plan.by_position.items():
            if index < len(rebuilt_args):
                rebuilt_args[index] = _rebuild(rebuild, rebuilt_args[index], name)
        if plan.other_args:
            for index in range(plan.positions, len(rebuilt_args)):
                rebuilt_args[index] = _rebuild(plan.other_args, rebuilt_args[index], f"*{index}")
        for name, value in kwargs.items():
            other = None if name in plan.names else plan.other_kwargs
            named = plan.by_name.get(name, other)
            if named is not None:
                rebuilt_kwargs[name] = _rebuild(named, value, name)
        return rebuilt_args, rebuilt_kwargs

    def convert_result(self, value: Any) -> Any:
        """Return the decoded result rebuilt as the annotated return type.

        Raises:
            DecodingError: it does not fit the annotation.
        """
        rebuild = self._plan.result
        if rebuild is None:
            return value
        try:
            return rebuild(value)
        except _MisfitError as misfit:
            raise DecodingError(f"result: {misfit}") from None

    @functools.cached_property
    def _plan(self) -> _Plan:
        """Resolve the annotations: at first use, for they may name what is defined later."""
        plan = _Plan()
        try:
            signature = _signature(self._function)
        except (TypeError, ValueError):
            return plan
        scope = _scope(self._function)
        plan.result = _rebuilder(signature.return_annotation, scope)
        parameters = list(signature.parameters.values())
        for parameter in parameters[1:] if _skips_first(parameters, self._bound) else parameters:
            plan.add(parameter, _rebuilder(parameter.annotation, scope))
        return plan


@dataclasses.dataclass(slots=True)
class _Plan:
    """Who rebuilds which argument."""

    by_position: dict[int, tuple[str, Rebuild]] = dataclasses.field(default_factory=dict)
    by_name: dict[str, Rebuild] = dataclasses.field(default_factory=dict)
    names: set[str] = dataclasses.field(default_factory=set)
    positions: int = 0
    other_args: Rebuild | None = None
    other_kwargs: Rebuild | None = None
    result: Rebuild | None = None

    def add(self, parameter: Parameter, rebuild: Rebuild | None) -> None:
        kind, name = parameter.kind, parameter.name
        if kind is Parameter.VAR_POSITIONAL:
            self.other_args = rebuild
        elif kind is Parameter.VAR_KEYWORD:
            self.other_kwargs = rebuild
        if kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
            if rebuild:
                self.by_position[self.positions] = (name, rebuild)
            self.positions += 1
        if kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            self.names.add(name)
            if rebuild:
                self.by_name[name] = rebuild


def _rebuild(rebuild: Rebuild, value: Any, name: str) -> Any:
    try:
        return rebuild(value)
    except _MisfitError as misfit:
        raise DecodingError(f"argument {name!r}: {misfit}") from None


# ---- binding ----


def _acceptor(function: Callable[..., object], bound: bool) -> Callable[..., object]:
    """Return an empty function of the same signature: calling it is the check.

    The interpreter binds in 0.1 µs what `inspect.Signature.bind` binds in 3, and the messages
    are Python's own.
    """
    try:
        parameters = list(_signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-ins have none: anything goes
        return lambda *args, **kwargs: None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if bound and not parameters:
        raise ConfigurationError(f"bind=True gives {name}() the task, but it takes nothing")
    if _skips_first(parameters, bound):
        del parameters[0]
    bare = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None)
        for p in parameters
    ]
    scope: dict[str, Any] = {}
    # Only parameter names get into the source, and `inspect` lets none but identifiers through.
    exec(f"def accept{inspect.Signature(bare)}: pass", scope)  # noqa: S102 (built from identifiers only)
    accept: types.FunctionType = scope["accept"]
    accept.__qualname__ = name  # it stands in the messages
    return accept


def unnamed(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call of which no parameters are known; see `Parameters.arguments`."""
    return {**kwargs, "args": args, "kwargs": kwargs}


def _namer(parameters: list[Parameter] | None) -> Callable[..., dict[str, Any]]:
    """Return a function of the same parameters that returns its arguments by name.

    As in `_acceptor`, the interpreter binds; here with the true defaults, which are set afterwards.
    """
    if parameters is None:
        return unnamed
    bare = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None)
        for p in parameters
    ]
    others = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    named = ", ".join(f"{p.name!r}: {p.name}" for p in parameters)
    body = f"{{{f'**{others[0]}, ' if others else ''}{named}}}"
    scope: dict[str, Any] = {}
    exec(f"def name{inspect.Signature(bare)}: return {body}", scope)  # noqa: S102 (identifiers only)
    function: types.FunctionType = scope["name"]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    function.__defaults__ = tuple(d for name, d in defaults.items() if name not in keywords)
    function.__kwdefaults__ = {name: d for name, d in defaults.items() if name in keywords}
    return function


def _skips_first(parameters: list[Parameter], bound: bool) -> bool:
    return bound and bool(parameters) and parameters[0].kind is not Parameter.VAR_POSITIONAL


def _signature(function: Callable[..., object]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        # Evaluated annotations would raise NameError for what only a type checker imports.
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def _scope(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the globals in which the function's string annotations have their meaning."""
    while True:
        function = inspect.unwrap(function)
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__globals__"):
            return function.__globals__
        elif inspect.isfunction(type(function).__call__):  # an instance with __call__
            function = type(function).__call__
        else:
            return {}


# ---- from an annotation to what rebuilds it ----


def _rebuilder(annotation: Any, scope: dict[str, Any]) -> Rebuild | None:
    if annotation is Parameter.empty:
        return None
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        hint = typing.get_type_hints(holder, scope, include_extras=True)["it"]
        return _build(hint) if _needs_rebuilding(hint, ()) else None
    except (NameError, AttributeError, TypeError, SyntaxError):
        return None  # it names what cannot be found at run time, or is no type


def _needs_rebuilding(hint: Any, seen: tuple[Any, ...]) -> bool:
    """Say whether decoded JSON is not yet what the annotation promises."""
    if hint in seen:
        return False
    seen = (*seen, hint)
    origin = typing.get_origin(hint)
    if origin is typing.Literal or origin is type:
        return False
    if origin is typing.Annotated:
        return _needs_rebuilding(typing.get_args(hint)[0], seen)
    if hasattr(hint, "__supertype__"):  # NewType
        return _needs_rebuilding(hint.__supertype__, seen)
    if type(hint).__name__ == "TypeAliasType":
        return _needs_rebuilding(hint.__value__, seen)
    kind = origin or hint
    if typing.is_typeddict(kind):
        fields = typing.get_type_hints(kind, include_extras=True).values()
        return any(_needs_rebuilding(field, seen) for field in fields)
    if isinstance(kind, type) and _is_rebuilt(kind):
        return True
    if origin is not None and origin is not Callable:
        return any(_needs_rebuilding(part, seen) for part in typing.get_args(hint))
    return False


def _is_rebuilt(kind: type) -> bool:
    return (
        issubclass(kind, _REBUILT)
        or dataclasses.is_dataclass(kind)
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "model_validate_json")
        or issubclass(kind, tuple(_READ_AS))
    )


def _build(hint: Any) -> Rebuild:
    """Return what rebuilds the annotation: msgspec, or piecewise where msgspec knows no way."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return functools.partial(_member, hint)
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, tuple(_READ_AS)):
        return functools.partial(_read_own, kind)
    try:
        decoder = msgspec.json.Decoder(hint, dec_hook=_rebuild_foreign)
    except TypeError as error:
        return _build_piecewise(hint, str(error))
    return functools.partial(_read, decoder)


def _build_piecewise(hint: Any, reason: str) -> Rebuild:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _build(parts[0])
    if origin is typing.Union or origin is types.UnionType:
        return _build_union(parts)
    if origin is list:
        each = _build(parts[0])
        return lambda value: [each(item) for item in _expect(list, value)]
    if origin is dict:
        each = _build(parts[1])
        return lambda value: {key: each(item) for key, item in _expect(dict, value).items()}

    def refuse(value: Any) -> Any:
        raise _MisfitError(f"its annotation cannot be rebuilt: {reason}")

    return refuse


def _read(decoder: msgspec.json.Decoder[Any], value: Any) -> Any:
    # A None is left to the function, as in a plain call: `when: datetime = None` is common.
    if value is None:
        return None
    try:
        # A ready-made decoder and the detour over text cost 0.3 µs, `msgspec.convert` 2 µs: it
        # analyses a union or list annotation at each call.
        return decoder.decode(orjson.dumps(value))
    except msgspec.DecodeError as error:
        reason = _MESSAGE_OF_ENUM.sub("not a value of the enum", str(error))
    raise _MisfitError(reason[:1].lower() + reason[1:])


def _read_own(kind: type, value: Any) -> Any:
    """Return what was told to `read_as` this class; None as it is."""
    if value is None:
        return None
    read = next(read for known, read in _READ_AS.items() if issubclass(kind, known))
    try:
        found = read(value)
    except ConfigurationError as error:
        raise _MisfitError(str(error)) from None
    if not isinstance(found, kind):
        raise _MisfitError(f"expected {kind.__name__}, got {type(found).__name__}")
    return found


def _rebuild_foreign(kind: type, value: Any) -> Any:
    """Rebuild what msgspec does not know: pydantic models, and our own; msgspec adds the path to errors."""
    own = typing.get_origin(kind) or kind
    if issubclass(own, tuple(_READ_AS)):
        try:
            return _read_own(own, value)
        except _MisfitError as misfit:
            raise ValueError(str(misfit)) from None
    if not hasattr(kind, "model_validate_json"):
        if isinstance(value, kind):
            return value
        raise TypeError(f"{kind.__name__} cannot be rebuilt from JSON")
    try:
        # As JSON, not as Python values: a strict model takes a datetime from JSON text only.
        return kind.model_validate_json(orjson.dumps(value))
    except ValueError as error:
        if not hasattr(error, "errors"):
            raise
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    raise ValueError(f"{kind.__name__} {place}: {first['msg']}".replace(" :", ":"))


def _member(kind: type[Enum], value: Any) -> Any:
    """Return the member whose value reads as this JSON, also where it is a tuple or a Decimal."""
    try:
        return kind(value)
    except ValueError:
        pass
    for member in kind:
        if decode(encode(member)) == value:
            return member
    if value is None:
        return None
    raise _MisfitError(f"not a value of {kind.__name__}")


def _build_union(members: tuple[Any, ...]) -> Rebuild:
    """Return what finds the member of a union that msgspec cannot tell apart.

    The first that would be written as exactly this JSON wins. If none would, a plain member takes
    the value as it is, else the first that can be made of it. Text that could be base64 stays
    text where the union has `str`: guessing wrong would garble it.
    """
    plain = [member for member in members if not _needs_rebuilding(member, ())]
    rebuilds = [
        _build(member)
        for member in members
        if member not in plain and not (str in plain and member in (bytes, bytearray))
    ]

    def rebuild(value: Any) -> Any:
        if value is None or (type(value) in (bool, int, float) and type(value) in plain):
            return value
        fits, misfits = [], []
        for attempt in rebuilds:
            try:
                candidate = attempt(value)
            except _MisfitError as misfit:
                misfits.append(str(misfit))
                continue
            if _reads_as(candidate, value):
                return candidate
            fits.append(candidate)
        if any(member is not types.NoneType for member in plain):
            return value
        if fits:
            return fits[0]
        raise _MisfitError("; ".join(misfits))

    return rebuild


def _reads_as(candidate: object, value: object) -> bool:
    try:
        return bool(decode(encode(candidate)) == value)
    except EncodingError:
        return False


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise _MisfitError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value
