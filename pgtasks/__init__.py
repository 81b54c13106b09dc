"""A task queue for Python that needs nothing but PostgreSQL."""

from pgtasks.app import App
from pgtasks.canvas import Partial, Signature, chain, chord, chunks, group, signature
from pgtasks.context import current_app, current_job, current_request
from pgtasks.eager import EagerResult
from pgtasks.errors import (
    Cancelled,
    ChordError,
    ConfigurationError,
    ConnectError,
    DatabaseError,
    DecodingError,
    DuplicateJobError,
    EmbeddedError,
    EncodingError,
    Ignore,
    IncompleteStream,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobLostError,
    JobStateError,
    MaxRetriesExceededError,
    NoDsnError,
    NotFoundError,
    PgTasksError,
    Reject,
    ResultTimeoutError,
    Retry,
    ScheduleError,
    SchemaError,
    SoftTimeLimitExceeded,
    TaskExistsError,
    TaskFailedError,
    TimeLimitExceeded,
    UnknownTaskError,
)
from pgtasks.group_result import GroupResult
from pgtasks.guard import guarded
from pgtasks.job import (
    Attempt,
    Bundle,
    Job,
    JobError,
    JobFilter,
    JobState,
    QueueInfo,
    Status,
    TaskInfo,
)
from pgtasks.limits import Limit, RateLimit
from pgtasks.logs import get_task_logger
from pgtasks.options import Queue, TaskOptions, WorkerOptions
from pgtasks.progress import Progress
from pgtasks.rates import Rate
from pgtasks.registry import shared_task
from pgtasks.result import AsyncResult, allow_join_result
from pgtasks.result_set import ResultSet
from pgtasks.retry import expo, fixed, linear
from pgtasks.schedule import Schedule, crontab, every
from pgtasks.task import Task
from pgtasks.version import VERSION as __version__

__all__ = [
    # The app and its tasks
    "App",
    "Queue",
    "Rate",
    "Limit",
    "RateLimit",
    "Task",
    "TaskOptions",
    "WorkerOptions",
    "shared_task",
    # Calls that are described, and how retries are timed
    "Partial",
    "Signature",
    "chain",
    "chord",
    "chunks",
    "expo",
    "fixed",
    "group",
    "linear",
    "signature",
    # When a task runs of its own accord
    "crontab",
    "every",
    # What was enqueued
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "ResultSet",
    # What a row is
    "Attempt",
    "Bundle",
    "Job",
    "JobError",
    "JobFilter",
    "JobState",
    "Progress",
    "Schedule",
    "QueueInfo",
    "Status",
    "TaskInfo",
    # From inside of a task
    "Cancelled",
    "Ignore",
    "Reject",
    "Retry",
    "SoftTimeLimitExceeded",
    "allow_join_result",
    "current_app",
    "current_job",
    "current_request",
    "get_task_logger",
    "guarded",
    # Errors: see pgtasks.errors for the tree
    "ChordError",
    "ConfigurationError",
    "ConnectError",
    "DatabaseError",
    "DecodingError",
    "DuplicateJobError",
    "EmbeddedError",
    "EncodingError",
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
    "ResultTimeoutError",
    "ScheduleError",
    "SchemaError",
    "TaskExistsError",
    "TaskFailedError",
    "TimeLimitExceeded",
    "UnknownTaskError",
    "__version__",
]
