"""Runs one attempt of a job in this process: decode, call, decide.

`Runner` is what a child has: it runs jobs one by one, coroutine functions on an event loop of its own.
`run_eagerly` runs a job in the caller, with the same steps and no database.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pgtasks import codec
from pgtasks.context import Request, request_var
from pgtasks.eager import EagerResult
from pgtasks.errors import ConfigurationError, DecodingError, EncodingError, UnknownTaskError
from pgtasks.job import Job, JobError, JobState, NewJob, attempts_from_json
from pgtasks.options import check_retries
from pgtasks.worker.outcome import Outcome, describe, of_exception

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.options import TaskOptions
    from pgtasks.task import Task
    from pgtasks.worker.messages import ClaimedRow

NO_OPTIONS: dict[str, Any] = {}
SUCCEEDED_WITHOUT_RESULT = Outcome("succeeded")


class Runner:
    """Runs the jobs of a child, one by one.

    Args:
        app: whose tasks.
        hostname: the worker's name, for ``self.request.hostname``.
    """

    def __init__(self, app: App, hostname: str) -> None:
        self.app = app
        self.hostname = hostname
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, row: ClaimedRow) -> Outcome:
        """Run one attempt and say what it means for the job. Raises nothing."""
        task = self.app.tasks.get(row.task)
        if task is None:
            unknown = UnknownTaskError(f"no task is named {row.task!r} in app {self.app.name!r}")
            return Outcome("failed", error=describe(unknown))
        try:
            request = request_from_row(self.app, row, self.hostname)
        except (DecodingError, ConfigurationError) as error:
            return Outcome("failed", error=describe(error))
        return run_attempt(task, request, row.args, row.kwargs, row.input, self._await)

    def _await(self, awaitable: Awaitable[Any]) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(_awaited(awaitable))

    def close(self) -> None:
        """Close the event loop, if there is one."""
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def request_from_row(app: App, row: ClaimedRow, hostname: str) -> Request:
    """Build the request of a claimed job.

    Raises:
        DecodingError: its options are not an object.
        ConfigurationError: one of them has a value that it cannot have.
    """
    said = read_options(row.options) if row.options else NO_OPTIONS
    return Request(
        app,
        row.id,
        row.task,
        row.queue,
        row.attempt,
        row.crashes,
        row.parent_id,
        row.root_id,
        hostname,
        said,
        partial(job_from_row, row, said),
    )


def read_options(text: str) -> dict[str, Any]:
    """Decode the options of a call and check those that a worker reads; any client may have written them."""
    said = codec.decode(text, "options")
    if not isinstance(said, dict):
        raise DecodingError(f"options: expected a JSON object, found {type(said).__name__}")
    if "retries" in said:
        check_retries(said["retries"])
    return said


def job_from_row(row: ClaimedRow, said: Mapping[str, Any]) -> Job:
    """Build the job of a claimed row, with the options of its call."""
    return Job(
        id=row.id,
        task=row.task,
        queue=row.queue,
        state=JobState.RUNNING,
        priority=row.priority,
        args_json=row.args,
        kwargs_json=row.kwargs,
        attempt=row.attempt,
        crashes=row.crashes,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        start_at=_moment(row.start_at),
        expires_at=_moment(row.expires_at),
        origin=row.origin,
        parent_id=row.parent_id,
        root_id=row.root_id,
        bundle_id=row.bundle_id,
        bundle_index=row.bundle_index,
        options=said,
        attempts=attempts_from_json(
            codec.decode(row.attempts, "attempts") if row.attempts else None
        ),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def run_attempt(
    task: Task[Any, Any],
    request: Request,
    args_json: str,
    kwargs_json: str,
    input_json: str | None,
    await_: Any,
) -> Outcome:
    """Run one attempt: decode the arguments, rebuild the annotated ones, call, encode the result.

    Whatever is raised is the job's failure, also by what is the user's around the task: types that are
    rebuilt or encoded, retry schedules, hooks. It must not end the child, which has other jobs to run.

    Raises:
        KeyboardInterrupt: in an eager run, where it means the caller.
    """
    token = request_var.set(request)
    try:
        return _attempt(task, request, args_json, kwargs_json, input_json, await_)
    except BaseException as error:
        if _means_caller(error, request):
            raise
        return Outcome("failed", error=describe(error))
    finally:
        request_var.reset(token)


def _attempt(
    task: Task[Any, Any],
    request: Request,
    args_json: str,
    kwargs_json: str,
    input_json: str | None,
    await_: Any,
) -> Outcome:
    try:
        _decode_arguments(task, request, args_json, kwargs_json, input_json)
    except DecodingError as error:
        return _ended(task, request, Outcome("failed", error=describe(error)), error)
    try:
        if task.has_hooks:
            task.before_start(request.id, request.args, request.kwargs)
        value = call(task, request)
        if inspect.isawaitable(value):
            value = await_(value)
    except BaseException as error:
        if _means_caller(error, request):
            raise
        outcome = of_exception(error, request.job, task.options, datetime.now(UTC))
        return _ended(task, request, outcome, error)
    return _succeeded(task, request, value)


def _means_caller(error: BaseException, request: Request) -> bool:
    """Whether this is Ctrl-C in a program that runs its jobs eagerly."""
    return request.is_eager and isinstance(error, KeyboardInterrupt)


def call(task: Task[Any, Any], request: Request) -> Any:
    """Call the task's function; a coroutine function returns its coroutine."""
    if task.options.raw:
        return task.run(request.job)
    if task.options.bind:
        return task.run(task, *request.args, **request.kwargs)
    return task.run(*request.args, **request.kwargs)


