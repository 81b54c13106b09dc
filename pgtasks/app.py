"""The app: a DSN, a registry of tasks, and every operation on jobs and bundles.

Methods come in pairs: ``job`` and ``ajob`` hold no logic, they run the same operation on a
synchronous or an asynchronous connection.
"""

from __future__ import annotations

import asyncio
import fnmatch
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from pgtasks import codec
from pgtasks.context import app_var, connection_var, eager_var, having, ignoring_var, remember_app
from pgtasks.errors import ConfigurationError, NoDsnError, TaskExistsError, UnknownTaskError
from pgtasks.ids import new_id, parse_id
from pgtasks.job import Bundle, Job, JobFilter, JobState, NewBundle, NewJob, Status, WorkerInfo
from pgtasks.options import check_queue_name, check_task_name, task_options
from pgtasks.result import (
    OWN_ERRORS,
    AsyncResult,
    EagerGroupResult,
    EagerResult,
    GroupResult,
    builtin_error,
)
from pgtasks.task import CoroutineTask, SharedTask, Task, apply_call_options, shared_tasks

if TYPE_CHECKING:
    from pgtasks.db.listener import Listener
    from pgtasks.db.pools import Pools
    from pgtasks.db.run import Operation

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Ids = str | AsyncResult[Any]

JobListener = Callable[[Job, bool], object]
BundleListener = Callable[[Bundle], object]
Route = Callable[[str], str | None] | Mapping[str, str]


