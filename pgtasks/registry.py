"""The registry of an app: its tasks, where they go, and what is called around them."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from pgtasks.errors import ConfigurationError, TaskExistsError, UnknownTaskError
from pgtasks.failure import OWN_ERRORS, builtin_error
from pgtasks.job import Bundle, Job, NewJob
from pgtasks.options import BUILTIN, Queue, TaskOptions, check_queue_name, task_options
from pgtasks.routing import NOWHERE, Destination, Router, TaskRoutes
from pgtasks.signatures import signature
from pgtasks.task import CoroutineTask, SharedTask, Task, shared_tasks

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.node import Node
    from pgtasks.signatures import Signature

P = ParamSpec("P")
R = TypeVar("R")

JobListener = Callable[[Job, bool], object]
BundleListener = Callable[[Bundle], object]
Route = Callable[[str], str | None] | Mapping[str, str]


class TaskDecorator(Protocol):
    """The type of ``app.task(…)`` with options: keeps the function's parameters and result."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BoundTaskDecorator(Protocol):
    """The type of ``app.task(bind=True, …)``: the first parameter is not the caller's to give."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


class Registry:
    """What an app knows without any database.

    Args:
        routes, task_routes, queues, known_errors: see `App`.
    """

    def __init__(
        self,
        *,
        routes: Route | None,
        task_routes: TaskRoutes | None,
        queues: Mapping[str, Queue],
        known_errors: Iterable[type[Exception]],
    ) -> None:
        if routes is not None and task_routes is not None:
            raise ConfigurationError(
                "expected routes or task_routes, found both: they differ in what goes before a task's own queue"
            )
        self.tasks: dict[str, Task[..., Any]] = {}
        self.shared: dict[SharedTask, Task[..., Any]] = {}
        self.routes = routes
        self.router = None if task_routes is None else Router(task_routes)
        self.declared_queues = dict(queues)
        for name, queue in self.declared_queues.items():
            check_queue_name(name)
            if not isinstance(queue, Queue):
                raise ConfigurationError(
                    f"queue {name!r} is declared by a pgtasks.Queue, such as Queue(max_running=5), found {queue!r}"
                )
        self.known_errors = list(known_errors)
        self.job_listeners: list[JobListener] = []
        self.bundle_listeners: list[tuple[str | None, BundleListener]] = []
        self._to_discover: list[tuple[str, str]] = []
        self._child_start_hooks: list[Callable[[], object]] = []
        self._child_stop_hooks: list[Callable[[], object]] = []

    # Tasks

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> BoundTaskDecorator: ...
    @overload
    def task(
        self, *, raw: Literal[True], **options: Any
    ) -> Callable[[Callable[[Job], R]], Task[..., R]]: ...
    @overload
    def task(self, **options: Any) -> TaskDecorator: ...
    def task(self, function: Any = None, /, **options: Any) -> Any:  # type: ignore[misc] # mypy: /
        """Register a function as a task; usable bare or with options.

        Args:
            function: what to run; a coroutine function is run on an event loop.
            options: see `TaskOptions`; Celery's spellings are accepted. ``base`` is a subclass of
                `Task` with hooks.

        Raises:
            ConfigurationError: an option is unknown or its value is not one.
            TaskExistsError: another function has this name.
        """
        if function is None:
            return lambda decorated: self._register(decorated, options)
        return self._register(function, options)

    def _register(self, function: Callable[..., Any], said: Mapping[str, Any]) -> Task[..., Any]:
        options = dict(said)
        asynchronous = inspect.iscoroutinefunction(function)
        base: Any = options.pop("base", None) or (CoroutineTask if asynchronous else Task)
        if not inspect.isclass(base) or not issubclass(base, Task):
            raise ConfigurationError(f"base is a subclass of pgtasks.Task, found {base!r}")
        name = options.pop("name", None) or task_name(function)
        if isinstance(name, str) and name.startswith(BUILTIN):
            raise ConfigurationError(
                f"task name {name!r}: names that begin with {BUILTIN!r} are those of the built-in tasks, "
                "give it another with name=…"
            )
        task = base(cast("App", self), function, task_options(name, options))
        task.said = frozenset(options)
        known = self.tasks.get(name)
        if known is not None and not _same_source(known.run, function):
            raise TaskExistsError(
                f"task {name!r} is registered already, by {_where(known.run)}: found another in {_where(function)}; "
                "give one of them a name of its own with name=…"
            )
        for other in self.tasks.values():
            if task.gates is not None and other.gates is not None and other.name != name:
                task.gates.check_shared(other.gates)
        self.tasks[name] = task
        return task

    def autodiscover(self, packages: Iterable[str], related_name: str = "tasks") -> None:
        """Import ``<package>.tasks`` of each package when a worker starts or a name is looked up.

        Args:
            packages: names of packages; one without such a module is passed over.
            related_name: the module's name.
        """
        self._to_discover += [(package, related_name) for package in packages]

    def load(self) -> None:
        """Import what `autodiscover` named and take over shared tasks; a second call does nothing."""
        while self._to_discover:
            package, related_name = self._to_discover.pop(0)
            if importlib.util.find_spec(f"{package}.{related_name}") is not None:
                importlib.import_module(f"{package}.{related_name}")
        for shared in shared_tasks:
            shared.register(cast("App", self))
        self._add_builtin_tasks()

    def own_tasks(self) -> list[str]:
        """Return the names of the tasks that were registered here, sorted; those of the built-in ones not."""
        return sorted(name for name in self.tasks if not name.startswith(BUILTIN))

    def known_task(self, name: str) -> Task[..., Any] | None:
        """Return the task of that name if it is registered or built in, and load nothing."""
        if name.startswith(BUILTIN):
            self._add_builtin_tasks()
        return self.tasks.get(name)

    @overload
    def signature(self, varies: Mapping[str, Any], /) -> Node[Any, Any]: ...
    @overload
    def signature(
        self,
        varies: str,
        /,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature[Any]: ...
    def signature(self, varies: Any, /, *args: Any, **options: Any) -> Any:
        """Describe a call of a task of this app by its name; see `pgtasks.signature`."""
        return signature(varies, *args, app=cast("App", self), **options)

    def _add_builtin_tasks(self) -> None:
        from pgtasks.builtin_tasks import FUNCTIONS

        for name, function in FUNCTIONS.items():
            if name not in self.tasks:
                options = TaskOptions(name=name, bind=True)
                self.tasks[name] = Task(cast("App", self), function, options)

    def find_task(self, name: str) -> Task[..., Any]:
        """Return the task of that name.

        Raises:
            UnknownTaskError: there is none.
        """
        if name not in self.tasks:
            self.load()
        try:
            return self.tasks[name]
        except KeyError:
            known = ", ".join(self.own_tasks()) or "none"
            raise UnknownTaskError(
                f"no task is named {name!r} in this app: found {known}"
            ) from None

    def find_error(self, name: str) -> type[Exception] | None:
        """Return the exception class that is stored under that name, if it is built in or known here."""
        found = builtin_error(name) or OWN_ERRORS.get(name)
        if found is not None:
            return found
        # Not kept: classes may be declared at any time, and this is asked for failed jobs only.
        declared: list[type[BaseException]] = list(self.known_errors)
        for task in self.tasks.values():
            declared += [*task.options.throws, *task.options.retry_for]
        for cls in declared:
            if f"{cls.__module__}.{cls.__qualname__}" == name and issubclass(cls, Exception):
                return cls
        return None

    def route(
        self,
        job: NewJob,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any] | None,
        task: Task[..., Any] | None = None,
    ) -> None:
        """Put a job where the routes say.

        Args:
            job: change in place.
            args: those of the call.
            kwargs: those of the call.
            options: those of the call, which are applied after this.
            task: its task, if that is known here.
        """
        if self.router is not None:
            said = frozenset() if task is None else task.said
            where = self.router.route(job.task, args, kwargs, options or {}, task)
            if where.queue is not None and "queue" not in said:
                job.queue = where.queue
            if where.priority is not None and "priority" not in said:
                job.priority = where.priority
        elif self.routes:
            queue = self.routed_queue(job.task)
            if queue is not None:
                job.queue = queue

    def queue_of(self, task: Task[..., Any]) -> str:
        """Return the queue that a task's jobs go to, as far as that is known without a call."""
        if self.router is None:
            return self.routed_queue(task.name) or task.queue
        where = NOWHERE if "queue" in task.said else self.router.by_name(task.name)
        return where.queue or task.queue

    def priority_of(self, task: Task[..., Any]) -> int:
        """Return the priority of a task's jobs, as far as that is known without a call."""
        known = self.router is not None and "priority" not in task.said
        where = self.router.by_name(task.name) if known and self.router else Destination()
        return task.options.priority if where.priority is None else where.priority

    def routed_queue(self, name: str) -> str | None:
        """Return the queue that the routes name for a task, or None."""
        if self.routes is None:
            return None
        if callable(self.routes):
            queue = self.routes(name)
        else:
            found = (
                queue
                for pattern, queue in self.routes.items()
                if fnmatch.fnmatchcase(name, pattern)
            )
            queue = next(found, None)
        if queue is not None:
            check_queue_name(queue)
        return queue

    def queue_names(self) -> list[str]:
        """Return every queue that the tasks, the routes and the app name, and "default"."""
        names = {"default", *self.declared_queues}
        for task in self.tasks.values():
            names.add(self.queue_of(task))
        if isinstance(self.routes, Mapping):
            names.update(self.routes.values())
        if self.router is not None:
            names.update(self.router.queues())
        return sorted(names)

    # Listeners and hooks

    def on_job_stopped(self, function: JobListener) -> JobListener:
        """Call ``function(job, will_retry)`` for each job that stops, in processes that call `listen`."""
        self.job_listeners.append(function)
        return function

    @overload
    def on_bundle_stopped(self, function: BundleListener, /) -> BundleListener: ...
    @overload
    def on_bundle_stopped(self, *, type: str) -> Callable[[BundleListener], BundleListener]: ...
    def on_bundle_stopped(self, function: Any = None, /, *, type: Any = None) -> Any:  # type: ignore[misc] # mypy: /
        """Call ``function(bundle)`` for each bundle that stops, or each of one type; see `listen`."""

        def add(decorated: BundleListener) -> BundleListener:
            self.bundle_listeners.append((type, decorated))
            return decorated

        return add if function is None else add(function)

    def on_child_start(self, function: Callable[[], object]) -> Callable[[], object]:
        """Call this in each child process of a worker before its first job: open connections here."""
        self._child_start_hooks.append(function)
        return function

    def on_child_stop(self, function: Callable[[], object]) -> Callable[[], object]:
        """Call this in each child process of a worker after its last job."""
        self._child_stop_hooks.append(function)
        return function

    def child_started(self) -> None:
        """Run the start hooks; the worker calls this in each child."""
        for hook in self._child_start_hooks:
            hook()

    def child_stopped(self) -> None:
        """Run the stop hooks; the worker calls this in each child."""
        for hook in self._child_stop_hooks:
            hook()


@overload
def shared_task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(**options: Any) -> TaskDecorator: ...
def shared_task(function: Any = None, /, **options: Any) -> Any:
    """Define a task without an app, for reusable packages: it belongs to every app.

    What it does goes to the current app: the one of the job that runs here, else the one made last.
    """

    def define(decorated: Callable[..., Any]) -> SharedTask:
        shared = SharedTask(decorated, options)
        shared_tasks.append(shared)
        return shared

    return define if function is None else define(function)


def task_name(function: Callable[..., Any]) -> str:
    """Return the name of a task without one: its module and function; for a script, the file's name."""
    module = getattr(function, "__module__", None) or "__main__"
    if module == "__main__":
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        module = Path(file).stem if file else "__main__"
    return f"{module}.{getattr(function, '__qualname__', type(function).__name__).replace('<locals>.', '')}"


def _same_source(known: Callable[..., Any], function: Callable[..., Any]) -> bool:
    """Whether this is the same definition once more: its module was loaded again."""
    old, new = getattr(known, "__code__", None), getattr(function, "__code__", None)
    return (
        old is not None
        and new is not None
        and ((old.co_filename, old.co_firstlineno) == (new.co_filename, new.co_firstlineno))
    )


def _where(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