def _decode_arguments(
    task: Task[Any, Any], request: Request, args_json: str, kwargs_json: str, input_json: str | None
) -> None:
    args = codec.decode(args_json, "args") if args_json != "[]" else []
    kwargs = codec.decode(kwargs_json, "kwargs") if kwargs_json != "{}" else {}
    if not isinstance(args, list):
        raise DecodingError(f"args: expected a JSON array, found {type(args).__name__}")
    if not isinstance(kwargs, dict):
        raise DecodingError(f"kwargs: expected a JSON object, found {type(kwargs).__name__}")
    if input_json is not None:
        args.insert(0, codec.decode(input_json, "input"))
    if not task.options.raw and task.parameters.converts:
        args, kwargs = task.parameters.convert(args, kwargs)
    request.args = args
    request.kwargs = kwargs


def _succeeded(task: Task[Any, Any], request: Request, value: Any) -> Outcome:
    if value is None or not _stores_result(task.options, request):
        outcome = SUCCEEDED_WITHOUT_RESULT
    else:
        try:
            outcome = Outcome("succeeded", codec.encode(value, "result"))
        except EncodingError as error:  # running it again would give the same
            return _ended(task, request, Outcome("failed", error=describe(error)), error)
    return _ended(task, request, outcome, None, value)


def _stores_result(options: TaskOptions, request: Request) -> bool:
    return options.stores_result and not request.said.get("ignore_result")


def _ended(
    task: Task[Any, Any],
    request: Request,
    outcome: Outcome,
    error: BaseException | None,
    value: Any = None,
) -> Outcome:
    """Call the hooks of the task's class; one that raises fails the job, and says so."""
    if not task.has_hooks:
        return outcome
    info = str(outcome.error["traceback"]) if outcome.error else None
    args, kwargs = request.args, request.kwargs
    try:
        if outcome.kind == "succeeded":
            task.on_success(value, request.id, args, kwargs)
        elif outcome.kind == "retry" and error is not None:
            task.on_retry(error, request.id, args, kwargs, info or "")
        elif error is not None:
            task.on_failure(error, request.id, args, kwargs, info or "")
        status = {"succeeded": "SUCCESS", "retry": "RETRY"}.get(outcome.kind, "FAILURE")
        task.after_return(status, value if error is None else error, request.id, args, kwargs, info)
    except BaseException as broken:
        if _means_caller(broken, request):
            raise
        return outcome if outcome.kind == "failed" else Outcome("failed", error=describe(broken))
    return outcome


# Eager


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
        return asyncio.run(_awaited(awaitable))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, _awaited(awaitable)).result()


def _eager(app: App, new: NewJob, await_: Any) -> EagerResult[Any]:
    task = app.find_task(new.task)
    attempt = 0
    while True:
        attempt += 1
        request = eager_request(app, new, attempt)
        outcome = run_attempt(task, request, new.args, new.kwargs, None, await_)
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
