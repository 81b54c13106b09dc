"""Calls that run side by side: `group`, and `chunks`, which is one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, cast, overload

from pgtasks.context import current_app
from pgtasks.node import (
    Node,
    R,
    T,
    as_dict,
    first_app,
    listed,
    merge_options,
    pass_on,
    read,
    read_options,
    several,
    with_call,
)
from pgtasks.options import check_count
from pgtasks.signatures import STARMAP, Partial, loop

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.chords import chord
    from pgtasks.group_result import GroupResult
    from pgtasks.task import Task

# How many members of a group its repr shows.
SHOWN_MEMBERS = 5


class group(Node[Any, list[R]], Generic[R]):  # noqa: N801 (Celery's name, used like a function)
    """Calls that run side by side and finish together, as one bundle.

    ``group(a.s(1), a.s(2))``, or one iterable of them.
    """

    __slots__ = ("tasks",)
    kind = "group"
    tasks: list[Node[Any, R]]

    @overload
    def __init__(
        self, tasks: Iterable[Node[Any, R]], /, *, app: App | None = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(self, *tasks: Node[Any, R], app: App | None = ..., **options: Any) -> None: ...
    def __init__(self, *tasks: Any, app: App | None = None, **options: Any) -> None:  # type: ignore[misc] # mypy: /
        self._app = app
        if len(tasks) == 1 and isinstance(tasks[0], group):  # a group of a group is that group
            self._app = app or tasks[0]._app
            options = {**tasks[0].options, **options}
            tasks = (tasks[0].tasks,)
        self.options = merge_options({}, options) if options else {}
        self.tasks = several(tasks, "a group")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, group):
            return NotImplemented
        return self.tasks == other.tasks and self.options == other.options

    __hash__ = None

    def __repr__(self) -> str:
        return f"group({self.shown_tasks()})"

    def shown_tasks(self) -> str:
        """Return what repr shows of its members."""
        texts = [repr(task) for task in self.tasks[:SHOWN_MEMBERS]]
        left_out = len(self.tasks) - len(texts)
        return f"[{', '.join([*texts, f'… {left_out} more'] if left_out else texts)}]"

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Node[Any, R]]:
        return iter(self.tasks)

    @property
    def signatures(self) -> Sequence[Node[Any, R]]:
        """Its members, under another name."""
        return self.tasks

    def __or__(self, other: Node[list[R], T], /) -> chord[T]:
        """Run the other one with the list of all results: the result is a chord."""
        from pgtasks.chords import chord

        if not isinstance(other, Node):
            return NotImplemented
        if isinstance(other, group) and not other.tasks:
            return cast("chord[T]", self)  # as in Celery: nothing follows
        return chord(self, other, app=self._app)

    def clone(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> group[R]:
        """Return a copy: the arguments are for each member, the options are its own."""
        new = cast("group[R]", object.__new__(group))
        new._app, new.options = self._app, merge_options(self.options, options)
        new.tasks = [task.clone(args, kwargs) for task in self.tasks]
        return new

    def set_immutable(self, immutable: bool) -> None:
        """Let its members take no more arguments, or let them again."""
        for task in self.tasks:
            task.set_immutable(immutable)

    def link(self, callback: Node[R, T]) -> Node[R, T]:  # type: ignore[override] # of each member
        """Run a signature with the result of each member that has succeeded; return that signature."""
        self._append("link", callback)
        return callback

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group[R]:
        """Let each member wait longer than the one before; return this group.

        Args:
            start: the first one's countdown, in seconds.
            stop: none waits longer; those that would wait as long as the last that does not.
            step: how much longer each one waits.
        """
        countdown, skewed = float(start), []
        for index, task in enumerate(self.tasks):
            if index and (not stop or countdown + step <= stop):
                countdown += step
            skewed.append(task.clone(countdown=countdown))
        self.tasks = skewed
        return self

    def unroll(self) -> list[Node[Any, Any]]:
        """Return its members, those of groups in it among them; copies with its options passed on, but task_id."""
        members: list[Node[Any, Any]] = []
        for task in self.tasks:
            members += task.unroll() if isinstance(task, group) else (task,)
        if not self.options:
            return members
        members = [task.clone() for task in members]
        pass_on(self.options, {"task_id": []}, members)
        return members

    # Enqueueing it

    def apply(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        app: App | None = None,
        connection: Any = None,
    ) -> GroupResult[R]:
        """Enqueue all members as one bundle, in one transaction.

        One that is unique, and whose key another job has, is no member: it is neither counted nor among the results.

        Args:
            type: what kind of bundle it is, for people and for listeners.
            origin: where it comes from, for people; members that name none take it over.
            app: whose database; needed for an empty group only.
            connection: write on this connection, in its transaction.
        """
        app = app or self.app
        connection = connection or self._connection()
        result = app.send_graph(self, (), {}, {}, type=type, origin=origin, connection=connection)
        return cast("GroupResult[R]", result)

    async def aapply(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        app: App | None = None,
        connection: Any = None,
    ) -> GroupResult[R]:
        """Enqueue all members as one bundle, in one transaction; see `apply`."""
        app = app or self.app
        connection = connection or self._connection()
        result = await app.asend_graph(
            self, (), {}, {}, type=type, origin=origin, connection=connection
        )
        return cast("GroupResult[R]", result)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        connection: Any = None,
        **options: Any,
    ) -> GroupResult[R]:
        """Enqueue all members with arguments and options added to each.

        ``task_id`` is the bundle's, ``link`` and ``link_error`` are for every member.
        """
        call = self.clone(args, kwargs, **options) if args or kwargs or options else self
        return call.apply(type=type, origin=call.options.get("origin"), connection=connection)

    async def aapply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        connection: Any = None,
        **options: Any,
    ) -> GroupResult[R]:
        """Enqueue all members with arguments and options added to each; see `apply_async`."""
        call = self.clone(args, kwargs, **options) if args or kwargs or options else self
        return await call.aapply(
            type=type, origin=call.options.get("origin"), connection=connection
        )

    def delay(self, *args: Any, **kwargs: Any) -> GroupResult[R]:
        """Enqueue all members with these arguments added to each."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: Any, **kwargs: Any) -> GroupResult[R]:
        """Enqueue all members with these arguments added to each."""
        return await self.aapply_async(args, kwargs)

    def __call__(self, *args: Any, **options: Any) -> GroupResult[R]:
        """Enqueue all members with these arguments and options added to each."""
        return self.apply_async(args, None, **options)

    def __invert__(self) -> list[R]:
        """Enqueue it and wait for the results: ``~group``."""
        return self.delay().get()

    # As data

    def to_dict(self) -> dict[str, Any]:
        """Return it as Celery writes it: JSON can carry it, if it can carry the arguments."""
        return as_dict(self, {"tasks": [task.to_dict() for task in self.tasks]})

    @classmethod
    def _read(cls, d: Mapping[str, Any], app: App | None) -> group[Any]:
        tasks = [read(task, app) for task in listed(d, "tasks")]
        new: group[Any] = group((), app=app, **read_options(d, app))
        new.tasks = tasks
        return with_call(new, d)

    def _known_app(self) -> App | None:
        return self._app or first_app(self.tasks)

    def _connection(self) -> Any:
        return (
            self.options.get("connection") or (self.tasks and self.tasks[0]._connection()) or None
        )


