"""One call that is described and not made yet: `Signature`, and `signature`, which makes it of a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

from pgtasks.errors import ConfigurationError
from pgtasks.node import (
    KINDS,
    A,
    Node,
    R,
    T,
    cut,
    merge_options,
    options_to_dict,
    read,
    read_options,
    shown,
)
from pgtasks.options import BUILTIN, check_task_name

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.chains import chain
    from pgtasks.eager import EagerResult
    from pgtasks.job import NewJob
    from pgtasks.result import AsyncResult
    from pgtasks.task import Task

MAP, STARMAP, ACCUMULATE = f"{BUILTIN}map", f"{BUILTIN}starmap", f"{BUILTIN}accumulate"


class Partial(Node[A, R]):
    """A signature whose first argument is not given yet: the result of what comes before it will be.

    For type checkers: ``add.s(2)`` of ``add(x: int, y: int)`` is a ``Partial[int, int]``. At run time
    every signature is a `Signature`.
    """

    __slots__ = ("_task", "args", "immutable", "kwargs", "task_name")

    _task: Task[..., Any] | None
    task_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    immutable: bool

    @property
    def task(self) -> Task[..., R]:
        """The task; for a name that is not registered here, what writes its jobs by that name."""
        if self._task is not None:
            return self._task
        app = self.app
        known = app.known_task(self.task_name)
        return known or cast("Task[..., R]", NamedTask(self.task_name, app))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partial):
            return NotImplemented
        return (
            self.task_name == other.task_name
            and self.args == other.args
            and self.kwargs == other.kwargs
            and self.options == other.options
            and self.immutable == other.immutable
        )

    __hash__ = None

    def __repr__(self) -> str:
        if self.task_name in (MAP, STARMAP):
            star = "*" if self.task_name == STARMAP else ""
            inner, it = self.kwargs.get("task"), self.kwargs.get("it")
            return f"[{inner}({star}x) for x in {shown(it)}]"
        return self.shown_with()

    def shown_with(self, *first: str) -> str:
        """Return what repr shows, with these texts as the first arguments."""
        given = [
            *first,
            *map(shown, self.args),
            *(f"{name}={shown(value)}" for name, value in self.kwargs.items()),
        ]
        return f"{self.task_name}({cut(given, ', ')})"

    def _known_app(self) -> App | None:
        return self._app or (None if self._task is None else self._task.app)

    def _connection(self) -> Any:
        return self.options.get("connection") or (self._task and self._task.connection)

    def clone(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R]:
        """Return a copy with these arguments before its own, and these keywords and options added.

        An immutable one takes the options only.
        """
        new: Signature[R] = Signature.__new__(Signature)
        new._app, new._task, new.task_name = self._app, self._task, self.task_name
        new.immutable = self.immutable
        new.options = merge_options(self.options, options)
        if self.immutable:
            new.args, new.kwargs = self.args, {**self.kwargs}
        else:
            new.args = (*args, *self.args) if args else self.args
            new.kwargs = {**self.kwargs, **(kwargs or {})}
        return new

    def set_immutable(self, immutable: bool) -> None:
        """Let it take no more arguments, or let it again."""
        self.immutable = immutable

    def __or__(self, other: Node[R, T], /) -> chain[T]:
        """Chain them: the other one runs with the result of this one."""
        from pgtasks.chains import chain

        if not isinstance(other, Node):
            return NotImplemented
        return chain(self, other)

    # Running it

    def __call__(self, first: A, /, *args: Any, **kwargs: Any) -> R:
        """Run the function here and now, without a job."""
        call = self.clone((first, *args), kwargs)
        return call.task(*call.args, **call.kwargs)

    def delay(self, first: A, /, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments before its own."""
        return self.apply_async((first, *args), kwargs)

    async def adelay(self, first: A, /, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments before its own."""
        return await self.aapply_async((first, *args), kwargs)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue it, with arguments and options added; see `Task.apply_async`."""
        call = self.clone(args, kwargs, **options)
        if not call.has_callbacks:
            return call.task.apply_async(call.args, call.kwargs, **call.options)
        result = call.app.send_graph(call, (), {}, {}, connection=call._connection())
        return cast("AsyncResult[R]", result)

    async def aapply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue it, with arguments and options added; see `Task.apply_async`."""
        call = self.clone(args, kwargs, **options)
        if not call.has_callbacks:
            return await call.task.aapply_async(call.args, call.kwargs, **call.options)
        result = await call.app.asend_graph(call, (), {}, {}, connection=call._connection())
        return cast("AsyncResult[R]", result)

    def apply(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> EagerResult[R]:
        """Run it here and now as a worker would, and what is linked to it, without a database."""
        call = self.clone(args, kwargs, **options)
        if not call.has_callbacks:
            return call.task.apply(call.args, call.kwargs, **call.options)
        throw = call.options.pop("throw", False)
        app = call.app
        with app.eager():
            result = app.send_graph(call, (), {}, {})
        if throw:
            result.get()
        return cast("EagerResult[R]", result)

    def new_job(self) -> NewJob:
        """Build the job that the call makes.

        Raises:
            ConfigurationError: something is linked to it, and would be lost.
        """
        options = self.options
        if options:
            if self.has_callbacks:
                return super().new_job()
            options = {name: value for name, value in options.items() if name != "connection"}
        return (self._task or self.task).new_job(self.args, self.kwargs, options)

    # As data

    def to_dict(self) -> dict[str, Any]:
        """Return it as Celery writes it: JSON can carry it, if it can carry the arguments."""
        return {
            "task": self.task_name,
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "options": options_to_dict(self.options),
            "subtask_type": None,
            "immutable": self.immutable,
        }


class Signature(Partial[Any, R]):
    """A call that is described and not made yet.

    Args:
        task: the task, or its name.
        args: positional arguments. Those given at the call go before them.
        kwargs: keyword arguments. Those given at the call win.
        options: as for ``apply_async``.
        immutable: take no arguments at the call.
        app: whose task that is, for a name; the current app's, if not said.
    """

    __slots__ = ()

    def __init__(
        self,
        task: Task[..., R] | NamedTask | str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        immutable: bool = False,
        *,
        app: App | None = None,
    ) -> None:
        self._app = app
        try:  # of a task, first: a group is made of 100,000 of these
            self.task_name = task.options.name  # type: ignore[union-attr]
            self._task = cast("Task[..., R]", task)
        except AttributeError:
            self._task = None
            if isinstance(task, NamedTask):
                self._app, self.task_name = app or task.app, task.name
            elif isinstance(task, str):
                check_task_name(task)
                self.task_name = task
            else:
                raise ConfigurationError(
                    f"a signature is made of a task or its name, found {task!r}: write task.s(…)"
                ) from None
        self.args = tuple(args)
        self.kwargs = {} if kwargs is None else kwargs if type(kwargs) is dict else dict(kwargs)
        self.options = merge_options({}, options) if options else {}
        self.immutable = immutable

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Run the function here and now, without a job."""
        call = self.clone(args, kwargs)
        return call.task(*call.args, **call.kwargs)

    def __invert__(self) -> R:
        """Enqueue it and wait for its result: ``~sig``."""
        return self.delay().get()

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments before its own."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Enqueue it, with these arguments before its own."""
        return await self.aapply_async(args, kwargs)


class NamedTask:
    """Stands for a task that is not registered here: its jobs are written by its name."""

    connection: Any = None

    def __init__(self, name: str, app: App) -> None:
        self.name = name
        self.app = app

    def __repr__(self) -> str:
        return f"<task {self.name}, not registered in {self.app!r}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise UnknownTaskError, unless its module is found and loaded only now."""
        return self.app.find_task(self.name)(*args, **kwargs)

    def apply(self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> Any:
        """Raise UnknownTaskError, unless its module is found and loaded only now."""
        return self.app.find_task(self.name).apply(args, kwargs, **options)

    def apply_async(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any
    ) -> AsyncResult[Any]:
        """Write a job by name."""
        return self.app.send_task(self.name, args, kwargs, **options)

    async def aapply_async(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any
    ) -> AsyncResult[Any]:
        """Write a job by name."""
        return await self.app.asend_task(self.name, args, kwargs, **options)

    def new_job(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        said: Mapping[str, Any] | None = None,
        *,
        given: Sequence[int] = (),
    ) -> NewJob:
        """Build the job for a call; its arguments are bound by the worker that knows the task."""
        return self.app._named_job(self.name, args, kwargs, said or {})


@overload
def signature(varies: Node[Any, R], *, app: App | None = None) -> Node[Any, R]: ...
@overload
def signature(varies: Mapping[str, Any], *, app: App | None = None) -> Node[Any, Any]: ...
@overload
def signature(
    varies: Task[..., R],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    app: App | None = None,
    immutable: bool = False,
    **options: Any,
) -> Signature[R]: ...
@overload
def signature(
    varies: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    app: App | None = None,
    immutable: bool = False,
    **options: Any,
) -> Signature[Any]: ...
def signature(
    varies: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    app: App | None = None,
    immutable: bool = False,
    **options: Any,
) -> Any:
    """Describe a call of a task, which need not be registered here: ``signature("shop.mail", ("ann",))``.

    Args:
        varies: a task or its name; or a signature, which is copied; or what its ``to_dict()`` gave.
        args: positional arguments. Those given at the call go before them.
        kwargs: keyword arguments. Those given at the call win.
        app: whose task that is, for a name; the current app's, if not said.
        immutable: take no arguments at the call.
        options: as for ``apply_async``.
    """
    if isinstance(varies, Node):
        return varies.clone()
    if isinstance(varies, Mapping):
        return read(varies, app)
    said = {**(options.pop("options", None) or {}), **options}  # Celery takes them in one, too
    return Signature(varies, args, kwargs, said, immutable, app=app)


def loop(task: Task[..., R], name: str, it: Iterable[Any]) -> Signature[list[R]]:
    """Return the signature of the one job that calls a task for every element; see `pgtasks.builtin_tasks`."""
    if task.options.raw:
        raise ConfigurationError(
            f"task {task.name!r} is raw, it receives its job: found arguments for it, by map or starmap"
        )
    items = list(it) if name == MAP else [list(item) for item in it]
    for item in items:
        task.parameters.bind((item,) if name == MAP else item, {})
    options: dict[str, Any] = {
        # It goes where the task goes, not where the built-in one does.
        "queue": task.app.queue_of(task),
        "priority": task.app.priority_of(task),
    }
    if task.connection is not None:
        options["connection"] = task.connection
    kwargs = {"task": task.name, "it": items}
    return Signature(name, (), kwargs, options, immutable=True, app=task.app)


def read_signature(d: Mapping[str, Any], app: App | None) -> Signature[Any]:
    """Build the signature that a dict describes."""
    name, kwargs = d["task"], dict(d.get("kwargs") or {})
    if name.startswith("celery.") and name.removeprefix("celery.") in (
        "map",
        "starmap",
        "accumulate",
    ):
        name = BUILTIN + name.removeprefix("celery.")
        if isinstance(kwargs.get("task"), Mapping):
            kwargs["task"] = kwargs["task"].get("task")
    return Signature(
        name,
        d.get("args") or (),
        kwargs,
        read_options(d, app),
        immutable=bool(d.get("immutable")),
        app=app,
    )


KINDS[""] = read_signature
