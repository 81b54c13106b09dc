"""What pgtasks raises.

::

    PgTasksError
    ├── ConfigurationError          an app, a task or an option is not usable as written
    │   ├── NoDsnError              no database was named
    │   └── TaskExistsError         two functions claim one task name
    ├── EncodingError               a value that JSON cannot carry (also a ValueError)
    ├── DecodingError               stored text that is not strict JSON, or not the annotated type
    ├── UnknownTaskError            no task of that name is registered in this app
    ├── NotFoundError               no job or bundle has that id, no schedule that name (also a LookupError)
    ├── DuplicateJobError           a job with that task_id, or with its unique key, exists already
    ├── JobStateError               the job is not in a state that allows this
    ├── ScheduleError               the schedule exists already, or stands in code, and does not allow this
    ├── DatabaseError               the database said no
    │   ├── ConnectError            no database answered
    │   └── SchemaError             the schema is missing, older or newer than the code
    ├── EmbeddedError               the embedded server could not be found, started or reached
    ├── ResultTimeoutError          get() waited long enough (also a TimeoutError)
    ├── IncompleteStream            collect() or iterdeps() came to a job that is not finished
    ├── SoftTimeLimitExceeded       raised inside a task whose soft time limit is over
    └── JobFailedError              get() on a job that did not succeed
        ├── TaskFailedError         it raised; carries type, message and the worker's traceback
        ├── ChordError              it waited for a group, a member of which did not succeed
        ├── JobCancelledError       it was cancelled
        ├── JobExpiredError         its time was over before a worker took it
        ├── JobLostError            at_most_once, and its process or worker died while it may have run
        ├── TimeLimitExceeded       it ran longer than its time limit, and was killed
        └── MaxRetriesExceededError self.retry() without an exception, and no retry left

Control flow, raised inside a task, and not errors: they derive from BaseException, so that a
task's own ``except Exception`` cannot swallow them. The first three are for tasks to raise, the last is
raised in them.

::

    BaseException
    ├── Retry                       run this job again later
    ├── Reject                      fail this job now, whatever retries are left
    ├── Ignore                      end this job as succeeded, keep no result
    ├── Replaced                    another graph takes this job's place; raised by self.replace()
    └── Cancelled                   somebody cancelled this job: clean up, and end
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

__all__ = [
    "Cancelled",
    "ChordError",
    "ConfigurationError",
    "ConnectError",
    "DatabaseError",
    "DecodingError",
    "DuplicateJobError",
    "EmbeddedError",
    "EncodingError",
    "Ignore",
    "IncompleteStream",
    "JobCancelledError",
    "JobExpiredError",
    "JobFailedError",
    "JobLostError",
    "JobStateError",
    "MaxRetriesExceededError",
    "NoDsnError",
    "NotFoundError",
    "PgTasksError",
    "Reject",
    "ResultTimeoutError",
    "Retry",
    "ScheduleError",
    "SchemaError",
    "SoftTimeLimitExceeded",
    "TaskExistsError",
    "TaskFailedError",
    "TimeLimitExceeded",
    "UnknownTaskError",
]


class PgTasksError(Exception):
    """The root of everything that pgtasks raises as an error."""


class ConfigurationError(PgTasksError):
    """An app, a task or an option is not usable as written."""


class NoDsnError(ConfigurationError):
    """No database was named, neither by argument nor by environment."""


class TaskExistsError(ConfigurationError):
    """Two functions claim one task name."""


class EncodingError(PgTasksError, ValueError):
    """A value cannot be carried by JSON; the message starts with the path of the value."""


class DecodingError(PgTasksError, ValueError):
    """Stored text is not strict JSON, or does not fit the annotated type."""


class UnknownTaskError(PgTasksError):
    """No task of that name is registered in this app."""


class NotFoundError(PgTasksError, LookupError):
    """No job or bundle has that id."""


class DuplicateJobError(PgTasksError):
    """A job with that ``task_id`` exists already, or one has its unique key.

    Args:
        message: what is so.
        id: the job that has the key.
    """

    def __init__(self, message: str = "", id: str | None = None) -> None:
        super().__init__(message, id)
        self.id = id

    def __str__(self) -> str:
        return str(self.args[0])


class JobStateError(PgTasksError):
    """The job or bundle is not in a state that allows this."""


class ScheduleError(PgTasksError):
    """The schedule exists already, or stands in code, and does not allow this."""


class DatabaseError(PgTasksError):
    """The database refused, or is not as it should be."""


class ConnectError(DatabaseError):
    """No database answered under the DSN."""


class SchemaError(DatabaseError):
    """The schema is missing, older than the code needs, or newer than the code knows."""


class EmbeddedError(PgTasksError):
    """The embedded server could not be found, started or reached."""


class ResultTimeoutError(PgTasksError, TimeoutError):
    """``get(timeout=…)`` waited that long, and the job is still not finished."""


class IncompleteStream(PgTasksError):  # noqa: N818 (Celery's name)
    """``iterdeps()`` came to a job that is not finished, and ``intermediate`` was not said."""


class SoftTimeLimitExceeded(PgTasksError):  # noqa: N818 (Celery's name)
    """The soft time limit of the job that runs here is over; raised inside the task, which may clean up.

    An ordinary exception: if the task lets it go, it counts like any other, and is retried by the
    task's own policy.
    """


class JobFailedError(PgTasksError):
    """A job ended without success."""


class TaskFailedError(JobFailedError):
    """The task raised.

    Args:
        type_name: the exception's class as ``module.Class`` (builtins without module).
        message: its text.
        traceback: the worker's traceback as text, without locals.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class ChordError(JobFailedError):
    """The job did not run: a member of the group that it waited for did not succeed.

    The message names the first that failed, and what it raised.
    """


