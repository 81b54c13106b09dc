"""The app: a DSN, a registry of tasks (`Registry`), and every operation on jobs (`Management`).

Methods come in pairs: ``job`` and ``ajob`` hold no logic, they run the same operation on a
synchronous or an asynchronous connection.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from pgtasks.context import app_var, connection_var, having, remember_app
from pgtasks.errors import ConfigurationError, NoDsnError
from pgtasks.management import Management
from pgtasks.options import check_limits
from pgtasks.scheduling import Scheduling

if TYPE_CHECKING:
    from pgtasks.db.listener import Listener
    from pgtasks.db.pools import Pools
    from pgtasks.db.run import Operation
    from pgtasks.options import Queue
    from pgtasks.registry import Route
    from pgtasks.routing import TaskRoutes
    from pgtasks.worker.process import WorkerProcess

T = TypeVar("T")


class App(Scheduling, Management):
    """A program's tasks and the database that holds their jobs.

    Args:
        name: what it is called, for people.
        dsn: where the database is: a libpq URL or conninfo string, or ``embedded:`` for a private
            server in ``./.pgtasks``. None: ``$PGTASKS_DSN``, asked at first use.
        routes: which queue a task goes to, unless the call says: ``{"mail.*": "mail"}``, or a
            function from the task's name to a queue or None. It goes before the queue of a task's own options.
        task_routes: Celery's: a dict, pairs, a function, or a list of these, by name, glob or regular expression;
            see `pgtasks.routing`. In Celery's order: the call's ``queue``, then the one that ``@app.task`` names, then
            this. A worker has to be told (``-Q``) of queues that only a function names.
        queues: limits of queues, for all workers together: ``{"mail": Queue(max_running=5, rate="100/m")}``;
            see `Queue`.
        known_errors: exception classes that ``get()`` may raise as themselves.
        soft_time_limit: of tasks that name none, in seconds; a worker's option goes before.
        time_limit: of tasks that name none, in seconds; a worker's option goes before.
        eager: run every job at once in the caller, without a database; also ``$PGTASKS_EAGER=1``.
        timezone: of schedules that name none, an IANA name.
        beat_schedule: schedules as Celery's setting has them: ``{name: {"task": …, "schedule": …}}``.

    Several apps in one process do not disturb each other.
    """

    def __init__(
        self,
        name: str = "app",
        dsn: str | None = None,
        *,
        routes: Route | None = None,
        task_routes: TaskRoutes | None = None,
        queues: Mapping[str, Queue] | None = None,
        known_errors: Iterable[type[Exception]] = (),
        soft_time_limit: float | None = None,
        time_limit: float | None = None,
        eager: bool | None = None,
        timezone: str = "UTC",
        beat_schedule: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            routes=routes,
            task_routes=task_routes,
            queues=queues or {},
            known_errors=known_errors,
            timezone=timezone,
            beat_schedule=beat_schedule,
        )
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
        from pgtasks.db.run import run, run_alone

        connection = connection or connection_var.get().get(id(self))
        if connection is not None:
            return run(_synchronous(connection), operation)
        with self.pools.connection() as own:
            return run_alone(own, operation)

    async def arun(self, operation: Operation[T], connection: Any = None) -> T:
        """Run an operation: on the given connection, the block's (see `connection`), or the app's own."""
        from pgtasks.db.run import arun, arun_alone

        connection = connection or connection_var.get().get(id(self))
        if connection is not None:
            return await arun(_asynchronous(connection), operation)
        async with self.pools.aconnection() as own:
            return await arun_alone(own, operation)

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
