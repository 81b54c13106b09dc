"""A task: a registered function, and the ways to call it.

``task(...)`` runs the function here and now. ``delay``, ``apply_async`` and ``apply_at`` write a job;
``s`` and ``si`` describe a call without making it. The a-prefixed twins hold no logic of their own.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from pgtasks import codec
from pgtasks.canvas import Partial, Signature
from pgtasks.canvas import chunks as chunked
from pgtasks.context import NoRequest, Request, current_app, request_var
from pgtasks.errors import ConfigurationError, MaxRetriesExceededError, Replaced, Retry
from pgtasks.ids import new_id, parse_id
from pgtasks.job import NewJob
from pgtasks.keys import LATER, check_key
from pgtasks.node import LINKS, Node
from pgtasks.options import (
    MANUAL_RETRIES,
    TaskOptions,
    check_label,
    check_limits,
    check_priority,
    check_queue_name,
    check_retries,
    check_seconds,
)
from pgtasks.parameters import Parameters, unnamed
from pgtasks.progress import set_state
from pgtasks.result import AsyncResult
from pgtasks.signatures import ACCUMULATE, MAP, STARMAP, loop, signature
from pgtasks.unique import UNIQUE_OPTIONS, make_unique

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.eager import EagerResult
    from pgtasks.group_result import GroupResult

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A", contravariant=True)
B = TypeVar("B")

# Options of Celery's apply_async that change nothing here.
CELERY_CALL_IGNORED = frozenset(
    (
        "add_to_parent",
        "retry",
        "retry_policy",
        "producer",
        "publisher",
        "exchange",
        "routing_key",
        "shadow",
        "track_started",
    )
)


if TYPE_CHECKING:
    Given = TypeVar("Given", covariant=True)

    class Takes(Protocol[A, Q, Given]):
        """A task of at least one argument: it is how type checkers know the type of the first."""

        def delay(self, first: A, /, *args: Q.args, **kwargs: Q.kwargs) -> AsyncResult[Given]:
            """Write a job."""


HOOKS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


class Task(Generic[P, R]):
    """A registered function and its options.

    Subclass it and pass ``base=`` for hooks that run around the attempts of a task: `before_start`,
    `on_success`, `on_failure`, `on_retry`, `after_return`.

    Args:
        app: the app that it is registered in.
        function: what it runs.
        options: see `TaskOptions`.
    """

    def __init__(self, app: App, function: Callable[..., Any], options: TaskOptions) -> None:
        self.app = app
        self.run = function
        self.options = options
        self.parameters = Parameters(function, bound=options.bind)
        if options.unique is not False and not options.raw:
            check_key(options.name, options.unique, self.parameters.names, option="unique")
        # What was said of it, rather than left to its default: it goes before `task_routes`.
        self.said: frozenset[str] = frozenset()
        self.gates = options.gates
        if self.gates is not None:
            self.gates.check(None if options.raw else self.parameters.names)
        self.connection: Any = None  # where jobs are written, if not by the app's own choice
        self.__name__ = getattr(function, "__name__", options.name)
        self.__doc__ = function.__doc__
        self.__module__ = getattr(function, "__module__", __name__)
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    @property
    def name(self) -> str:
        """The name that jobs carry."""
        return self.options.name

    @property
    def queue(self) -> str:
        """The queue that its jobs go to by default."""
        return self.options.queue

    @property
    def max_retries(self) -> int:
        """How often ``self.retry()`` works."""
        return MANUAL_RETRIES if self.options.retries is None else self.options.retries

    # Calling it

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, without a job."""
        return cast(
            "R", self.run(self, *args, **kwargs) if self.options.bind else self.run(*args, **kwargs)
        )

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Write a job that runs as soon as a worker is free.

        Raises:
            TypeError: the function does not take these arguments.
            EncodingError: JSON cannot carry one of them.
        """
        return self.app.send(self.new_job(args, kwargs), self.connection)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Write a job that runs as soon as a worker is free; see `delay`."""
        return await self.app.asend(self.new_job(args, kwargs), self.connection)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Write a job, with options for this call.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            options: ``task_id`` (a UUID), ``countdown`` (seconds from now) or ``eta`` (an aware
                datetime), ``expires`` (seconds from now, or an aware datetime), ``queue``,
                ``priority``, ``retries``, ``ignore_result``, ``origin``, ``connection``; ``unique``,
                ``unique_for``, ``unique_until`` and ``on_conflict`` as in `TaskOptions`; ``link`` and
                ``link_error``: a signature or a list of them, to run once it has succeeded or failed.

        Raises:
            TypeError: the function does not take these arguments, or there is no such option.
            EncodingError: JSON cannot carry one of the arguments.
            DuplicateJobError: it is unique with ``on_conflict="raise"``, and another job has its key.
        """
        if any(name in options for name in LINKS):
            return self.signature(args, kwargs, **options).apply_async()
        connection = options.pop("connection", self.connection)
        return self.app.send(self.new_job(args, kwargs or {}, options), connection)

    async def aapply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Write a job, with options for this call; see `apply_async`."""
        if any(name in options for name in LINKS):
            return await self.signature(args, kwargs, **options).aapply_async()
        connection = options.pop("connection", self.connection)
        return await self.app.asend(self.new_job(args, kwargs or {}, options), connection)

    def apply_at(
        self, when: datetime | timedelta, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncResult[R]:
        """Write a job that runs at an aware datetime, or so long from now; never earlier."""
        return self.app.send(self.new_job(args, kwargs, at(when)), self.connection)

    async def aapply_at(
        self, when: datetime | timedelta, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncResult[R]:
        """Write a job that runs at an aware datetime, or so long from now; see `apply_at`."""
        return await self.app.asend(self.new_job(args, kwargs, at(when)), self.connection)

    def apply(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        throw: bool = False,
        **options: Any,
    ) -> EagerResult[R]:
        """Run the task here and now as a worker would, retries included, without a database.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            throw: raise what it ends with, instead of keeping it in the result.
            options: as for `apply_async`.
        """
        if any(name in options for name in LINKS):
            return self.signature(args, kwargs, **options).apply(throw=throw)
        result = self.app.run_eagerly(self.new_job(args, kwargs or {}, options))
        if throw:
            result.get(disable_sync_subtasks=False)
        return cast("EagerResult[R]", result)

    def using(self, connection: Any) -> Task[P, R]:
        """Return this task with its jobs written on a connection, in whose transaction they commit.

        Args:
            connection: a psycopg connection, synchronous or (for the a-twins) asynchronous.
        """
        bound = copy.copy(self)
        bound.connection = connection
        return bound

    # Describing a call

    @overload
    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
    @overload
    def s(self: Takes[A, Q, T], *args: Q.args, **kwargs: Q.kwargs) -> Partial[A, T]: ...
    @overload
    def s(
        self: Takes[A, Concatenate[B, Q], T], *args: Q.args, **kwargs: Q.kwargs
    ) -> Partial[A, T]: ...
    @overload
    def s(self: Takes[A, Q, T]) -> Partial[A, T]: ...
    def s(self, *args: Any, **kwargs: Any) -> Any:
        """Describe a call: a signature. What comes before it in a canvas gives its first argument.

        For type checkers, a call without its first argument, its first two, or any at all is a `Partial`.
        """
        return Signature(self, args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Describe a call that takes no further arguments: an immutable signature."""
        return Signature(self, args, kwargs, immutable=True)

    def signature(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature[R]:
        """Describe a call with options."""
        return signature(self, args, kwargs, immutable=immutable, **options)

    def map(self, it: Iterable[Any]) -> Signature[list[R]]:
        """Describe one job that calls this for each element in turn, and gives the list of results."""
        return loop(self, MAP, it)

    def starmap(self, it: Iterable[Iterable[Any]]) -> Signature[list[R]]:
        """Describe one job that calls this with the arguments in each element in turn."""
        return loop(self, STARMAP, it)

    def chunks(self, it: Iterable[Iterable[Any]], n: int) -> chunked[R]:
        """Describe a group of jobs that each do what `starmap` does, for n elements."""
        return chunked(self, it, n)

    # From inside of an attempt

    @property
    def request(self) -> Request | NoRequest:
        """The attempt that runs here; outside of one, ``request.called_directly`` is true."""
        return request_var.get() or NoRequest()

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        count: bool = True,
    ) -> Retry:
        """Raise `Retry`: run this job again later, with the same arguments and the same id.

        Args:
            args: not supported, since a retry is the same job: leave it out.
            kwargs: like args.
            exc: the reason; raised itself when no retry is left.
            throw: False returns the Retry instead of raising it.
            eta: when, as an aware datetime.
            countdown: when, in seconds from now; without both, the task's retry schedule says.
            max_retries: how many retries to allow, instead of the task's number (else 3).
            count: False: it uses up no retry; see `Retry`.

        Raises:
            Retry: what tells the worker.
            MaxRetriesExceededError: no retry is left, and no exc was given.
        """
        request = request_var.get()
        if args is not None or kwargs is not None:
            raise ConfigurationError(
                "a retry is the same job: it cannot change args or kwargs, start another job instead"
            )
        if eta is not None and countdown is not None:
            raise ConfigurationError("expected eta or countdown, found both")
        if request is None:  # called directly: there is nothing to run again
            raise (
                exc
                or sys.exception()
                or RuntimeError(f"{self.name}: retry() called outside of a job")
            )  # type: ignore[attr-defined,unused-ignore]
        maximum = self.max_retries if max_retries is None else max_retries
        if count and request.retries >= maximum:
            raise exc or MaxRetriesExceededError(
                f"{self.name} [{request.id}] was retried {request.retries} times, and {maximum} are allowed"
            )
        error = exc if isinstance(exc, Exception) else sys.exception()  # type: ignore[attr-defined,unused-ignore]
        retry = Retry(
            eta if eta is not None else countdown,
            error if isinstance(error, Exception) else None,
            retries=maximum,
            count=count,
        )
        if throw:
            raise retry
        return retry

    def replace(self, sig: Node[Any, Any]) -> NoReturn:
        """Let this job go on as another signature, chain, group or chord: ``raise self.replace(sig)``.

        The last job of it takes this job's place: its id, its place in a group, and all who wait for it. Of a
        group the list of its results becomes the result. It is written when this attempt ends, in the same
        transaction: if the worker dies before, nothing was replaced, and the attempt is made again.

        Raises:
            Replaced: what tells the worker.
            ConfigurationError: called outside of a job, or in a transactional task, whose own writes would
                be undone.
            EncodingError: it is too large; see `pgtasks.graph.MAX_REPLACEMENT`.
        """
        from pgtasks.graph import compile_graph
        from pgtasks.groups import ends_as_group

        request = request_var.get()
        if request is None:
            raise ConfigurationError(
                f"{self.name}: replace() works inside of a job; call the signature instead"
            )
        if self.options.transactional:
            raise ConfigurationError(
                f"{self.name} is transactional, and replace() would undo what it wrote: enqueue the signature instead"
            )
        if ends_as_group(sig):
            sig = sig | signature(ACCUMULATE, kwargs={"index": 0}, app=self.app)
        raise Replaced(compile_graph(sig, options={"task_id": request.id}).replacement())

    def add_to_chord(
        self, sig: Node[Any, Any], lazy: bool = False
    ) -> AsyncResult[Any] | GroupResult[Any]:
        """Add a signature to the group that this job is a member of, so that its end is waited for as well.

        It is written at once, in a transaction of its own: an attempt that is made again adds it again.

        Args:
            sig: what to add.
            lazy: not supported, since a member that is not enqueued would be waited for in vain: leave it out.

        Raises:
            ValueError: this job is a member of no group.
        """
        return self.app.grow_group(_group_of_this_job(lazy), sig)

    async def aadd_to_chord(
        self, sig: Node[Any, Any], lazy: bool = False
    ) -> AsyncResult[Any] | GroupResult[Any]:
        """Add a signature to the group that this job is a member of; see `add_to_chord`."""
        return await self.app.agrow_group(_group_of_this_job(lazy), sig)

    def update_state(
        self,
        task_id: str | None = None,
        state: str | None = None,
        meta: object = None,
        **kwargs: object,
    ) -> None:
        """Say where the job is that runs here: ``self.update_state(state="READING", meta={"page": 3})``.

        ``AsyncResult.state`` is that word, and ``.info`` the meta, for as long as this attempt runs. For
        numbers there is ``current_job().progress(done, total, message)``; each leaves the other's part alone.
        Called outside of a job it does nothing.

        Args:
            task_id: only of the job that runs here, which is also what None means.
            state: any word that does not mean the end; None: the one before.
            meta: what JSON can carry, up to `pgtasks.progress.MAX_PROGRESS` bytes.
            kwargs: Celery's, without meaning here.

        Raises:
            ConfigurationError: the word means the end, or the id is that of another job.
            EncodingError: JSON cannot carry the meta, or it is too large.
        """
        request = request_var.get()
        if task_id is not None and (request is None or str(task_id) != request.id):
            here = "no job runs here" if request is None else f"job {request.id} runs here"
            raise ConfigurationError(
                f"expected the id of the job that runs here, or none, found {task_id!r:.120} ({here}): "
                "a job can only say where it is itself"
            )
        if request is not None:
            set_state(request, state, meta)

    def AsyncResult(self, task_id: str) -> AsyncResult[R]:  # noqa: N802 (Celery's name)
        """Return a handle on a job of this task."""
        return AsyncResult(parse_id(task_id), self.app, self.name)

    # Hooks, in the worker, around each attempt; for subclasses

    has_hooks = False  # whether a subclass has any, so that a plain task pays nothing

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.has_hooks = any(getattr(cls, hook) is not getattr(Task, hook) for hook in HOOKS)

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Run before each attempt; raising fails the attempt."""

    def on_success(
        self, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Run after an attempt that succeeded."""

    def on_failure(
        self,
        exc: BaseException,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: str,
    ) -> None:
        """Run after an attempt that failed for good; einfo is the traceback as text."""

    def on_retry(
        self,
        exc: BaseException,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: str,
    ) -> None:
        """Run after an attempt that will be followed by another."""

    def after_return(
        self,
        status: str,
        retval: Any,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: str | None,
    ) -> None:
        """Run after every attempt; status is SUCCESS, FAILURE or RETRY."""

    # The row

    def new_job(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        said: Mapping[str, Any] | None = None,
        *,
        given: Sequence[int] = (),
    ) -> NewJob:
        """Build the job for a call: bind the arguments, encode them, apply the options.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            said: the options of the call.
            given: how many arguments it may be given before its own when it runs; none: 0.
        """
        options = self.options
        if not options.raw:
            if given:
                self._bind_later(args, kwargs, given)
            else:
                self.parameters.bind(args, kwargs)
        job = NewJob(
            id=new_id(),
            task=options.name,
            queue=options.queue,
            args=codec.encode(args, "args") if args else "[]",
            kwargs=codec.encode(kwargs, "kwargs") if kwargs else "{}",
            priority=options.priority,
            expires_in=options.expires,
            origin=options.origin,
        )
        self.app.route(job, args, kwargs, said, self)
        if said:
            apply_call_options(job, said)
        if options.unique is not False or (said and not UNIQUE_OPTIONS.isdisjoint(said)):
            make_unique(job, options, said or {}, lambda: self._arguments(args, kwargs, given))
        if self.gates is not None:
            keys = self.gates.keys(self._arguments(args, kwargs, given))
            job.options = codec.encode({**stored_options(job), **keys}, "options")
        request = request_var.get()
        if request is not None:
            job.parent_id = request.id
            job.root_id = request.root_id
        return job

    def _arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Return the arguments of a call by the names of the parameters: what keys are made of.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            given: how many arguments it may be given before its own when it runs: they are `LATER`.

        Raises:
            TypeError: the function does not take these arguments.
        """
        if self.options.raw:
            return {**unnamed(*args, **kwargs), **({"args": LATER} if given else {})}
        for number in given:
            try:
                return self.parameters.arguments(args, kwargs, unknown=[LATER] * number)
            except TypeError:
                if number == given[-1]:
                    raise
        return self.parameters.arguments(args, kwargs)

    def _bind_later(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[int]
    ) -> None:
        for number in given:
            try:
                self.parameters.bind((*[None] * number, *args), kwargs)
            except TypeError:
                if number == given[-1]:
                    raise
            else:
                return


class CoroutineTask(Task[P, R]):
    """A task whose function is a coroutine function: calling it returns the coroutine."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        """Return the function's coroutine, without a job."""
        return cast("Coroutine[Any, Any, R]", super().__call__(*args, **kwargs))


def _group_of_this_job(lazy: bool) -> str:
    """Return the bundle that the job which runs here is in; ValueError if it is in none."""
    request = request_var.get()
    if request is None or request.job.bundle_id is None:
        raise ValueError("this job is a member of no group")
    if lazy:
        raise ConfigurationError(
            "add_to_chord(lazy=True) would be waited for in vain: leave lazy out"
        )
    return request.job.bundle_id


def at(when: datetime | timedelta) -> dict[str, Any]:
    """Return the option that says when: countdown for a timedelta, eta for a datetime."""
    return {"countdown": when.total_seconds()} if isinstance(when, timedelta) else {"eta": when}


def apply_call_options(job: NewJob, said: Mapping[str, Any]) -> None:
    """Apply the options of one call to the job that it makes.

    Raises:
        TypeError: there is no such option.
        ConfigurationError: an option's value is not one.
    """
    stored: dict[str, Any] = {}
    if said.get("countdown") is not None and said.get("eta") is not None:
        raise ConfigurationError("expected countdown or eta, found both")
    for option, value in said.items():
        if value is None or option in CELERY_CALL_IGNORED:
            continue
        match option:
            case "task_id":
                job.id = parse_id(str(value))
            case "countdown":
                job.delay = max(0.0, seconds("countdown", value)) or None
            case "eta":
                job.start_at = aware("eta", value)
            case "expires":
                if isinstance(value, datetime):
                    job.expires_at, job.expires_in = aware("expires", value), None
                else:
                    job.expires_in = seconds("expires", value)
            case "queue":
                check_queue_name(value)
                job.queue = value
            case "priority":
                check_priority(value)
                job.priority = value
            case "origin":
                check_label("origin", value)
                job.origin = value
            case "retries":
                check_retries(value)
                stored["retries"] = value
            case "ignore_result":
                stored["ignore_result"] = bool(value)
            case "soft_time_limit" | "time_limit":
                stored[option] = seconds(option, value)
                check_limits(stored.get("soft_time_limit"), stored.get("time_limit"))
            case "unique" | "unique_for" | "unique_until" | "on_conflict":
                pass  # see `make_unique`
            case "serializer" if value == "json":
                pass
            case _:
                raise TypeError(f"apply_async() has no option {option!r} (found {value!r})")
    if stored:
        job.options = codec.encode(stored, "options")


def stored_options(job: NewJob) -> dict[str, Any]:
    """Return what is stored of the options of the call that made a job."""
    return dict(codec.decode(job.options, "options")) if job.options else {}


def seconds(option: str, value: object) -> float:
    """Return a number of seconds given as a number or a timedelta; ConfigurationError for anything else."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    check_seconds(option, value, least=float("-inf"))
    return float(cast("float", value))


def aware(option: str, value: object) -> datetime:
    """Return an aware datetime as it is; ConfigurationError for anything else."""
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{option} is an aware datetime, found {value!r}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ConfigurationError(
            f"{option} is an aware datetime, found one without a time zone: {value!r}; "
            f"write datetime.now(UTC) or value.replace(tzinfo=…), now is {datetime.now(UTC):%H:%M} UTC"
        )
    return value


class SharedTask:
    """Stands for a task of whatever app is current; made by `shared_task`."""

    def __init__(self, function: Callable[..., Any], said: Mapping[str, Any]) -> None:
        self._function = function
        self._said = dict(said)
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def register(self, app: App) -> Task[..., Any]:
        """Return this task in that app, registered there at the first call."""
        known = app.shared.get(self)
        if known is None:
            known = app.shared[self] = app.task(**self._said)(self._function)
        return known

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.register(current_app()), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, as a task of the current app."""
        return self.register(current_app())(*args, **kwargs)


# Written at import only, by `shared_task`; each app takes from it what it has not got yet.
shared_tasks: list[SharedTask] = []
