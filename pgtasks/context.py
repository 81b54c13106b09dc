"""What is current: the app, the job that runs here, the modes eager and ignoring, the connection.

All of it is per context (contextvars), so that parallel tests and tasks do not disturb each other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pgtasks.errors import ConfigurationError

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.eager import EagerResult
    from pgtasks.graph import Graph
    from pgtasks.job import Job, NewJob
    from pgtasks.progress import Progress

    Grow = Callable[[str, Graph, str], Mapping[str, EagerResult[Any]] | None]

__all__ = ["Request", "current_app", "current_job", "current_request"]


class Request:
    """The attempt that runs here, under the names that Celery gives to ``self.request``.

    A runner makes one for each attempt. Plain slots and no dataclass: it is made 30,000 times a second.
    """

    __slots__ = (
        "_connection",
        "_eager",
        "_job",
        "_make_job",
        "app",
        "args",
        "attempt",
        "crashes",
        "hostname",
        "id",
        "is_eager",
        "kwargs",
        "over",
        "parent_id",
        "progress",
        "queue",
        "root_id",
        "said",
        "task",
    )

    def __init__(
        self,
        app: App,
        id: str,
        task: str,
        queue: str,
        attempt: int,
        crashes: int,
        parent_id: str | None,
        root_id: str | None,
        hostname: str,
        said: Mapping[str, Any],
        make_job: Callable[[], Job],
        is_eager: bool = False,
    ) -> None:
        self.app = app
        self.id = id
        self.task = task
        self.queue = queue
        self.attempt = attempt
        self.crashes = crashes
        self.parent_id = parent_id
        self.root_id = root_id or id
        self.hostname = hostname
        self.is_eager = is_eager
        self.said = said  # the options of the call
        self.args: Sequence[Any] = ()
        self.kwargs: Mapping[str, Any] = {}
        self._make_job = make_job  # few tasks look at their job, so it is built when asked for
        self._job: Job | None = None
        self._connection: Any = None
        # What no database knows: group, children, and what lets a group grow.
        self._eager: tuple[str | None, Sequence[Any], Grow | None] | None = None
        self.progress: Progress | None = None  # what the task said last of how far it is
        self.over = False  # whether the attempt has ended

    @property
    def connection(self) -> Any:
        """The connection in whose transaction a task with ``transactional=True`` runs.

        Raises:
            ConfigurationError: the task is not transactional, or it runs eagerly and no connection was
                named by ``with app.connection(…)``.
        """
        if self._connection is not None:
            return self._connection
        if not self.app.find_task(self.task).options.transactional:
            raise ConfigurationError(
                f"task {self.task!r} has no connection of its own: write @app.task(transactional=True)"
            )
        connection = connection_var.get().get(id(self.app))
        if connection is None:
            raise ConfigurationError(
                f"task {self.task!r} runs eagerly, without a database: "
                "name a connection with app.connection(…) around it"
            )
        return connection

    @property
    def retries(self) -> int:
        """How many retries came before this attempt: 0 in the first."""
        return max(0, self.attempt - 1 - self.crashes)

    @property
    def called_directly(self) -> bool:
        """Whether no worker runs this."""
        return False

    @property
    def group(self) -> str | None:
        """The id of the group that the job is a member of; asks the database, if it is in a bundle."""
        if self._eager is not None:
            return self._eager[0]
        if self.job.bundle_id is None:
            return None
        bundle = self.app.bundle(self.job.bundle_id)
        return bundle.id if bundle.kind == "group" else bundle.parent_id

    @property
    def children(self) -> list[Any]:
        """Results of what the job has enqueued so far, and of what follows it; asks the database."""
        return (
            list(self._eager[1]) if self._eager is not None else self.app.result(self.id).children
        )

    def run_eagerly_in(
        self, group: str | None, children: Sequence[Any], grow: Grow | None = None
    ) -> None:
        """Say what no database knows of an eager job.

        Args:
            group: the id of the one that it is a member of.
            children: a list that fills with them.
            grow: runs more members of a group.
        """
        self._eager = (group, children, grow)

    def grow_eagerly(
        self, bundle_id: str, graph: Graph, place_id: str
    ) -> Mapping[str, EagerResult[Any]] | None:
        """Run more members of a group of this eager graph; None if there is none of this id."""
        grow = self._eager[2] if self._eager is not None else None
        return None if grow is None else grow(bundle_id, graph, place_id)

    @property
    def origin(self) -> str | None:
        """Where the job came from."""
        return self.job.origin

    @property
    def eta(self) -> datetime | None:
        """The earliest moment that the job was to run."""
        return self.job.start_at

    @property
    def expires(self) -> datetime | None:
        """The moment after which an attempt would not have begun."""
        return self.job.expires_at

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Where the job came in, in Celery's form."""
        return {
            "routing_key": self.queue,
            "priority": self.job.priority,
            "redelivered": self.crashes > 0,
        }

    @property
    def job(self) -> Job:
        """The job as data."""
        if self._job is None:
            self._job = self._make_job()
        return self._job


class NoRequest:
    """``self.request`` in a task that was called as a plain function."""

    called_directly = True
    is_eager = False
    id = None
    retries = 0
    attempt = 0
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    children: Sequence[Any] = ()
    root_id = parent_id = group = origin = eta = expires = None
    hostname = None

    @property
    def connection(self) -> Any:
        """None to give: no job runs here."""
        raise ConfigurationError(
            "no job runs here: request.connection works inside of a task that a worker runs"
        )


request_var: ContextVar[Request | None] = ContextVar("pgtasks_request", default=None)
# By the id of the app, so that several apps do not disturb each other.
eager_var: ContextVar[Mapping[int, bool]] = ContextVar("pgtasks_eager", default={})  # noqa: B039 (never written)
ignoring_var: ContextVar[Mapping[int, Callable[[NewJob], bool]]] = ContextVar(
    "pgtasks_ignoring",
    default={},  # noqa: B039 (never written)
)
app_var: ContextVar[App | None] = ContextVar("pgtasks_app", default=None)
connection_var: ContextVar[Mapping[int, Any]] = ContextVar("pgtasks_connection", default={})  # noqa: B039 (never written)

_newest_app: weakref.ref[App] | None = None


def current_request() -> Request | None:
    """Return the attempt that runs here, or None outside of a job."""
    return request_var.get()


def current_job() -> Job:
    """Return the job that runs here.

    Raises:
        ConfigurationError: no job runs here.
    """
    request = request_var.get()
    if request is None:
        raise ConfigurationError(
            "no job runs here: current_job() works inside of a task that a worker runs"
        )
    return request.job


def current_app() -> App:
    """Return the app of the job that runs here, else the app that was made last.

    Raises:
        ConfigurationError: there is no app.
    """
    request = request_var.get()
    app = request.app if request else app_var.get()
    app = app or (_newest_app() if _newest_app else None)
    if app is None:
        raise ConfigurationError('there is no app yet: make one with app = App("name")')
    return app


def remember_app(app: App) -> None:
    """Let `current_app` find this app: the one that was made last."""
    global _newest_app
    _newest_app = weakref.ref(app)


@contextmanager
def having(var: ContextVar[Any], value: object) -> Iterator[None]:
    """Give a context variable a value for a block."""
    token = var.set(value)
    try:
        yield
    finally:
        var.reset(token)
