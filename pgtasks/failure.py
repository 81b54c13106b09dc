"""The exception that ``get()`` raises for a job that did not succeed.

The original class is used only if it is a built-in exception or one that the app knows by its own
registry: no class is ever looked up by a name from the database.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

from pgtasks.errors import (
    ChordError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobLostError,
    MaxRetriesExceededError,
    NotFoundError,
    ResultTimeoutError,
    SoftTimeLimitExceeded,
    TaskFailedError,
    TimeLimitExceeded,
)
from pgtasks.job import JobError, JobState

if TYPE_CHECKING:
    from pgtasks.app import App


def rebuild_error(app: App, job_id: str, state: JobState, error: JobError | None) -> BaseException:
    """Return the exception that a job ended with, as its own class where that is known."""
    # Also if its last attempt failed, and would have been retried; but not what another job's failure cancelled.
    if state is JobState.CANCELLED and (error is None or error.dependency is None):
        return JobCancelledError(f"job {job_id} was cancelled")
    if error is None:
        if state is JobState.EXPIRED:
            return JobExpiredError(f"job {job_id} expired before a worker took it")
        return JobFailedError(f"job {job_id} ended {state}")
    failure = TaskFailedError(error.type, error.message, error.traceback)
    cls = app.find_error(error.type)
    if cls is None or error.args is None:
        return failure
    try:
        original = cls(*error.args)
    except Exception:  # noqa: BLE001 (a user's class may refuse anything)
        return failure
    original.__cause__ = failure
    return original


def chord_error(job_id: str, error: JobError | None) -> JobError:
    """Return the error of what waited for a group in which this job failed; as pgtasks.first_failure in schema/."""
    kind = "JobFailedError" if error is None else error.type.rpartition(".")[2]
    text = "" if error is None else error.message[:1000].replace("'", "\\'")
    message = f"Dependency {job_id} raised {kind}('{text}')"
    return JobError(
        type="pgtasks.errors.ChordError",
        message=message,
        traceback="" if error is None else error.traceback,
        args=[message],
    )


def builtin_error(name: str) -> type[Exception] | None:
    """Return the built-in exception of that name, or None."""
    found = getattr(builtins, name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


OWN_ERRORS: dict[str, type[Exception]] = {
    f"pgtasks.errors.{cls.__name__}": cls
    for cls in (
        ChordError,
        JobCancelledError,
        JobExpiredError,
        JobFailedError,
        JobLostError,
        MaxRetriesExceededError,
        NotFoundError,
        ResultTimeoutError,
        SoftTimeLimitExceeded,
        TimeLimitExceeded,
    )
}