class App:
    """A program's tasks and the database that holds their jobs.

    Args:
        name: what it is called, for people.
        dsn: where the database is: a libpq URL or conninfo string, or ``embedded:`` for a private
            server in ``./.pgtasks``. None: ``$PGTASKS_DSN``, asked at first use.
        routes: which queue a task goes to, unless the call says: ``{"mail.*": "mail"}``, or a
            function from the task's name to a queue or None.
        known_errors: exception classes that ``get()`` may raise as themselves.
        eager: run every job at once in the caller, without a database; also ``$PGTASKS_EAGER=1``.

    Several apps in one process do not disturb each other.
    """

    def __init__(
        self,
        name: str = "app",
        dsn: str | None = None,
        *,
        routes: Route | None = None,
        known_errors: Iterable[type[Exception]] = (),
        eager: bool | None = None,
    ) -> None:
        self.name = name
        self.tasks: dict[str, Task[..., Any]] = {}
        self.shared: dict[SharedTask, Task[..., Any]] = {}
        self.routes = routes
        self.known_errors = list(known_errors)
        self._dsn = dsn
        self._eager = (
            os.environ.get("PGTASKS_EAGER", "") not in ("", "0") if eager is None else eager
        )
        self._to_discover: list[tuple[str, str]] = []
        self._job_listeners: list[JobListener] = []
        self._bundle_listeners: list[tuple[str | None, BundleListener]] = []
        self._child_start_hooks: list[Callable[[], object]] = []
        self._child_stop_hooks: list[Callable[[], object]] = []
        remember_app(self)

    def __repr__(self) -> str:
        return f"<App {self.name!r}>"

    @property
    def dsn(self) -> str:
        """Where the database is.

        Raises:
            NoDsnError: nothing names one.
        """
        dsn = self._dsn or os.environ.get("PGTASKS_DSN")
        if not dsn:
            raise NoDsnError(
                "no database was named: set PGTASKS_DSN or say App(dsn=…), to postgresql://user@host/database, "
                "or to embedded: for a private server"
            )
        return dsn

    @dsn.setter
    def dsn(self, dsn: str | None) -> None:
        """Name another database; what is open stays with the old one until `close`."""
        self._dsn = dsn
        self.__dict__.pop("pools", None)
        self.__dict__.pop("listener", None)

    # Tasks

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
    @overload
    def task(
        self, *, raw: Literal[True], **options: Any
    ) -> Callable[[Callable[[Job], R]], Task[..., R]]: ...
    @overload
    def task(self, **options: Any) -> TaskDecorator: ...
    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
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
        base: type[Task[..., Any]] = options.pop("base", None) or (
            CoroutineTask if asynchronous else Task
        )
        if not (isinstance(base, type) and issubclass(base, Task)):
            raise ConfigurationError(f"base is a subclass of pgtasks.Task, found {base!r}")
        name = options.pop("name", None) or task_name(function)
        task = base(self, function, task_options(name, options))
        known = self.tasks.get(name)
        if known is not None and not _same_source(known.run, function):
            raise TaskExistsError(
                f"task {name!r} is registered already, by {_where(known.run)}: found another in {_where(function)}; "
                "give one of them a name of its own with name=…"
            )
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
            shared.register(self)

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
            known = ", ".join(sorted(self.tasks)) or "none"
            raise UnknownTaskError(
                f"no task is named {name!r} in app {self.name!r}: found {known}"
            ) from None

    def find_error(self, name: str) -> type[Exception] | None:
        """Return the exception class that is stored under that name, if it is built in or known here."""
        return builtin_error(name) or self._errors_by_name.get(name)

    @cached_property
    def _errors_by_name(self) -> dict[str, type[Exception]]:
        named = dict(OWN_ERRORS)
        declared: list[type[BaseException]] = list(self.known_errors)
        for task in self.tasks.values():
            declared += [*task.options.throws, *task.options.retry_for]
        for cls in declared:
            if issubclass(cls, Exception):
                named[f"{cls.__module__}.{cls.__qualname__}"] = cls
        return named

    def route(self, job: NewJob) -> None:
        """Put a job into the queue that the routes name for its task."""
        queue = self.routed_queue(job.task) if self.routes else None
        if queue is not None:
            job.queue = queue

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

    def queues(self) -> list[str]:
        """Return every queue that the tasks and routes name, and "default"."""
        names = {"default"}
        for task in self.tasks.values():
            names.add(self.routed_queue(task.name) or task.queue)
        if isinstance(self.routes, Mapping):
            names.update(self.routes.values())
        return sorted(names)

    # Enqueue

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Enqueue a task by its name, which need not be registered here; see `Task.apply_async`."""
        connection = options.pop("connection", None)
        return self.send(self._named_job(name, args, kwargs or {}, options), connection)

    async def asend_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Enqueue a task by its name, which need not be registered here; see `Task.apply_async`."""
        connection = options.pop("connection", None)
        return await self.asend(self._named_job(name, args, kwargs or {}, options), connection)

    def _named_job(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> NewJob:
        if name in self.tasks:
            return self.tasks[name].new_job(args, kwargs, options)
        check_task_name(name)
        job = NewJob(
            id=new_id(),
            task=name,
            queue="default",
            args=codec.encode(list(args), "args"),
            kwargs=codec.encode(dict(kwargs), "kwargs"),
        )
        self.route(job)
        apply_call_options(job, options)
        return job

    def enqueue_many(
        self, jobs: Iterable[Any], *, connection: Any = None
    ) -> list[AsyncResult[Any]]:
        """Enqueue many signatures in one transaction, without a bundle.

        Args:
            jobs: signatures, of any tasks of this app.
            connection: write on this connection, in its transaction.
        """
        from pgtasks.db import operations

        rows = [one.new_job() for one in jobs]
        if self._is_eager():
            return [self.run_eagerly(row) for row in rows]
        kept = [row for row in rows if not self._ignores(row)]
        if kept:
            self.run(operations.enqueue_jobs(kept), connection)
        return [AsyncResult(row.id, self, row.task) for row in rows]

    async def aenqueue_many(
        self, jobs: Iterable[Any], *, connection: Any = None
    ) -> list[AsyncResult[Any]]:
        """Enqueue many signatures in one transaction, without a bundle; see `enqueue_many`."""
        from pgtasks.db import operations

        rows = [one.new_job() for one in jobs]
        if self._is_eager():
            return [await self.arun_eagerly(row) for row in rows]
        kept = [row for row in rows if not self._ignores(row)]
        if kept:
            await self.arun(operations.enqueue_jobs(kept), connection)
        return [AsyncResult(row.id, self, row.task) for row in rows]

    def send(self, job: NewJob, connection: Any = None) -> AsyncResult[Any]:
        """Write one job, unless jobs are run eagerly or ignored here."""
        from pgtasks.db import operations

        if self._is_eager():
            return self.run_eagerly(job)
        if not self._ignores(job):
            self.run(operations.enqueue_job(job), connection)
        return AsyncResult(job.id, self, job.task)

    async def asend(self, job: NewJob, connection: Any = None) -> AsyncResult[Any]:
        """Write one job, unless jobs are run eagerly or ignored here."""
        from pgtasks.db import operations

        if self._is_eager():
            return await self.arun_eagerly(job)
        if not self._ignores(job):
            await self.arun(operations.enqueue_job(job), connection)
        return AsyncResult(job.id, self, job.task)

    def send_group(
        self, jobs: Sequence[NewJob], bundle: NewBundle, connection: Any = None
    ) -> GroupResult[Any]:
        """Write the members of a bundle and the bundle, unless jobs are run eagerly or ignored here."""
        from pgtasks.db import operations

        if self._is_eager():
            return self._eager_group([self.run_eagerly(job) for job in jobs], bundle)
        results = [AsyncResult[Any](job.id, self, job.task) for job in jobs]
        kept, bundle = self._kept(jobs, bundle)
        if kept or not jobs:
            self.run(operations.enqueue_jobs(kept, bundle), connection)
        return GroupResult(bundle.id, self, results)

    async def asend_group(
        self, jobs: Sequence[NewJob], bundle: NewBundle, connection: Any = None
    ) -> GroupResult[Any]:
        """Write the members of a bundle and the bundle, unless jobs are run eagerly or ignored here."""
        from pgtasks.db import operations

        if self._is_eager():
            return self._eager_group([await self.arun_eagerly(job) for job in jobs], bundle)
        results = [AsyncResult[Any](job.id, self, job.task) for job in jobs]
        kept, bundle = self._kept(jobs, bundle)
        if kept or not jobs:
            await self.arun(operations.enqueue_jobs(kept, bundle), connection)
        return GroupResult(bundle.id, self, results)

    def _kept(self, jobs: Sequence[NewJob], bundle: NewBundle) -> tuple[list[NewJob], NewBundle]:
        kept = [job for job in jobs if not self._ignores(job)]
        if len(kept) < len(jobs):
            bundle = NewBundle(
                id=bundle.id, total=len(kept), type=bundle.type, origin=bundle.origin
            )
        return kept, bundle

    # Modes for tests

    def eager(self) -> AbstractContextManager[None]:
        """Run every job at once in the caller for a block, without a database: ``with app.eager():``."""
        return having(eager_var, True)

    @contextmanager
    def ignoring(
        self, *tasks: Task[..., Any] | str, when: Callable[[NewJob], bool] | None = None
    ) -> Iterator[list[NewJob]]:
        """Discard jobs for a block: all, those of some tasks, or those for which ``when(job)`` is true.

        Yields a list that fills with what was discarded.
        """
        names = {task if isinstance(task, str) else task.name for task in tasks}
        discarded: list[NewJob] = []

        def ignores(job: NewJob) -> bool:
            ignored = (not names or job.task in names) and (when is None or when(job))
            if ignored:
                discarded.append(job)
            return ignored

        with having(ignoring_var, ignores):
            yield discarded

    def run_eagerly(self, job: NewJob) -> EagerResult[Any]:
        """Run a job here and now as a worker would, retries included and without their waits."""
        from pgtasks.worker.runners import run_eagerly

        return run_eagerly(self, job)

    async def arun_eagerly(self, job: NewJob) -> EagerResult[Any]:
        """Run a job here and now; a coroutine function is awaited on the running loop."""
        from pgtasks.worker.runners import arun_eagerly

        return await arun_eagerly(self, job)

    def _is_eager(self) -> bool:
        eager = eager_var.get()
        return self._eager if eager is None else eager

    def _ignores(self, job: NewJob) -> bool:
        ignores = ignoring_var.get()
        return ignores is not None and ignores(job)

    def _eager_group(
        self, results: Sequence[EagerResult[Any]], bundle: NewBundle
    ) -> GroupResult[Any]:
        now = datetime.now(UTC)
        ended = Bundle(
            id=bundle.id,
            type=bundle.type,
            origin=bundle.origin,
            total=len(results),
            remaining=0,
            failed=sum(not one.successful() for one in results),
            created_at=now,
            stopped_at=now,
        )
        return EagerGroupResult(bundle.id, self, results, ended)

    # Jobs

    def result(self, id: str) -> AsyncResult[Any]:
        """Return a handle on a job; whether it exists is asked when it is used."""
        return AsyncResult(parse_id(id), self)

    def job(self, id: Ids) -> Job:
        """Return a job's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return self.run(operations.get_job(_id(id)))

    async def ajob(self, id: Ids) -> Job:
        """Return a job's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return await self.arun(operations.get_job(_id(id)))

    def jobs(self, *states: JobState | str, **conditions: Any) -> list[Job]:
        """Return the jobs that fit, newest first.

        Args:
            states: any of these; none: all.
            conditions: see `JobFilter`.
        """
        from pgtasks.db import operations

        return self.run(operations.list_jobs(_filter(states, conditions)))

    async def ajobs(self, *states: JobState | str, **conditions: Any) -> list[Job]:
        """Return the jobs that fit, newest first; see `jobs`."""
        from pgtasks.db import operations

        return await self.arun(operations.list_jobs(_filter(states, conditions)))

    def status(self) -> Status:
        """Count jobs and bundles by state."""
        from pgtasks.db import operations

        return self.run(operations.get_status())

    async def astatus(self) -> Status:
        """Count jobs and bundles by state."""
        from pgtasks.db import operations

        return await self.arun(operations.get_status())

    def workers(self) -> list[WorkerInfo]:
        """Return the registered workers."""
        from pgtasks.db import operations

        return self.run(operations.list_workers())

    async def aworkers(self) -> list[WorkerInfo]:
        """Return the registered workers."""
        from pgtasks.db import operations

        return await self.arun(operations.list_workers())

    def reset(self, id: Ids) -> None:
        """Start a finished job again, from its first attempt; its bundle counts it in again.

        Raises:
            NotFoundError: there is no such job.
            JobStateError: it is not finished.
        """
        from pgtasks.db import operations

        self.run(operations.reset_job(_id(id)))

    async def areset(self, id: Ids) -> None:
        """Start a finished job again, from its first attempt; see `reset`."""
        from pgtasks.db import operations

        await self.arun(operations.reset_job(_id(id)))

    def reset_many(self, ids: Iterable[Ids]) -> list[str]:
        """Start finished jobs again and return which; the others are left alone."""
        from pgtasks.db import operations

        return self.run(operations.reset_jobs([_id(id) for id in ids]))

    async def areset_many(self, ids: Iterable[Ids]) -> list[str]:
        """Start finished jobs again and return which; the others are left alone."""
        from pgtasks.db import operations

        return await self.arun(operations.reset_jobs([_id(id) for id in ids]))

    def cancel(self, *ids: Ids) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel jobs: waiting ones at once; of running ones a success still counts, a retry does not.

        Returns what was done, by id; finished and unknown jobs are absent.
        """
        from pgtasks.db import operations

        return self.run(operations.cancel_jobs([_id(id) for id in ids]))

    async def acancel(self, *ids: Ids) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel jobs; see `cancel`."""
        from pgtasks.db import operations

        return await self.arun(operations.cancel_jobs([_id(id) for id in ids]))

    def delete(self, *ids: Ids) -> list[str]:
        """Delete jobs and return which: waiting ones are cancelled first, running ones stay."""
        from pgtasks.db import operations

        return self.run(operations.delete_jobs([_id(id) for id in ids]))

    async def adelete(self, *ids: Ids) -> list[str]:
        """Delete jobs and return which; see `delete`."""
        from pgtasks.db import operations

        return await self.arun(operations.delete_jobs([_id(id) for id in ids]))

    def delete_finished_jobs(self, *states: JobState | str, **conditions: Any) -> int:
        """Delete finished jobs that fit, in batches, and return how many; never members of open bundles.

        Args:
            states: any of these finished states; none: all of them.
            conditions: ``task``, ``queue``, ``origin``, ``stopped_before`` (an aware datetime).
        """
        from pgtasks.db import operations

        deleted = 0
        while True:
            batch = self.run(operations.delete_history(states=_states(states), **conditions))
            deleted += batch
            if batch < operations.BATCH:
                return deleted

    async def adelete_finished_jobs(self, *states: JobState | str, **conditions: Any) -> int:
        """Delete finished jobs that fit, in batches, and return how many; see `delete_finished_jobs`."""
        from pgtasks.db import operations

        deleted = 0
        while True:
            batch = await self.arun(operations.delete_history(states=_states(states), **conditions))
            deleted += batch
            if batch < operations.BATCH:
                return deleted

    def purge(self, *queues: str) -> int:
        """Cancel every job of these queues that no worker has taken, and return how many."""
        from pgtasks.db import operations

        cancelled = 0
        while True:
            ids = self.run(operations.list_waiting_ids(queues))
            gone = self.run(operations.cancel_waiting_jobs(ids, "purged")) if ids else []
            cancelled += len(gone)
            if not gone:
                return cancelled

    async def apurge(self, *queues: str) -> int:
        """Cancel every job of these queues that no worker has taken, and return how many."""
        from pgtasks.db import operations

        cancelled = 0
        while True:
            ids = await self.arun(operations.list_waiting_ids(queues))
            gone = await self.arun(operations.cancel_waiting_jobs(ids, "purged")) if ids else []
            cancelled += len(gone)
            if not gone:
                return cancelled

    # Bundles

    def group_result(self, id: str) -> GroupResult[Any]:
        """Return a handle on a bundle; whether it exists is asked when it is used."""
        return GroupResult(parse_id(id), self)

    def bundle(self, id: str) -> Bundle:
        """Return a bundle's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return self.run(operations.get_bundle(parse_id(id)))

    async def abundle(self, id: str) -> Bundle:
        """Return a bundle's row; NotFoundError if there is none."""
        from pgtasks.db import operations

        return await self.arun(operations.get_bundle(parse_id(id)))

    def bundles(self, **conditions: Any) -> list[Bundle]:
        """Return the bundles that fit, newest first.

        Args:
            conditions: ``type``, ``origin``, ``stopped`` (a bool), ``failed`` (a bool),
                ``created_before``, ``before_id``, ``limit``.
        """
        from pgtasks.db import operations

        return self.run(operations.list_bundles(**conditions))

    async def abundles(self, **conditions: Any) -> list[Bundle]:
        """Return the bundles that fit, newest first; see `bundles`."""
        from pgtasks.db import operations

        return await self.arun(operations.list_bundles(**conditions))

    def reset_bundle(self, id: str, *, unsuccessful: bool = False) -> list[str]:
        """Start the finished members of a bundle again, all or only those without success."""
        from pgtasks.db import operations

        return self.run(operations.reset_bundles([parse_id(id)], unsuccessful=unsuccessful))

    async def areset_bundle(self, id: str, *, unsuccessful: bool = False) -> list[str]:
        """Start the finished members of a bundle again; see `reset_bundle`."""
        from pgtasks.db import operations

        return await self.arun(operations.reset_bundles([parse_id(id)], unsuccessful=unsuccessful))

    def cancel_bundle(self, id: str) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel the members of a bundle that are not finished; see `cancel`."""
        from pgtasks.db import operations

        return self.run(operations.cancel_bundles([parse_id(id)]))

    async def acancel_bundle(self, id: str) -> dict[str, Literal["cancelled", "requested"]]:
        """Cancel the members of a bundle that are not finished; see `cancel`."""
        from pgtasks.db import operations

        return await self.arun(operations.cancel_bundles([parse_id(id)]))

    def delete_bundle(self, id: str) -> bool:
        """Delete a stopped bundle and its members; False if it is open or unknown."""
        from pgtasks.db import operations

        return bool(self.run(operations.delete_bundles([parse_id(id)])))

    async def adelete_bundle(self, id: str) -> bool:
        """Delete a stopped bundle and its members; False if it is open or unknown."""
        from pgtasks.db import operations

        return bool(await self.arun(operations.delete_bundles([parse_id(id)])))

    def delete_finished_bundles(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        stopped_before: datetime | None = None,
    ) -> int:
        """Delete stopped bundles that fit, with their members, and return how many."""
        from pgtasks.db import operations

        deleted = 0
        while ids := self.run(
            operations.list_stopped_bundles(type=type, origin=origin, stopped_before=stopped_before)
        ):
            deleted += len(self.run(operations.delete_bundles(ids)))
        return deleted

    async def adelete_finished_bundles(
        self,
        *,
        type: str | None = None,
        origin: str | None = None,
        stopped_before: datetime | None = None,
    ) -> int:
        """Delete stopped bundles that fit, with their members, and return how many."""
        from pgtasks.db import operations

        deleted = 0
        while ids := await self.arun(
            operations.list_stopped_bundles(type=type, origin=origin, stopped_before=stopped_before)
        ):
            deleted += len(await self.arun(operations.delete_bundles(ids)))
        return deleted

    # Listeners and hooks

    def on_job_stopped(self, function: JobListener) -> JobListener:
        """Call ``function(job, will_retry)`` for each job that stops, in processes that call `listen`."""
        self._job_listeners.append(function)
        return function

    @overload
    def on_bundle_stopped(self, function: BundleListener, /) -> BundleListener: ...
    @overload
    def on_bundle_stopped(self, *, type: str) -> Callable[[BundleListener], BundleListener]: ...
    def on_bundle_stopped(
        self, function: BundleListener | None = None, /, *, type: str | None = None
    ) -> Any:
        """Call ``function(bundle)`` for each bundle that stops, or each of one type; see `listen`."""

        def add(decorated: BundleListener) -> BundleListener:
            self._bundle_listeners.append((type, decorated))
            return decorated

        return add if function is None else add(function)

    def listen(self, *, stop: Callable[[], bool] | None = None) -> None:
        """Call the listeners for what stops from now on, in this thread, until ``stop()`` is true.

        Best effort: what stops while no process listens, or while its connection is away, is not told.
        """
        from pgtasks.db.hearing import listen

        listen(self, self._job_listeners, self._bundle_listeners, stop or (lambda: False))

    async def alisten(self, *, stop: Callable[[], bool] | None = None) -> None:
        """Call the listeners for what stops from now on, in a thread, until cancelled; see `listen`."""
        ended = False
        try:
            await asyncio.to_thread(
                self.listen, stop=lambda: ended or (stop is not None and stop())
            )
        finally:
            ended = True

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

    @contextmanager
    def worker(self, concurrency: int = 1, **options: Any) -> Iterator[Any]:
        """Run a worker beside this process for a block: ``with app.worker(concurrency=4): …``.

        Args:
            concurrency: how many jobs run at once.
            options: see `WorkerOptions`.

        Leaving the block stops it as TERM does: running jobs end first.
        """
        from pgtasks.options import WorkerOptions
        from pgtasks.worker.process import worker_process

        with worker_process(self, WorkerOptions(concurrency=concurrency, **options)) as process:
            yield process

    # Connections

    @cached_property
    def pools(self) -> Pools:
        """The app's own connections, opened at first use."""
        from pgtasks.db.pools import Pools

        return Pools(self.dsn)

    @cached_property
    def listener(self) -> Listener:
        """What hears of stopped jobs, for every waiter of this process."""
        from pgtasks.db.listener import Listener

        return Listener(self.pools.connect)

    @contextmanager
    def connection(self, connection: Any) -> Iterator[None]:
        """Write and read on a connection of yours for a block, in its transaction.

        Args:
            connection: a psycopg connection, synchronous or (for the a-twins) asynchronous.
        """
        with having(connection_var, {**connection_var.get(), id(self): connection}):
            yield

    @contextmanager
    def current(self) -> Iterator[App]:
        """Make this the current app for a block, for `current_app` and shared tasks."""
        with having(app_var, self):
            yield self

    def run(self, operation: Operation[T], connection: Any = None) -> T:
        """Run an operation: on the given connection, the block's (see `connection`), or the app's own."""
        from pgtasks.db.run import run

        connection = connection or connection_var.get().get(id(self))
        if connection is not None:
            return run(_synchronous(connection), operation)
        with self.pools.connection() as own:
            return run(own, operation)

    async def arun(self, operation: Operation[T], connection: Any = None) -> T:
        """Run an operation: on the given connection, the block's (see `connection`), or the app's own."""
        from pgtasks.db.run import arun

        connection = connection or connection_var.get().get(id(self))
        if connection is not None:
            return await arun(_asynchronous(connection), operation)
        async with self.pools.aconnection() as own:
            return await arun(own, operation)

    def close(self) -> None:
        """Close what is open in this process; the next use opens it again."""
        listener = self.__dict__.get("listener")
        if listener is not None:
            listener.close()
        pools = self.__dict__.get("pools")
        if pools is not None:
            pools.close()

    async def aclose(self) -> None:
        """Close what is open in this process and on this loop; the next use opens it again."""
        await asyncio.to_thread(self.close)
        pools = self.__dict__.get("pools")
        if pools is not None:
            await pools.aclose()


class TaskDecorator:
    """The type of ``app.task(…)`` with options: keeps the function's parameters and result."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        """Register the function."""
        raise NotImplementedError


@overload
def shared_task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(**options: Any) -> TaskDecorator: ...
def shared_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
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


def _id(id: Ids) -> str:
    return id.id if isinstance(id, AsyncResult) else parse_id(id)


def _filter(states: Sequence[JobState | str], conditions: Mapping[str, Any]) -> JobFilter:
    return JobFilter(states=_states(states), **conditions)


def _states(states: Sequence[JobState | str]) -> list[JobState] | None:
    return [JobState(state) for state in states] if states else None


def _synchronous(connection: Any) -> Any:
    if inspect.iscoroutinefunction(getattr(connection, "execute", None)):
        raise ConfigurationError(
            f"expected a synchronous connection, found {type(connection).__name__}: "
            "use the a-prefixed method with it (await task.adelay(…))"
        )
    return connection


def _asynchronous(connection: Any) -> Any:
    if not inspect.iscoroutinefunction(getattr(connection, "execute", None)):
        raise ConfigurationError(
            f"expected an asynchronous connection, found {type(connection).__name__}: "
            "use the method without a- with it (task.delay(…))"
        )
    return connection
