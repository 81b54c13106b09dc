"""Calls put together: `chain`, one after the other; `group`, side by side; `chord`, a group and what follows.

Descriptions, like the signatures that they are made of: no I/O here.

A chain keeps its steps flat: a chain in it is spliced in, a group of one is that one. A group in it that is
followed by something is a header, as if they stood in a chord. ``group | task`` makes a chord, ``chord | task``
adds to its body, every other ``|`` makes a chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from pgtasks.errors import ConfigurationError
from pgtasks.options import BUILTIN, check_count
from pgtasks.signature import (
    LINKS,
    STARMAP,
    Node,
    Partial,
    R,
    Signature,
    T,
    cut,
    loop,
    merge_options,
    options_to_dict,
    read,
    read_options,
    signature,
)

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.group_result import GroupResult
    from pgtasks.result import AsyncResult
    from pgtasks.task import Task

__all__ = ["Node", "Partial", "Signature", "chain", "chord", "chunks", "group", "signature"]

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
        self.check()
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
        self.check()
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
        self.check()
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
        self.check()
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

    ``chain(a.s(1), b.s(), c.s())``, or one iterable of them, or ``a.s(1) | b.s() | c.s()``.
    """

    __slots__ = ("tasks",)
    kind = "chain"
    tasks: list[Node[Any, Any]]

    @overload
    def __init__(self: chain[Any], /, *, app: App | None = ..., **options: Any) -> None: ...
    @overload
    def __init__(
        self: chain[R1], one: Node[Any, R1], /, *, app: App | None = ..., **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R2],
        one: Node[Any, R1],
        two: Node[R1, R2],
        /,
        *,
        app: App | None = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chain[R3],
        one: Node[Any, R1],
        two: Node[R1, R2],
        three: Node[R2, R3],
        /,
        *,
        app: App | None = ...,
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
        *,
        app: App | None = ...,
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
        *,
        app: App | None = ...,
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
        app: App | None = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: chain[Any],
        tasks: Iterable[Node[Any, Any]],
        /,
        *,
        app: App | None = ...,
        **options: Any,
    ) -> None: ...
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

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

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
        other options for every step. An empty group at the end is left out, if there is something before it:
        nothing follows it.
        """
        return self._spread(len(self.tasks) - self._idle_at_end())

    def _spread(self, count: int) -> list[Node[Any, Any]]:
        steps = self.tasks[:count]
        if self.options:
            steps = [task.clone() for task in steps]
            first, last = steps[:1], steps[-1:]
            to = {"link": last, "task_id": last, "countdown": first, "eta": first}
            pass_on(self.options, to, steps)
        return steps

    def _idle_at_end(self) -> int:
        idle = 0
        for task in reversed(self.tasks[1:]):
            if not isinstance(task, group) or task.tasks:
                break
            idle += 1
        return idle

    def check(self) -> None:
        """Raise ConfigurationError if it, or something in it, has no steps or no body."""
        if not self.tasks:
            raise ConfigurationError(
                "a chain has at least one step, found none: write chain(a.s(1), b.s())"
            )
        for task in self.tasks:
            task.check()

    def to_dict(self) -> dict[str, Any]:
        """Return it as Celery writes it: JSON can carry it, if it can carry the arguments."""
        return as_dict(self, {"tasks": [task.to_dict() for task in self.tasks]})

    @classmethod
    def _read(cls, d: Mapping[str, Any], app: App | None) -> chain[Any]:
        tasks = [read(task, app) for task in listed(d, "tasks")]
        return with_call(chain(tasks, app=app, **read_options(d, app)), d)

    def _known_app(self) -> App | None:
        return self._app or first_app(self.tasks)

    def _connection(self) -> Any:
        return (
            self.options.get("connection") or (self.tasks and self.tasks[0]._connection()) or None
        )


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

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Node[Any, R]]:
        return iter(self.tasks)

    @property
    def signatures(self) -> Sequence[Node[Any, R]]:
        """Its members, under another name."""
        return self.tasks

    def __or__(self, other: Node[list[R], T], /) -> chord[T]:
        """Run the other one with the list of all results: the result is a chord."""
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

    def check(self) -> None:
        """Raise ConfigurationError if something in it has no steps or no body."""
        for task in self.tasks:
            if type(task) is not Signature:
                task.check()

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

        Args:
            type: what kind of bundle it is, for people and for listeners.
            origin: where it comes from, for people; members that name none take it over.
            app: whose database; needed for an empty group only.
            connection: write on this connection, in its transaction.
        """
        app = app or self.app
        connection = connection or self._connection()
        self.check()
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
        self.check()
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

    def __call__(self, body: Node[Any, T] | None = None, **options: Any) -> AsyncResult[T]:
        """Enqueue it with this body, in one transaction; see `apply_async`."""
        call = self
        if body is not None:
            call = self.clone()
            call.body = cast("Any", body)
        return cast("AsyncResult[T]", call.apply_async(**options))

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
            raise self._bodiless()
        if not self.options:
            return self.header, self.body
        header, body = self.header.clone(), self.body.clone()
        to: dict[str, Sequence[Node[Any, Any]]] = {"countdown": [header], "eta": [header]}
        to |= {option: [body] for option in (*LINKS, "task_id")}
        pass_on(self.options, to, [header, body])
        return header, body

    def _bodiless(self) -> ConfigurationError:
        return ConfigurationError(
            f"a chord has a body, found none in {self!r}: write chord(header, body.s()) or "
            "chord(header)(body.s()), or a group if nothing follows"
        )

    def set_immutable(self, immutable: bool) -> None:
        """Let the members of its header take no more arguments, or let them again."""
        self.header.set_immutable(immutable)

    def check(self) -> None:
        """Raise ConfigurationError if it has no body, or something in it has no steps or no body."""
        if self.body is None:
            raise self._bodiless()
        self.header.check()
        self.body.check()

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

    def _known_app(self) -> App | None:
        body = None if self.body is None else self.body._known_app()
        return self._app or self.header._known_app() or body

    def _connection(self) -> Any:
        return self.options.get("connection") or self.header._connection()


