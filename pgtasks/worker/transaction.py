"""Runs the attempts of transactional tasks: what the task writes and the job's success commit together.

Everything but success leaves the transaction rolled back and goes the ordinary way, through the parent.
`run_transaction` and `arun_transaction` are twins.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pgtasks.context import Request, connection_var, having, request_var
from pgtasks.guard import Guard, guard_var
from pgtasks.worker.attempt import (
    aperform,
    decode_arguments,
    ended,
    failure,
    perform,
    success,
)
from pgtasks.worker.outcome import Outcome, describe, of_exception, over_limit

if TYPE_CHECKING:
    from pgtasks.task import Task
    from pgtasks.worker.interrupts import CoroutineGuard
    from pgtasks.worker.messages import ClaimedRow

COMMITTED = Outcome("committed")
LATE = Outcome("late")
UNSETTLED = Outcome("unsettled")


@dataclass(frozen=True, slots=True)
class Fence:
    """What a transactional attempt needs beyond its row.

    Attributes:
        token: proves that the job is this worker's.
        started: when it began (monotonic).
        set_session: notes on the slate in which session it runs.
    """

    token: str
    started: float
    set_session: Callable[[int], None]


def run_transaction(
    task: Task[Any, Any],
    request: Request,
    row: ClaimedRow,
    fence: Fence,
    guard: Guard,
    await_: Callable[[Awaitable[Any]], Any],
) -> Outcome:
    """Run one attempt in a transaction. Raises nothing."""
    token = request_var.set(request)
    try:
        failed = decode_arguments(task, request, row.args, row.kwargs, row.input)
        return failed or _in_transaction(task, request, row, fence, guard, await_)
    except BaseException as error:  # noqa: BLE001 (a user's hooks and types)
        return Outcome("failed", error=describe(error))
    finally:
        request.over = True
        request_var.reset(token)


def _in_transaction(
    task: Task[Any, Any],
    request: Request,
    row: ClaimedRow,
    fence: Fence,
    guard: Guard,
    await_: Callable[[Awaitable[Any]], Any],
) -> Outcome:
    from pgtasks.db.fenced import CommitLostError, Fenced, had_committed

    app = request.app
    try:
        connection, give_back = app.pools.borrow()
    except Exception as away:  # noqa: BLE001 (no database: the job fails by its policy)
        return failure(task, request, away)
    try:
        transaction = Fenced(connection)
        session = transaction.begin()
        fence.set_session(session)
        request._connection = connection
        with having(connection_var, {**connection_var.get(), id(app): connection}):
            value, error = perform(task, request, guard, await_)
            outcome = _decide(task, request, value, error)
        if outcome.kind != "succeeded":
            transaction.rollback()
            return outcome if error is None else ended(task, request, outcome, error)
        try:
            if not transaction.finish(_success(task, row, fence, outcome)):
                transaction.rollback()
                return LATE
        except Exception as broken:  # noqa: BLE001 (whatever the database says)
            transaction.rollback()
            return failure(task, request, broken)
        try:
            transaction.commit()
        except CommitLostError as lost:
            committed = had_committed(app.pools, session, row.queue, row.id, fence.token)
            return (
                UNSETTLED
                if committed is None
                else COMMITTED
                if committed
                else failure(task, request, lost)
            )
        return COMMITTED
    except Exception as refused:  # noqa: BLE001 (whatever the database says: nothing was committed)
        return failure(task, request, refused)
    finally:
        give_back()


async def arun_transaction(
    task: Task[Any, Any],
    request: Request,
    row: ClaimedRow,
    fence: Fence,
    guard: CoroutineGuard,
    limit: float | None,
) -> Outcome:
    """Run one attempt in a transaction, in the asyncio task that awaits this. Raises nothing."""
    request_var.set(request)
    guard_var.set(guard)
    try:
        failed = decode_arguments(task, request, row.args, row.kwargs, row.input)
        return failed or await _ain_transaction(task, request, row, fence, guard, limit)
    except BaseException as error:  # noqa: BLE001 (a user's hooks and types)
        return Outcome("failed", error=describe(error))
    finally:
        request.over = True


async def _ain_transaction(
    task: Task[Any, Any],
    request: Request,
    row: ClaimedRow,
    fence: Fence,
    guard: CoroutineGuard,
    limit: float | None,
) -> Outcome:
    from asyncio import to_thread

    from pgtasks.db.fenced import AFenced, CommitLostError, had_committed

    app = request.app
    try:
        connection, give_back = await app.pools.aborrow()
    except Exception as away:  # noqa: BLE001 (no database: the job fails by its policy)
        return failure(task, request, away)
    try:
        transaction = AFenced(connection)
        session = await transaction.begin()
        fence.set_session(session)
        request._connection = connection
        with having(connection_var, {**connection_var.get(), id(app): connection}):
            value, error = await aperform(task, request, guard)
            if guard.over:
                error = over_limit(limit, error)
            outcome = _decide(task, request, value, error)
        if outcome.kind != "succeeded":
            await transaction.rollback()
            return outcome if error is None else ended(task, request, outcome, error)
        try:
            if not await transaction.finish(_success(task, row, fence, outcome)):
                await transaction.rollback()
                return LATE
        except Exception as broken:  # noqa: BLE001 (whatever the database says)
            await transaction.rollback()
            return failure(task, request, broken)
        try:
            await transaction.commit()
        except CommitLostError as lost:
            ask = partial(had_committed, app.pools, session, row.queue, row.id, fence.token)
            committed = await to_thread(ask)
            return (
                UNSETTLED
                if committed is None
                else COMMITTED
                if committed
                else failure(task, request, lost)
            )
        return COMMITTED
    except Exception as refused:  # noqa: BLE001 (whatever the database says: nothing was committed)
        return failure(task, request, refused)
    finally:
        await give_back()


def _decide(
    task: Task[Any, Any], request: Request, value: Any, error: BaseException | None
) -> Outcome:
    """Say what the body's end means; the hooks of a success are called, as part of the transaction."""
    if error is None:
        return success(task, request, value)
    outcome = of_exception(error, request.job, task.options, datetime.now(UTC))
    return ended(task, request, outcome, error) if outcome.kind == "succeeded" else outcome


def _success(
    task: Task[Any, Any], row: ClaimedRow, fence: Fence, outcome: Outcome
) -> dict[str, object]:
    """Return the parameters of finish_jobs; the claim is the parent's to delete."""
    return {
        "queue": [row.queue],
        "id": [row.id],
        "token": [fence.token],
        "outcome": ["succeeded"],
        "result": [outcome.result],
        "error": [None],
        "delay": [None],
        "age": [time.monotonic() - fence.started],
        "keep": [task.options.keep_history],
        "claims": [],
    }
