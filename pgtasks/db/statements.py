"""SQL as data: what stands in schema/statements, by name, and one call of it.

A section of a file begins with ``-- name: claim_jobs``. Parameters are written ``%(name)s``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Row = tuple[Any, ...]
Rows = Sequence[Row]


def no_rows(rows: Rows) -> None:
    """Read the result of a statement that returns nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement(Generic[T_co]):
    """One statement to run: its name, its parameters, and how to read the rows that come back."""

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    read: Callable[[Rows], T_co]

    @property
    def sql(self) -> str:
        """The text, with ``%(name)s`` for parameters."""
        return sql_of(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Rows to stream into the database by a COPY statement, already in COPY's text format."""

    name: str
    # Text, since the connection knows its own encoding; the server takes a piece while the next is made.
    pieces: Iterable[str]

    @property
    def sql(self) -> str:
        """The COPY statement."""
        return sql_of(self.name)


Step = Statement[Any] | Copy
Steps = Generator[Step, Any, T]


class Repeatable(Generic[T]):
    """A generator of steps that can begin again; in another one, ``yield from`` it."""

    def __init__(self, begin: Callable[[], Steps[T]]) -> None:
        self._begin = begin

    def __iter__(self) -> Steps[T]:
        """Begin."""
        return self._begin()


def repeatable(function: Callable[P, Steps[T]]) -> Callable[P, Repeatable[T]]:
    """Let what this generator function makes begin again; nothing but its arguments must matter to it."""

    @wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Repeatable[T]:
        return Repeatable(lambda: function(*args, **kwargs))

    return make


def schema_folder() -> Path:
    """Return the folder with the SQL: in the installed package, else beside it in a checkout."""
    installed = Path(str(files("pgtasks"))) / "schema"
    return installed if installed.is_dir() else Path(str(files("pgtasks"))).parent / "schema"


def sql_of(name: str) -> str:
    """Return the text of the statement of that name; KeyError if there is none."""
    return library()[name]


@cache
def library() -> Mapping[str, str]:
    """Return every statement by name."""
    found: dict[str, str] = {}
    for path in sorted((schema_folder() / "statements").glob("*.sql")):
        for name, text in sections(path.read_text(encoding="utf-8")):
            if name in found:
                raise ValueError(f"two statements are named {name!r}: the second is in {path.name}")
            found[name] = text
    return found


def sections(text: str) -> list[tuple[str, str]]:
    """Split a file into (name, SQL without its leading comment lines)."""
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return [
        (name, re.sub(r"\A(--.*\n)+", "", body).strip())
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    ]


@cache
def positional(name: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a statement as the wire protocol wants it: ``$1`` for parameters, and their names.

    For the worker's connections, which speak the protocol without psycopg's cursors.
    """
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    text = re.sub(r"%\((\w+)\)s", number, sql_of(name))
    return text.encode(), tuple(names)
