"""Calls that run one after the other: `chain`; and what it has in common with a chord.

A chain keeps its steps flat: a chain in it is spliced in, a group of one is that one. A group in it that is
followed by something is a header, as if they stood in a chord.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from pgtasks.errors import ConfigurationError
from pgtasks.groups import ends_as_group, group
from pgtasks.node import (
    Node,
    R,
    T,
    as_dict,
    cut,
    first_app,
    listed,
    merge_options,
    pass_on,
    read,
    read_options,
    several,
    with_call,
)

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.result import AsyncResult

R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
R5 = TypeVar("R5")


class Workflow(Node[Any, R]):
    """What `chain` and `chord` have in common: both end in one result, that of their last step."""

    __slots__ = ()

    def apply(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        app: App | None = None,
        connection: Any = None,
    ) -> AsyncResult[R]:
        """Enqueue it all, in one transaction.

        Args:
            type: what kind of bundle its groups are, for people and for listeners.
            origin: where it comes from, for people; jobs that name none take it over.
            app: whose database; that of its first task, if not said.
            connection: write on this connection, in its transaction.
        """
        connection = connection or self._connection()
        result = (app or self.app).send_graph(
            self, (), {}, {}, type=type, origin=origin, connection=connection
        )
        return cast("AsyncResult[R]", result)

    async def aapply(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        app: App | None = None,
        connection: Any = None,
    ) -> AsyncResult[R]:
        """Enqueue it all, in one transaction; see `apply`."""
        connection = connection or self._connection()
        result = await (app or self.app).asend_graph(
            self, (), {}, {}, type=type, origin=origin, connection=connection
        )
        return cast("AsyncResult[R]", result)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        connection: Any = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Enqueue it all, in one transaction, with arguments for what runs first, and options added.

        ``link`` and ``task_id`` are for the last step, ``countdown`` and ``eta`` for what runs first, other options
        for all. The result is that of the last step.
        """
        connection = connection or self._connection()
        given = merge_options({}, options)
        origin = given.get("origin")
        result = self.app.send_graph(
            self, args, kwargs or {}, given, type=type, origin=origin, connection=connection
        )
        return cast("AsyncResult[R]", result)

    async def aapply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        connection: Any = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Enqueue it all, in one transaction, with arguments and options added; see `apply_async`."""
        connection = connection or self._connection()
        given = merge_options({}, options)
        origin = given.get("origin")
        result = await self.app.asend_graph(
            self, args, kwargs or {}, given, type=type, origin=origin, connection=connection
        )
        return cast("AsyncResult[R]", result)

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments for what runs first."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments for what runs first."""
        return await self.aapply_async(args, kwargs)

    def __invert__(self) -> R:
        """Enqueue it and wait for its result: ``~chain``."""
        return self.delay().get()


