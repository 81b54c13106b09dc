"""Runs one attempt of a job: decode the arguments, rebuild the annotated ones, call, decide what it means.

Whatever is raised is the job's failure, also by what is the user's around the task: types that are rebuilt
or encoded, retry schedules, hooks. It must not end the child, which has other jobs to run.

`run_attempt` and `arun_attempt` are twins: in the second, what the task returns is awaited on the running
loop. A `Closing` takes part in the attempt of a transactional task (see `pgtasks.worker.transaction`).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgtasks import codec
from pgtasks.context import Request, request_var
from pgtasks.errors import Cancelled, DecodingError, EncodingError, SoftTimeLimitExceeded
from pgtasks.guard import Guard, guard_var
from pgtasks.worker.errback import failure_arguments, takes_error
from pgtasks.worker.interrupts import CoroutineGuard, Interruptible
from pgtasks.worker.outcome import Outcome, describe, of_exception, over_limit

if TYPE_CHECKING:
    from pgtasks.options import TaskOptions
    from pgtasks.task import Task

SUCCEEDED_WITHOUT_RESULT = Outcome("succeeded")


def run_attempt(
    task: Task[Any, Any],
    request: Request,
    args_json: str,
    kwargs_json: str,
    input_json: str | None,
    guard: Guard,
    await_: Callable[[Awaitable[Any]], Any],
) -> Outcome:
    """Run one attempt in this thread. Raises nothing in a worker.

    Raises:
        KeyboardInterrupt: in an eager run, where it means the caller; so do the interrupts of a job in
            which it runs.
    """
    token = request_var.set(request)
    try:
        failed = decode_arguments(task, request, args_json, kwargs_json, input_json)
        if failed is not None:
            return failed
        value, error = perform(task, request, guard, await_)
        if error is not None:
            if _means_caller(error, request):
                raise error
            return failure(task, request, error)
        return success(task, request, value)
    except BaseException as error:
        if _means_caller(error, request):
            raise
        return Outcome("failed", error=describe(error))
    finally:
        request.over = True
        request_var.reset(token)


async def arun_attempt(
    task: Task[Any, Any],
    request: Request,
    args_json: str,
    kwargs_json: str,
    input_json: str | None,
    guard: CoroutineGuard,
    limit: float | None,
) -> Outcome:
    """Run one attempt in the asyncio task that awaits this. Raises nothing; ``limit`` is for an error's text."""
    request_var.set(request)
    guard_var.set(guard)
    try:
        failed = decode_arguments(task, request, args_json, kwargs_json, input_json)
        if failed is not None:
            return failed
        value, error = await aperform(task, request, guard)
        if guard.over:
            error = over_limit(limit, error)
        if error is not None:
            return failure(task, request, error)
        return success(task, request, value)
    except BaseException as error:  # noqa: BLE001 (a user's hooks and types)
        return Outcome("failed", error=describe(error))
    finally:
        request.over = True


def perform(
    task: Task[Any, Any],
    request: Request,
    guard: Guard,
    await_: Callable[[Awaitable[Any]], Any],
) -> tuple[Any, BaseException | None]:
    """Call the task: its value, or what it raised."""
    try:
        try:
            # Whatever comes between opening and the first call, or after the last, comes in one step: see `Guard`.
            guard.open = True
            if guard.pending is not None:
                guard.release()
            if task.has_hooks:
                task.before_start(request.id, request.args, request.kwargs)
            options = task.options
            if options.raw:
                value = task.run(request.job)
            elif options.bind:
                value = task.run(task, *request.args, **request.kwargs)
            else:
                value = task.run(*request.args, **request.kwargs)
            if value is not None and inspect.isawaitable(value):
                value = await_(value)
        finally:
            guard.open = False
            if guard.sent:
                guard.settle()  # may yet be interrupted
    except BaseException as error:  # noqa: BLE001 (a user's task)
        return None, error
    return value, None


async def aperform(
    task: Task[Any, Any], request: Request, guard: CoroutineGuard
) -> tuple[Any, BaseException | None]:
    """Call the task and await what it returns: its value, or what it raised."""
    try:
        try:
            guard.enter()
            if task.has_hooks:
                task.before_start(request.id, request.args, request.kwargs)
            value = call(task, request)
            if value is not None and inspect.isawaitable(value):
                value = await Interruptible(value, guard)
        finally:
            guard.open = False
    except BaseException as error:  # noqa: BLE001 (a user's task)
        return None, error
    return value, None


