"""Runs jobs eagerly: in the caller, with the steps of a worker and no database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgtasks import codec
from pgtasks.context import Request
from pgtasks.eager import EagerResult
from pgtasks.guard import Guard
from pgtasks.job import Job, JobError, JobState, NewJob
from pgtasks.worker.attempt import run_attempt
from pgtasks.worker.interrupts import awaited
from pgtasks.worker.rows import NO_OPTIONS, read_options

if TYPE_CHECKING:
    from pgtasks.app import App


def run_eagerly(app: App, new: NewJob) -> EagerResult[Any]:
    """Run a job to its end in the caller; a coroutine function on a loop of its own."""
    return _eager(app, new, _run_anywhere)


async def arun_eagerly(app: App, new: NewJob) -> EagerResult[Any]:
    """Run a job to its end in a thread, so that a coroutine function can have a loop of its own."""
    return await asyncio.to_thread(run_eagerly, app, new)


def _run_anywhere(awaitable: Awaitable[Any]) -> Any:
    """Run a coroutine to its end; in a thread with the same context, if a loop runs in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited(awaitable))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, awaited(awaitable)).result()


def _eager(app: App, new: NewJob, await_: Any) -> EagerResult[Any]:
    task = app.find_task(new.task)
    attempt = 0
    while True:
        attempt += 1
        request = eager_request(app, new, attempt)
        outcome = run_attempt(task, request, new.args, new.kwargs, None, Guard(), await_)
        if outcome.kind != "retry":
            break
    state = JobState(outcome.kind)
    value = None
    if outcome.result is not None:
        value = task.parameters.convert_result(codec.decode(outcome.result, "result"))
    info = JobError.from_json(outcome.error)
    return EagerResult(
        new.id,
        app,
        new.task,
        state=state,
        value=value,
        error=info,
        attempt=attempt,
    )


def eager_request(app: App, new: NewJob, attempt: int) -> Request:
    """Build the request of a job that was never written."""
    said = read_options(new.options) if new.options else NO_OPTIONS
    queue = new.queue or "default"
    now = datetime.now(UTC)

    def make_job() -> Job:
        return Job(
            id=new.id,
            task=new.task,
            queue=queue,
            state=JobState.RUNNING,
            priority=new.priority or 0,
            args_json=new.args,
            kwargs_json=new.kwargs,
            attempt=attempt,
            created_at=now,
            started_at=now,
            start_at=new.start_at,
            expires_at=new.expires_at,
            origin=new.origin,
            parent_id=new.parent_id,
            root_id=new.root_id or new.id,
            bundle_id=new.bundle_id,
            bundle_index=new.bundle_index,
            options=said,
        )

    # fmt: off
    return Request(
        app, new.id, new.task, queue, attempt, 0, new.parent_id, new.root_id, "eager", said, make_job,
        is_eager=True,
    )
    # fmt: on
