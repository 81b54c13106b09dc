"""Where operations meet connections: ``run`` for a synchronous one, ``arun`` for an asynchronous one.

An operation is a `Statement`, or a generator that yields statements (and copies), is sent what each
returned, and returns its own result. A generator is one transaction; inside a caller's transaction
it is a savepoint. Both drivers are alike line by line, and hold no other logic.

Writers lock in one order (see ``lock_jobs`` in schema/). A graph that grows while somebody waits for its locks can
still end in a deadlock, of which PostgreSQL breaks off one side: ``run_alone`` and ``arun_alone`` begin that one again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from typing import Any, TypeVar, cast

import psycopg
from psycopg.rows import tuple_row

from pgtasks.db.statements import Copy, Repeatable, Statement, Steps
from pgtasks.errors import (
    ConnectError,
    DatabaseError,
    DuplicateJobError,
    JobStateError,
    SchemaError,
)

T = TypeVar("T")
Operation = Statement[T] | Steps[T] | Repeatable[T]

# How often an operation that met a deadlock is begun, and after how many seconds more each time, on the average: the
# other side must be quicker, or both meet again.
TRIES = 5
PAUSE = 0.05


def run_alone(connection: psycopg.Connection[Any], operation: Operation[T]) -> T:
    """Run an operation that is a transaction of its own, again if it met a deadlock."""
    for tried in range(1, TRIES):
        try:
            return run(connection, operation)
        except psycopg.errors.DeadlockDetected:
            if isinstance(operation, Generator):
                raise
        time.sleep(_pause(tried))
    return run(connection, operation)


async def arun_alone(connection: psycopg.AsyncConnection[Any], operation: Operation[T]) -> T:
    """Run an operation that is a transaction of its own, again if it met a deadlock."""
    from asyncio import sleep  # not needed by most programs, and slow to import

    for tried in range(1, TRIES):
        try:
            return await arun(connection, operation)
        except psycopg.errors.DeadlockDetected:
            if isinstance(operation, Generator):
                raise
        await sleep(_pause(tried))
    return await arun(connection, operation)


def run(connection: psycopg.Connection[Any], operation: Operation[T]) -> T:
    """Run an operation on a connection and return what it returns."""
    try:
        with connection.cursor(row_factory=tuple_row) as cursor:
            if isinstance(operation, Statement):
                return _execute(cursor, operation)
            if _would_commit(connection):
                cursor.execute(BEGIN)
            with connection.transaction():
                steps = iter(operation)
                reply: Any = None
                while True:
                    try:
                        step = steps.send(reply)
                    except StopIteration as stop:
                        return cast("T", stop.value)
                    if isinstance(step, Copy):
                        with cursor.copy(step.sql) as copy:
                            for piece in step.pieces:
                                copy.write(piece)
                        reply = None
                    else:
                        reply = _execute(cursor, step)
    except psycopg.Error as error:
        ours = named(error)
        if ours is None:
            raise
        raise ours from error


async def arun(connection: psycopg.AsyncConnection[Any], operation: Operation[T]) -> T:
    """Run an operation on an asynchronous connection and return what it returns."""
    try:
        async with connection.cursor(row_factory=tuple_row) as cursor:
            if isinstance(operation, Statement):
                return await _aexecute(cursor, operation)
            if _would_commit(connection):
                await cursor.execute(BEGIN)
            async with connection.transaction():
                steps = iter(operation)
                reply: Any = None
                while True:
                    try:
                        step = steps.send(reply)
                    except StopIteration as stop:
                        return cast("T", stop.value)
                    if isinstance(step, Copy):
                        async with cursor.copy(step.sql) as copy:
                            for piece in step.pieces:
                                await copy.write(piece)
                        reply = None
                    else:
                        reply = await _aexecute(cursor, step)
    except psycopg.Error as error:
        ours = named(error)
        if ours is None:
            raise
        raise ours from error


def _pause(tried: int) -> float:
    return random.uniform(0.5, 1.5) * PAUSE * tried


# Any statement begins a transaction on a connection that is not in autocommit mode.
BEGIN = "select"


def _would_commit(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether a ``transaction()`` block would be a whole transaction, though the caller's begins with it."""
    idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    return idle and not connection.autocommit


def _execute(cursor: psycopg.Cursor[Any], statement: Statement[T]) -> T:
    cursor.execute(statement.sql, statement.parameters)
    return statement.read(cursor.fetchall() if cursor.description else ())


async def _aexecute(cursor: psycopg.AsyncCursor[Any], statement: Statement[T]) -> T:
    await cursor.execute(statement.sql, statement.parameters)
    return statement.read(await cursor.fetchall() if cursor.description else ())


def named(error: psycopg.Error) -> Exception | None:
    """Return pgtasks' own error for what a user can act on; None: it stays psycopg's."""
    why = _first_line(error)
    match error:
        case psycopg.errors.InvalidSchemaName() | psycopg.errors.UndefinedTable():
            return SchemaError(
                f"the schema pgtasks is not installed ({why}): run 'pgtasks migrate'"
            )
        case psycopg.errors.UndefinedColumn() | psycopg.errors.UndefinedFunction():
            return SchemaError(
                f"the schema pgtasks is of another version ({why}): run 'pgtasks migrate'"
            )
        case psycopg.errors.UniqueViolation():
            return DuplicateJobError(
                f"a job with this id exists already: {error.diag.message_detail}"
            )
        case psycopg.errors.ObjectInUse():  # raised by our functions: a unique key that another job has
            return JobStateError(why)
        case psycopg.errors.CheckViolation():
            return DatabaseError(why)
        case psycopg.errors.QueryCanceled() | psycopg.errors.LockNotAvailable():
            return DatabaseError(f"the database took too long: {why}")
        case psycopg.OperationalError() if not error.sqlstate or error.sqlstate.startswith(
            ("08", "57P")
        ):
            return ConnectError(why)
        case _:
            return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
