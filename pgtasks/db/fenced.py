"""The transaction of a transactional job: it commits with the fenced finish of the job, or not at all.

The finish is the last statement before the commit and is never sent together with it: its answer says
whether the job is still this worker's. A commit that was sent and not answered may have happened; then the
job's row tells: once the old session is gone, a row that has our token says that it did not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from pgtasks.db.run import arun, run
from pgtasks.db.statements import Statement, Steps, no_rows
from pgtasks.db.watched import NO_SETTINGS, REPLY_TIMEOUT
from pgtasks.errors import ConfigurationError, ConnectError, PgTasksError

if TYPE_CHECKING:
    from pgtasks.db.pools import AsyncConnection, Connection, Pools


# How long the server may take to hear that a statement is cancelled, in seconds.
CANCEL_WAIT = 5.0


class CommitLostError(ConnectError):
    """Whether the transaction was committed is not known."""


class Fenced:
    """A transaction on a synchronous connection that was lent."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._transaction = connection.transaction()

    def begin(self) -> int:
        """Begin; returns the pid of the session."""
        self.connection.reply_timeout = None
        self._transaction.__enter__()
        self.connection.execute(NO_SETTINGS)
        return self.connection.info.backend_pid

    def finish(self, parameters: Mapping[str, object]) -> bool:
        """Write the job's success; False: it is not this worker's any more."""
        self.connection.reply_timeout = REPLY_TIMEOUT
        check_open(self.connection)
        return run(self.connection, _finish(parameters))

    def commit(self) -> None:
        """Commit.

        Raises:
            CommitLostError: it is not known whether that happened.
            psycopg.Error: it did not.
        """
        try:
            self._transaction.__exit__(None, None, None)
        except psycopg.Error as error:
            raise _named(error, self.connection) from error
        check_committed(self.connection)

    def rollback(self) -> None:
        """Undo everything; also in the middle of a statement, if the task was interrupted there."""
        self.connection.reply_timeout = REPLY_TIMEOUT
        try:
            if self.connection.info.transaction_status == TransactionStatus.ACTIVE:
                self.connection.cancel_safe(timeout=CANCEL_WAIT)
                self.connection.close()
                return
            self._transaction.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
        except psycopg.Error:
            self.connection.close()


class AFenced:
    """A transaction on an asynchronous connection that was lent; see `Fenced`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._transaction = connection.transaction()

    async def begin(self) -> int:
        """Begin; returns the pid of the session."""
        self.connection.reply_timeout = None
        await self._transaction.__aenter__()
        await self.connection.execute(NO_SETTINGS)
        return self.connection.info.backend_pid

    async def finish(self, parameters: Mapping[str, object]) -> bool:
        """Write the job's success; False: it is not this worker's any more."""
        self.connection.reply_timeout = REPLY_TIMEOUT
        check_open(self.connection)
        return await arun(self.connection, _finish(parameters))

    async def commit(self) -> None:
        """Commit; see `Fenced.commit`."""
        try:
            await self._transaction.__aexit__(None, None, None)
        except psycopg.Error as error:
            raise _named(error, self.connection) from error
        check_committed(self.connection)

    async def rollback(self) -> None:
        """Undo everything; psycopg has cancelled a statement in whose middle the task was interrupted."""
        self.connection.reply_timeout = REPLY_TIMEOUT
        try:
            await self._transaction.__aexit__(psycopg.Rollback, psycopg.Rollback(), None)
        except psycopg.Error:
            await self.connection.close()


def check_open(connection: Connection | AsyncConnection) -> None:
    """Raise ConfigurationError if the task has ended the transaction by a statement of its own."""
    if connection.info.transaction_status == TransactionStatus.IDLE:
        raise ConfigurationError(
            "the task ended its transaction: leave commit and rollback to the worker, or use a savepoint "
            "(with connection.transaction(): …)"
        )


def check_committed(connection: Connection | AsyncConnection) -> None:
    """Raise CommitLostError if the connection broke: psycopg then leaves a transaction without a word."""
    if connection.info.transaction_status != TransactionStatus.IDLE:
        raise CommitLostError("the connection was lost before the commit was answered")


def _named(
    error: psycopg.Error, connection: Connection | AsyncConnection
) -> psycopg.Error | CommitLostError:
    """Return what an error of the commit means: refused, or unknown."""
    state = error.sqlstate
    if connection.closed or not state or state.startswith(("08", "57P")):
        return CommitLostError(str(error))
    return error


def _finish(parameters: Mapping[str, object]) -> Statement[bool]:
    return Statement(name="finish_jobs", parameters=parameters, read=bool)


def had_committed(pools: Pools, session: int, queue: str, job_id: str, token: str) -> bool | None:
    """Whether a job's transaction was committed whose commit was not answered; None: no way to know.

    Args:
        pools: where to connect anew.
        session: the pid of the session that ran it; ended, so that it does nothing later.
        queue: the job's.
        job_id: the job's.
        token: the job's, as it was claimed.
    """
    try:
        with pools.connect() as connection:
            run(
                connection,
                Statement(name="terminate_session", parameters={"pid": session}, read=no_rows),
            )
            return not run(connection, _still_held(queue, job_id, token))
    except (psycopg.Error, PgTasksError):
        return None


def _still_held(queue: str, job_id: str, token: str) -> Steps[bool]:
    yield Statement(name="limit_wait", read=no_rows)
    held: bool = yield Statement(
        name="lock_held", parameters={"queue": queue, "id": job_id, "token": token}, read=bool
    )
    return held