class JobCancelledError(JobFailedError):
    """The job was cancelled; it will not give a result."""


class JobExpiredError(JobFailedError):
    """No worker took the job before it expired."""


class JobLostError(JobFailedError):
    """A job of an ``at_most_once`` task may have run when its process or its worker died."""


class TimeLimitExceeded(JobFailedError):  # noqa: N818 (Celery's name)
    """The job ran longer than its time limit; its process was killed, or its coroutine cancelled."""


class MaxRetriesExceededError(JobFailedError):
    """``self.retry()`` was called without an exception, and no retry is left."""


class Retry(BaseException):  # control flow, see above
    """Run this job again later; raise it from inside a task.

    Args:
        after: when: seconds or a timedelta from now, or an aware datetime. None: the task's
            retry schedule says.
        error: the exception that is the reason, kept in the job's ``attempts``.
        retries: how many retries the job may use in all, instead of the task's own number.
            None: the task's own.
        count: False lets the job wait again as if it had not been tried: for one that came too early. It uses up
            no retry, the next attempt has the same number, and nothing of this one is kept in ``attempts``.
    """

    def __init__(
        self,
        after: float | timedelta | datetime | None = None,
        error: Exception | None = None,
        *,
        retries: int | None = None,
        count: bool = True,
    ) -> None:
        super().__init__(after, error)
        self.after = after
        self.error = error
        self.retries = retries
        self.count = count

    def __str__(self) -> str:
        return "retry by its schedule" if self.after is None else f"retry after {self.after}"


class Reject(BaseException):  # control flow, see above
    """Fail this job now, whatever retries are left; raise it from inside a task.

    Args:
        reason: a text or an exception, kept as the job's error message.
        requeue: Celery's word; a rejected job is not run again, so only False is accepted.
    """

    def __init__(self, reason: object = "rejected", requeue: bool = False) -> None:
        if requeue:
            raise ConfigurationError("Reject(requeue=True) is not supported: raise Retry(after=0)")
        super().__init__(reason)
        self.reason = reason


class Replaced(BaseException):  # control flow, see above
    """This job goes on as another graph; raised by ``self.replace()``.

    Args:
        graph: what takes its place, as JSON; see `pgtasks.graph.Graph.replacement`.
    """

    def __init__(self, graph: str) -> None:
        super().__init__()
        self.graph = graph

    def __str__(self) -> str:
        return "replaced by another graph"


class Ignore(BaseException):  # control flow, see above
    """End this job as succeeded without a result; raise it from inside a task."""


class Cancelled(BaseException):
    """Somebody cancelled the job that runs here; raised inside the task, which may clean up."""
