"""The app: a DSN, a registry of tasks (`Registry`), and every operation on jobs (`Management`).

Methods come in pairs: ``job`` and ``ajob`` hold no logic, they run the same operation on a
synchronous or an asynchronous connection.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from pgtasks import codec
from pgtasks.context import (
    app_var,
    connection_var,
    eager_var,
    having,
    ignoring_var,
    remember_app,
)
from pgtasks.eager import EagerGroupResult, EagerResult
from pgtasks.errors import ConfigurationError, NoDsnError
from pgtasks.ids import new_id
from pgtasks.job import Bundle, NewBundle, NewJob
from pgtasks.management import Management
from pgtasks.options import check_limits, check_task_name
from pgtasks.registry import Registry, Route
from pgtasks.result import AsyncResult, GroupResult
from pgtasks.task import Task, apply_call_options

if TYPE_CHECKING:
    from pgtasks.db.listener import Listener
    from pgtasks.db.pools import Pools
    from pgtasks.db.run import Operation
    from pgtasks.worker.process import WorkerProcess

T = TypeVar("T")


class App(Registry, Management):
    """A program's tasks and the database that holds their jobs.

    Args:
        name: what it is called, for people.
        dsn: where the database is: a libpq URL or conninfo string, or ``embedded:`` for a private
            server in ``./.pgtasks``. None: ``$PGTASKS_DSN``, asked at first use.
        routes: which queue a task goes to, unless the call says: ``{"mail.*": "mail"}``, or a
            function from the task's name to a queue or None.
        known_errors: exception classes that ``get()`` may raise as themselves.
        soft_time_limit: of tasks that name none, in seconds; a worker's option goes before.
        time_limit: of tasks that name none, in seconds; a worker's option goes before.
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
        soft_time_limit: float | None = None,
        time_limit: float | None = None,
        eager: bool | None = None,
    ) -> None:
        super().__init__(routes=routes, known_errors=known_errors)
        check_limits(soft_time_limit, time_limit)
        self.name = name
        self.soft_time_limit = soft_time_limit
        self.time_limit = time_limit
        self._dsn = dsn
        self._eager = (
            os.environ.get("PGTASKS_EAGER", "") not in ("", "0") if eager is None else eager
        )
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
        """Name another database; what is open to the old one is closed, asynchronous pools excepted."""
        self._dsn = dsn
        for opened in ("listener", "pools"):
            if opened in self.__dict__:
                self.__dict__.pop(opened).close()

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
            queue=None,
            priority=None,
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
        return having(eager_var, {**eager_var.get(), id(self): True})

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

        with having(ignoring_var, {**ignoring_var.get(), id(self): ignores}):
            yield discarded

    def run_eagerly(self, job: NewJob) -> EagerResult[Any]:
        """Run a job here and now as a worker would, retries included and without their waits."""
        from pgtasks.worker.eagerly import run_eagerly

        return run_eagerly(self, job)

    async def arun_eagerly(self, job: NewJob) -> EagerResult[Any]:
        """Run a job here and now; a coroutine function is awaited on the running loop."""
        from pgtasks.worker.eagerly import arun_eagerly

        return await arun_eagerly(self, job)

    def _is_eager(self) -> bool:
        return eager_var.get().get(id(self), self._eager)

    def _ignores(self, job: NewJob) -> bool:
        ignores = ignoring_var.get().get(id(self))
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

    # Running beside this process

    def listen(self, *, stop: Callable[[], bool] | None = None) -> None:
        """Call the listeners for what stops from now on, in this thread, until ``stop()`` is true.

        Best effort: what stops while no process listens, or while its connection is away, is not told.
        """
        from pgtasks.listening import listen

        listen(self, stop or (lambda: False))

    async def alisten(self, *, stop: Callable[[], bool] | None = None) -> None:
        """Call the listeners for what stops from now on, in a thread, until cancelled; see `listen`."""
        from asyncio import to_thread

        ended = False
        try:
            await to_thread(self.listen, stop=lambda: ended or (stop is not None and stop()))
        finally:
            ended = True

    @contextmanager
    def worker(self, concurrency: int = 1, **options: Any) -> Iterator[WorkerProcess]:
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

    def migrate(self) -> list[int]:
        """Bring the database's schema to this release's version; return the versions applied.

        Raises:
            SchemaError: the schema is newer than this release.
        """
        from pgtasks.db import migrations

        with self.pools.connect() as connection:
            return migrations.migrate(connection)

    async def amigrate(self) -> list[int]:
        """Bring the database's schema to this release's version; see `migrate`."""
        from asyncio import to_thread

        return await to_thread(self.migrate)

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
        from asyncio import to_thread

        await to_thread(self.close)
        pools = self.__dict__.get("pools")
        if pools is not None:
            await pools.aclose()


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