def ends_as_group(node: Node[Any, Any]) -> bool:
    """Whether what follows gets a list."""
    while (last := node._last()) is not None:
        node = last
    return isinstance(node, group)


Group = group  # within `chunks`, the name is a method


class chunks(group[list[R]]):  # noqa: N801 (Celery's name, used like a function)
    """A group of jobs that each call a task for n elements, one after the other; made by `Task.chunks`.

    Args:
        task: the task, or a signature of it.
        it: the arguments of each call, as tuples or lists.
        n: how many calls a job makes.
        options: as for ``apply_async``, for each job.
    """

    __slots__ = ()
    kind = "chunks"

    def __init__(
        self,
        task: Task[..., R] | Partial[Any, R],
        it: Iterable[Iterable[Any]],
        n: int,
        **options: Any,
    ) -> None:
        if isinstance(task, Partial):  # as in Celery; only its task counts
            task = task.app.find_task(task.task_name)
        check_count("n, how many calls a job makes,", n, most=1_000_000)
        calls = list(it)
        super().__init__(
            [loop(task, STARMAP, calls[at : at + n]) for at in range(0, len(calls), n)],
            app=task.app,
            **options,
        )

    def group(self) -> Group[list[R]]:
        """Return it as a group."""
        return Group(self)

    def to_dict(self) -> dict[str, Any]:
        """Return it as the group that it is."""
        return self.group().to_dict()

    @classmethod
    def _read(cls, d: Mapping[str, Any], app: App | None) -> Group[Any]:
        kwargs = d.get("kwargs") or {}
        task = kwargs.get("task")
        name = task.get("task") if isinstance(task, Mapping) else task
        found = (app or current_app()).find_task(str(name))
        return chunks(found, listed(d, "it"), kwargs.get("n", 0), **read_options(d, app)).group()
