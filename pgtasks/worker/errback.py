"""Callbacks for failure in Celery's old style: called with the failed job, its exception and its traceback.

In the new style a callback gets the failed job's id. Which one is meant shows in the function: one that is not bound
and takes several positional arguments is of the old style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from pgtasks.failure import rebuild_error

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.job import Job
    from pgtasks.task import Task

# Jobs that failed in an eager run, which no database holds: id -> job.
eager_failures_var: ContextVar[Mapping[str, Job]] = ContextVar("pgtasks_eager_failures", default={})  # noqa: B039 (never written)

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def takes_error(task: Task[Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this callback, called with these arguments after the failed job's id, is of the old style."""
    if task.options.bind or task.options.raw:
        return False
    parameters = signature(task.run).parameters.values()
    several = sum(one.kind in POSITIONAL for one in parameters) > 1
    if not several and not any(one.kind is Parameter.VAR_POSITIONAL for one in parameters):
        return False
    try:
        task.parameters.bind([None, None, None, *args[1:]], kwargs)
    except TypeError:
        return False
    return True


def failure_arguments(app: App, id: str) -> tuple[Job, BaseException, str | None]:
    """Return the failed job, the exception that it ended with, and its traceback as text.

    Raises:
        NotFoundError: the job is forgotten.
    """
    job = eager_failures_var.get().get(id) or app.job(id)
    error = rebuild_error(app, job.id, job.state, job.error)
    return job, error, job.error.traceback if job.error else None