def call(task: Task[Any, Any], request: Request) -> Any:
    """Call the task's function; a coroutine function returns its coroutine."""
    if task.options.raw:
        return task.run(request.job)
    if task.options.bind:
        return task.run(task, *request.args, **request.kwargs)
    return task.run(*request.args, **request.kwargs)


def not_run(
    task: Task[Any, Any],
    request: Request,
    args_json: str,
    kwargs_json: str,
    input_json: str | None,
    error: BaseException,
) -> Outcome:
    """Say what an error means for a job that it ended without being raised in it, and call its hooks."""
    token = request_var.set(request)
    try:
        failed = decode_arguments(task, request, args_json, kwargs_json, input_json)
        return failure(task, request, error) if failed is None else failed
    except BaseException as broken:  # noqa: BLE001 (a user's hooks and types)
        return Outcome("failed", error=describe(broken))
    finally:
        request_var.reset(token)


def _means_caller(error: BaseException, request: Request) -> bool:
    """Whether this is Ctrl-C in a program that runs its jobs eagerly, or meant for the job that does."""
    if not request.is_eager:
        return False
    if isinstance(error, Cancelled | SoftTimeLimitExceeded):
        return guard_var.get() is not None
    return isinstance(error, KeyboardInterrupt)


def decode_arguments(
    task: Task[Any, Any], request: Request, args_json: str, kwargs_json: str, input_json: str | None
) -> Outcome | None:
    """Decode what the request carries; an outcome if that cannot be done."""
    try:
        args = codec.decode(args_json, "args") if args_json != "[]" else []
        kwargs = codec.decode(kwargs_json, "kwargs") if kwargs_json != "{}" else {}
        if not isinstance(args, list):
            raise DecodingError(f"args: expected a JSON array, found {type(args).__name__}")
        if not isinstance(kwargs, dict):
            raise DecodingError(f"kwargs: expected a JSON object, found {type(kwargs).__name__}")
        if input_json is not None:
            args.insert(0, codec.decode(input_json, "input"))
            if request.said.get("errback") and takes_error(task, args, kwargs):
                args[:1] = failure_arguments(request.app, str(args[0]))
        if not task.options.raw and task.parameters.converts:
            args, kwargs = task.parameters.convert(args, kwargs)
    except DecodingError as error:
        return ended(task, request, Outcome("failed", error=describe(error)), error)
    request.args = args
    request.kwargs = kwargs
    return None


def failure(task: Task[Any, Any], request: Request, error: BaseException) -> Outcome:
    """Say what an exception means, and call the hooks."""
    outcome = of_exception(error, request.job, task.options, datetime.now(UTC))
    return ended(task, request, outcome, error)


def success(task: Task[Any, Any], request: Request, value: Any) -> Outcome:
    """Encode what the task returned, if it is kept, and call the hooks."""
    if value is None or not _stores_result(task.options, request):
        outcome = SUCCEEDED_WITHOUT_RESULT
    else:
        try:
            outcome = Outcome("succeeded", codec.encode(value, "result"))
        except EncodingError as error:  # running it again would give the same
            return ended(task, request, Outcome("failed", error=describe(error)), error)
    return ended(task, request, outcome, None, value) if task.has_hooks else outcome


def _stores_result(options: TaskOptions, request: Request) -> bool:
    return not request.said.get("ignore_result", not options.stores_result)


def ended(
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
        elif outcome.kind == "failed" and error is not None:
            task.on_failure(error, request.id, args, kwargs, info or "")
        status = _STATUS.get(outcome.kind, "FAILURE")
        task.after_return(status, value if error is None else error, request.id, args, kwargs, info)
    except BaseException as broken:
        if _means_caller(broken, request):
            raise
        return outcome if outcome.kind == "failed" else Outcome("failed", error=describe(broken))
    return outcome


_STATUS = {"succeeded": "SUCCESS", "retry": "RETRY", "cancelled": "REVOKED", "replace": "IGNORED"}
