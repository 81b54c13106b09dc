"""A group and what follows it: `chord`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from pgtasks.chains import Workflow, chain
from pgtasks.errors import ConfigurationError
from pgtasks.groups import group
from pgtasks.node import (
    LINKS,
    Node,
    R,
    T,
    as_dict,
    cut,
    listed,
    merge_options,
    pass_on,
    read,
    read_options,
    several,
    with_call,
)
from pgtasks.signatures import Partial

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.result import AsyncResult

R1 = TypeVar("R1")
R2 = TypeVar("R2")


class chord(Workflow[R]):  # noqa: N801 (Celery's name, used like a function)
    """A group, and what runs with the list of its results: ``chord(a.s(n) for n in range(9))(b.s())``.

    Args:
        header: a group, or an iterable of what it is made of.
        body: what follows; it may come with the call.
        app: whose database.
        options: ``task_id``, ``link`` and ``link_error`` are for the body, ``countdown`` and ``eta`` for the
            members of the header, other options for all.
    """

    __slots__ = ("body", "header")
    kind = "chord"
    header: group[Any]
    body: Node[Any, R] | None

    @overload
    def __init__(
        self: chord[R2],
        header: Iterable[Node[Any, R1]],
        body: Node[list[R1], R2],
        *,
        app: App | None = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chord[Any],
        header: Iterable[Node[Any, Any]] | Node[Any, Any],
        body: None = None,
        *,
        app: App | None = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chord[R2],
        header: Node[Any, Any],
        body: Node[Any, R2],
        *,
        app: App | None = ...,
        **options: Any,
    ) -> None: ...
    def __init__(
        self, header: Any, body: Any = None, *, app: App | None = None, **options: Any
    ) -> None:
        self._app = app
        self.options = merge_options({}, options)
        self.header = header if isinstance(header, group) else group(header)
        if body is not None:
            (body,) = several([body], "the body of a chord")
        self.body = body

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, chord):
            return NotImplemented
        mine = (self.header, self.body, self.options)
        return mine == (other.header, other.body, other.options)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        members = self.header.shown_tasks()
        match self.body:
            case None:
                return f"<chord without body: {members}>"
            case Partial() as body:
                return f"%{body.shown_with(members)}"
            case chain(tasks=[Partial() as first, *rest]):
                return f"%({cut([first.shown_with(members), *map(repr, rest)], ' | ')})"
            case body:
                return f"chord({members}, {body!r})"

    @overload
    def __call__(self, body: None = None, **options: Any) -> AsyncResult[R]: ...
    @overload
    def __call__(self, body: Node[Any, T], **options: Any) -> AsyncResult[T]: ...
    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Enqueue it with this body, in one transaction; see `apply_async`."""
        call = self
        if body is not None:
            call = self.clone()
            (call.body,) = several([body], "the body of a chord")
        return call.apply_async(**options)

    def __or__(self, other: Node[R, T], /) -> chord[T]:
        """Run the other one with the result of the body: the result is a new chord."""
        if not isinstance(other, Node):
            return NotImplemented
        new = self.clone()
        if new.body is None:
            new.body = cast("Any", other)
        else:  # its options are not for what is added
            header, body = self.parts()
            new.header, new.body, new.options = header, cast("Any", body | other), {}
        return cast("chord[T]", new)

    def clone(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> chord[R]:
        """Return a copy: the arguments are for each member of the header, the options are its own."""
        new = cast("chord[R]", object.__new__(chord))
        new._app, new.options = self._app, merge_options(self.options, options)
        new.header = self.header.clone(args, kwargs)
        new.body = None if self.body is None else self.body.clone()
        return new

    @property
    def tasks(self) -> list[Node[Any, Any]]:
        """The members of the header."""
        return self.header.tasks

    def parts(self) -> tuple[group[Any], Node[Any, R]]:
        """Return its header and body; copies with its options passed on to those that they are for.

        ``link``, ``link_error`` and ``task_id`` are for the body, ``countdown`` and ``eta`` for the members of the
        header, other options for all.

        Raises:
            ConfigurationError: it has no body.
        """
        if self.body is None:
            raise ConfigurationError(
                f"a chord has a body, found none in {self!r}: write chord(header, body.s()) or "
                "chord(header)(body.s()), or a group if nothing follows"
            )
        if not self.options:
            return self.header, self.body
        header, body = self.header.clone(), self.body.clone()
        to: dict[str, Sequence[Node[Any, Any]]] = {"countdown": [header], "eta": [header]}
        to |= {option: [body] for option in (*LINKS, "task_id")}
        pass_on(self.options, to, [header, body])
        return header, body

    def set_immutable(self, immutable: bool) -> None:
        """Let the members of its header take no more arguments, or let them again."""
        self.header.set_immutable(immutable)

    # As data

    def to_dict(self) -> dict[str, Any]:
        """Return it as Celery writes it: JSON can carry it, if it can carry the arguments."""
        header = self.header.to_dict()
        return as_dict(
            self,
            {
                "kwargs": {},
                # Celery reads a list here, which has no place for the group's own options.
                "header": header if header["options"] else header["kwargs"]["tasks"],
                "body": None if self.body is None else self.body.to_dict(),
            },
        )

    @classmethod
    def _read(cls, d: Mapping[str, Any], app: App | None) -> chord[Any]:
        header, body = (d.get("kwargs") or {}).get("header"), (d.get("kwargs") or {}).get("body")
        if isinstance(header, Mapping):
            members = read(header, app)
        else:
            members = group((), app=app)
            members.tasks = [read(task, app) for task in listed(d, "header")]
        body = None if body is None else read(body, app)
        return with_call(chord(members, body, app=app, **read_options(d, app)), d)

    def _last(self) -> Node[Any, Any] | None:
        return self.body

    def _known_app(self) -> App | None:
        body = None if self.body is None else self.body._known_app()
        return self._app or self.header._known_app() or body

    def _connection(self) -> Any:
        return self.options.get("connection") or self.header._connection()
