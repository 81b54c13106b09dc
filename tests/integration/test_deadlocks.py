"""An operation that met a deadlock begins again, where it is a transaction of its own."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgtasks import App
from pgtasks.db.statements import Repeatable, Statement, Steps, no_rows, repeatable
from tests.fixtures.bundles import insert_job
from tests.fixtures.eventually import eventually
from tests.fixtures.simulated_worker import blocked_on_a_lock

LOCK = "select from pgtasks.job where id = %s for update"


class Crossing:
    """An operation that locks two jobs, one after the other, and says when."""

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second
        self.begun = 0
        self.has_first = threading.Event()

    def steps(self) -> Steps[int]:
        self.begun += 1
        yield self.lock(self.first)
        self.has_first.set()
        yield self.lock(self.second)
        return self.begun

    def lock(self, id: str) -> Statement[None]:
        return Statement(name="lock_unblocked", parameters={"ids": [id]}, read=no_rows)

    def repeatable(self) -> Repeatable[int]:
        return repeatable(self.steps)()


@pytest.fixture
def crossing(connection: psycopg.Connection[Any]) -> Crossing:
    return Crossing(insert_job(connection), insert_job(connection))


@contextmanager
def meets_itself(dsn: str, crossing: Crossing) -> Iterator[None]:
    """Lock the jobs the other way round, at the worst moment; never be the one that PostgreSQL ends."""

    def lock(look: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> None:
        with other.transaction():
            other.execute(LOCK, [crossing.second])
            ready.set()
            crossing.has_first.wait(20)
            eventually(lambda: somebody_waits_for(look, other.info.backend_pid))
            other.execute(LOCK, [crossing.first])

    ready = threading.Event()
    with (
        psycopg.connect(dsn, autocommit=True) as look,
        psycopg.connect(dsn, autocommit=True) as other,
    ):
        other.execute("set deadlock_timeout = '1min'")
        thread = threading.Thread(target=lock, args=[look, other])
        thread.start()
        assert ready.wait(20)
        try:
            yield
        finally:
            crossing.has_first.set()
            thread.join(30)
    assert not thread.is_alive()


def somebody_waits_for(look: psycopg.Connection[Any], pid: int) -> None:
    row = look.execute(
        "select pid from pg_stat_activity where %s = any(pg_blocking_pids(pid))", [pid]
    ).fetchone()
    assert row is not None, "nobody waits yet"
    blocked_on_a_lock(look, row[0])


def in_a_loop(app: App, operation: Any) -> Any:
    async def main() -> Any:
        try:
            return await app.arun(operation)
        finally:
            await app.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize("run", [App.run, in_a_loop], ids=["sync", "async"])
def test_operation_that_met_a_deadlock_begins_again(
    app: App, dsn: str, crossing: Crossing, run: Callable[..., Any]
) -> None:
    with meets_itself(dsn, crossing):
        begun = run(app, crossing.repeatable())

    assert begun == 2


def test_deadlock_in_the_callers_transaction_is_the_callers(
    app: App, dsn: str, crossing: Crossing
) -> None:
    with (
        meets_itself(dsn, crossing),
        psycopg.connect(dsn) as mine,
        pytest.raises(psycopg.errors.DeadlockDetected),
    ):
        app.run(crossing.repeatable(), mine)

    assert crossing.begun == 1