class chain(Workflow[R]):  # noqa: N801 (Celery's name, used like a function)
    """Calls that run one after the other, each with the result of the one before as its first argument.

    ``chain(a.s(1), b.s(), c.s())``, or one iterable of them, or ``a.s(1) | b.s() | c.s()``. It has 5,000 steps at most.
    """

    __slots__ = ("tasks",)
    kind = "chain"
    tasks: list[Node[Any, Any]]

    @overload
    def __init__(self: chain[Any], /, **options: Any) -> None: ...
    @overload
    def __init__(self: chain[R1], one: Node[Any, R1], /, **options: Any) -> None: ...
    @overload
    def __init__(
        self: chain[R2], one: Node[Any, R1], two: Node[R1, R2], /, **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R3],
        one: Node[Any, R1],
        two: Node[R1, R2],
        three: Node[R2, R3],
        /,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R4],
        one: Node[Any, R1],
        two: Node[R1, R2],
        three: Node[R2, R3],
        four: Node[R3, R4],
        /,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R5],
        one: Node[Any, R1],
        two: Node[R1, R2],
        three: Node[R2, R3],
        four: Node[R3, R4],
        five: Node[R4, R5],
        /,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chain[Any],
        one: Node[Any, R1],
        two: Node[R1, R2],
        three: Node[R2, R3],
        four: Node[R3, R4],
        five: Node[R4, R5],
        six: Node[R5, Any],
        /,
        *more: Node[Any, Any],
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(self: chain[Any], tasks: Iterable[Node[Any, Any]], /, **options: Any) -> None: ...
    def __init__(self, *tasks: Any, app: App | None = None, **options: Any) -> None:  # type: ignore[misc] # mypy: /
        self._app = app
        self.options = merge_options({}, options)
        self.tasks = []
        for task in several(tasks, "a chain"):
            self.tasks += steps_of(task)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, chain):
            return NotImplemented
        return self.tasks == other.tasks and self.options == other.options

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return cut([repr(task) for task in self.tasks], " | ") or "chain()"

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments for its first step."""
        return self.apply_async(args, kwargs)

    def __or__(self, other: Node[R, T], /) -> chain[T]:
        """Add steps to it: the result is a new chain."""
        if not isinstance(other, Node):
            return NotImplemented
        return chain(self, other, app=self._app)

    def clone(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> chain[R]:
        """Return a copy: the arguments are for its first step, the options are its own."""
        new = cast("chain[R]", object.__new__(chain))
        new._app, new.options = self._app, merge_options(self.options, options)
        new.tasks = [
            task.clone() if index else task.clone(args, kwargs)
            for index, task in enumerate(self.tasks)
        ]
        return new

    def set_immutable(self, immutable: bool) -> None:
        """Let its first step take no more arguments, or let it again."""
        for task in self.tasks[:1]:
            task.set_immutable(immutable)

    def unchain_tasks(self) -> list[Node[Any, Any]]:
        """Return its steps; copies with its options passed on to those that they are for.

        ``link`` and ``task_id`` are for the last step, ``countdown`` and ``eta`` for the first, ``link_error`` and
        other options for every step. But ``link_error`` is not for a group that is followed by a step: that step has
        its failure as a `ChordError`, so that the callback runs once.

        An empty group at the end is left out, if there is something before it: nothing follows it.

        Raises:
            ConfigurationError: it has no steps.
        """
        if not self.tasks:
            raise ConfigurationError(
                "a chain has at least one step, found none: write chain(a.s(1), b.s())"
            )
        return self._spread(len(self.tasks) - self._idle_at_end())

    def _spread(self, count: int) -> list[Node[Any, Any]]:
        steps = self.tasks[:count]
        if self.options:
            steps = [task.clone() for task in steps]
            first, last = steps[:1], steps[-1:]
            failing = [*(step for step in steps[:-1] if not ends_as_group(step)), *last]
            to = {
                "link": last,
                "task_id": last,
                "countdown": first,
                "eta": first,
                "link_error": failing,
            }
            pass_on(self.options, to, steps)
        return steps

    def _idle_at_end(self) -> int:
        idle = 0
        for task in reversed(self.tasks[1:]):
            if not isinstance(task, group) or task.tasks:
                break
            idle += 1
        return idle

    def to_dict(self) -> dict[str, Any]:
        """Return it as Celery writes it: JSON can carry it, if it can carry the arguments."""
        return as_dict(self, {"tasks": [task.to_dict() for task in self.tasks]})

    @classmethod
    def _read(cls, d: Mapping[str, Any], app: App | None) -> chain[Any]:
        tasks = [read(task, app) for task in listed(d, "tasks")]
        return with_call(chain(tasks, app=app, **read_options(d, app)), d)

    def _last(self) -> Node[Any, Any] | None:
        return self.tasks[-1 - self._idle_at_end()] if self.tasks else None

    def _known_app(self) -> App | None:
        return self._app or first_app(self.tasks)

    def _connection(self) -> Any:
        return (
            self.options.get("connection") or (self.tasks and self.tasks[0]._connection()) or None
        )


def steps_of(task: Node[Any, Any]) -> list[Node[Any, Any]]:
    """Return what a node adds to a chain: itself, the steps of a chain, the one member of a group."""
    while isinstance(task, group) and len(task.tasks) == 1:
        options, task = task.options, task.tasks[0]
        if options:
            task = task.clone()
            pass_on(options, {"task_id": []}, [task])
    return task._spread(len(task.tasks)) if isinstance(task, chain) else [task]
