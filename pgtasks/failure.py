"""The exception that ``get()`` raises for a job that did not succeed.

The original class is used only if it is a built-in exception or one that the app knows by its own
registry: no class is ever looked up by a name from the database.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

import msgspec

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


def passed_error(job_id: str, state: JobState, error: JobError | None, in_group: bool) -> JobError:
    """Return the error of what does not run because a job before it failed; as pgtasks.first_failure in schema/.

    Args:
        job_id: the job that failed.
        state: how it ended.
        error: what is stored of its error.
        in_group: whether that is a member of a group, for all of which was waited.
    """
    if error is None or (state is JobState.CANCELLED and error.dependency is None):
        kind = {JobState.CANCELLED: "JobCancelledError", JobState.EXPIRED: "JobExpiredError"}.get(
            state, "JobFailedError"
        )
        message = f"job {job_id} ended {state}"
        error = JobError(type=f"pgtasks.errors.{kind}", message=message, args=[message])
    if in_group:
        text = error.message[:1000].replace("'", "\\'")
        message = f"Dependency {job_id} raised {error.type.rpartition('.')[2]}('{text}')"
        return JobError(
            type="pgtasks.errors.ChordError",
            message=message,
            traceback=error.traceback,
            args=[message],
            dependency=job_id,
        )
    return msgspec.structs.replace(error, dependency=error.dependency or job_id)


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
