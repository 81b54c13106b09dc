"""Where operations meet connections: ``run`` for a synchronous one, ``arun`` for an asynchronous one.

An operation is a `Statement`, or a generator that yields statements (and copies), is sent what each
returned, and returns its own result. A generator is one transaction; inside a caller's transaction
it is a savepoint. Both drivers are alike line by line, and hold no other logic.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import psycopg
from psycopg.rows import tuple_row

from pgtasks.db.statements import Copy, Statement
from pgtasks.errors import ConnectError, DatabaseError, DuplicateJobError, SchemaError

T = TypeVar("T")
Step = Statement[Any] | Copy
Steps = Generator[Step, Any, T]
Operation = Statement[T] | Steps[T]


def run(connection: psycopg.Connection[Any], operation: Operation[T]) -> T:
    """Run an operation on a connection and return what it returns."""
    with errors_named(), connection.cursor(row_factory=tuple_row) as cursor:
        if isinstance(operation, Statement):
            return _execute(cursor, operation)
        with connection.transaction():
            reply: Any = None
            while True:
                try:
                    step = operation.send(reply)
                except StopIteration as stop:
                    return cast("T", stop.value)
                if isinstance(step, Copy):
                    with cursor.copy(step.sql) as copy:
                        copy.write(step.data)
                    reply = None
                else:
                    reply = _execute(cursor, step)


async def arun(connection: psycopg.AsyncConnection[Any], operation: Operation[T]) -> T:
    """Run an operation on an asynchronous connection and return what it returns."""
    with errors_named():
        async with connection.cursor(row_factory=tuple_row) as cursor:
            if isinstance(operation, Statement):
                return await _aexecute(cursor, operation)
            async with connection.transaction():
                reply: Any = None
                while True:
                    try:
                        step = operation.send(reply)
                    except StopIteration as stop:
                        return cast("T", stop.value)
                    if isinstance(step, Copy):
                        async with cursor.copy(step.sql) as copy:
                            await copy.write(step.data)
                        reply = None
                    else:
                        reply = await _aexecute(cursor, step)


def _execute(cursor: psycopg.Cursor[Any], statement: Statement[T]) -> T:
    cursor.execute(statement.sql, statement.parameters)
    return statement.read(cursor.fetchall() if cursor.description else ())


async def _aexecute(cursor: psycopg.AsyncCursor[Any], statement: Statement[T]) -> T:
    await cursor.execute(statement.sql, statement.parameters)
    return statement.read(await cursor.fetchall() if cursor.description else ())


@contextmanager
def errors_named() -> Iterator[None]:
    """Raise pgtasks' own errors for what a user can act on; everything else stays psycopg's."""
    try:
        yield
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable) as error:
        raise SchemaError(
            f"the schema pgtasks is not installed ({_first_line(error)}): run 'pgtasks migrate'"
        ) from error
    except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedFunction) as error:
        raise SchemaError(
            f"the schema pgtasks is of another version ({_first_line(error)}): run 'pgtasks migrate'"
        ) from error
    except psycopg.errors.UniqueViolation as error:
        raise DuplicateJobError(
            f"a job with this id exists already: {error.diag.message_detail}"
        ) from error
    except psycopg.errors.CheckViolation as error:
        raise DatabaseError(_first_line(error)) from error
    except psycopg.OperationalError as error:
        if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
            raise ConnectError(_first_line(error)) from error
        raise


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