Group = group  # within `chunks`, the name is a method


class chunks(group[list[R]]):  # noqa: N801 (Celery's name, used like a function)
    """A group of jobs that each call a task for n elements, one after the other; made by `Task.chunks`.

    Args:
        task: the task.
        it: the arguments of each call, as tuples or lists.
        n: how many calls a job makes.
        options: as for ``apply_async``, for each job.
    """

    __slots__ = ()
    kind = "chunks"

    def __init__(
        self, task: Task[..., R], it: Iterable[Iterable[Any]], n: int, **options: Any
    ) -> None:
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
        from pgtasks.context import current_app

        kwargs = d.get("kwargs") or {}
        task = kwargs.get("task")
        name = task.get("task") if isinstance(task, Mapping) else task
        found = (app or current_app()).find_task(str(name))
        return chunks(found, listed(d, "it"), kwargs.get("n", 0), **read_options(d, app)).group()


# How many members of a group its repr shows.
SHOWN_MEMBERS = 5


def several(tasks: Sequence[Any], whole: str) -> list[Node[Any, Any]]:
    """Return nodes, given as themselves or in one iterable.

    Raises:
        ConfigurationError: one of them is no node.
    """
    if len(tasks) == 1 and not isinstance(tasks[0], Node | Mapping | str):
        if not isinstance(tasks[0], Iterable):
            raise refused(whole, tasks[0])
        tasks = list(tasks[0])
    found = []
    for task in tasks:
        if isinstance(task, Node):
            found.append(task)
        elif isinstance(task, Mapping):
            found.append(read(task))
        else:
            raise refused(whole, task)
    return found


def refused(whole: str, found: object) -> ConfigurationError:
    """Return the error that says what a group, chain or chord is made of."""
    return ConfigurationError(f"{whole} is made of signatures, found {found!r}: write task.s(…)")


def steps_of(task: Node[Any, Any]) -> list[Node[Any, Any]]:
    """Return what a node adds to a chain: itself, the steps of a chain, the one member of a group."""
    while isinstance(task, group) and len(task.tasks) == 1:
        options, task = task.options, task.tasks[0]
        if options:
            task = task.clone()
            pass_on(options, {"task_id": []}, [task])
    return task._spread(len(task.tasks)) if isinstance(task, chain) else [task]


def pass_on(
    options: Mapping[str, Any],
    to: Mapping[str, Sequence[Node[Any, Any]]],
    others: Sequence[Node[Any, Any]],
) -> None:
    """Add the options of a chain, group or chord to its parts: callbacks after their own, the rest over theirs.

    Args:
        options: what to add.
        to: which parts some options are for.
        others: which parts the other options are for.
    """
    for option, value in options.items():
        for part in to.get(option, others):
            if option in LINKS:
                part._append(option, [one.clone() for one in value])
            else:
                part.set(**{option: value})


def first_app(tasks: Iterable[Node[Any, Any]]) -> App | None:
    """Return the app of the first that has one."""
    return next((app for task in tasks if (app := task._known_app()) is not None), None)


def as_dict(node: Node[Any, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a chain, group or chord in Celery's form, with its parts as the keyword arguments of a task."""
    return {
        "task": BUILTIN + node.kind,
        "args": [],
        "kwargs": kwargs,
        "options": options_to_dict(node.options),
        "subtask_type": node.kind,
        "immutable": False,
    }


def listed(d: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the parts that a dict lists; ConfigurationError if it does not."""
    found = (d.get("kwargs") or {}).get(key)
    if not isinstance(found, list | tuple):
        raise ConfigurationError(
            f"{d['task']!r} is read from a dict with a list of its parts in kwargs[{key!r}], found {found!r}"
        )
    return found


N = TypeVar("N", bound=Node[Any, Any])


def with_call(node: N, d: Mapping[str, Any]) -> N:
    """Return a node with the arguments that Celery gave to the whole, and with its immutability."""
    if d.get("args"):
        node = cast("N", node.clone(d["args"]))
    if d.get("immutable"):
        node.set_immutable(True)
    return node
