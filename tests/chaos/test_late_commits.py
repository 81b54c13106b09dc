"""Transactions that enqueue commit late, in part, or never: each committed job is claimed soon after."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgtasks import AsyncResult
from pgtasks.db.embedded import TemporaryServer
from pgtasks.ids import new_id
from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.figures import Measured
from tests.fixtures.producer import Producer
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Workers, until, wait_until_finished

pytestmark = pytest.mark.chaos

# A sweep a second, and as long again for a machine that is busy with the test.
CLAIMED_WITHIN = 2.0
COPY = 12  # so many jobs at once go by COPY
# Before the backlog, whose only purpose is that no queue ever looks empty: then all would be looked at anew.
PRIORITY = 5

Connection = psycopg.Connection[Any]


class Enqueuer(threading.Thread):
    """Enqueues in transactions that stay open for a while, in each of the ways there are."""

    def __init__(self, dsn: str, ledger: str, rng: random.Random, most: float) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self._ledger = ledger
        self._rng = rng
        self._most = most
        self._stop_asked = threading.Event()
        self.committed: dict[str, float] = {}  # job -> monotonic moment of its commit
        self.prepared = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        ways: list[Callable[[Connection], list[str]]] = [
            self._commit,
            self._roll_back,
            self._savepoints,
            self._prepare,
        ]
        try:
            while not self._stop_asked.is_set():
                with psycopg.connect(self._dsn, application_name="producer") as connection:
                    ids = self._rng.choice(ways)(connection)
                    moment = time.monotonic()
                self.committed.update(dict.fromkeys(ids, moment))
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(self._most + 10)
        assert not self.is_alive()
        assert self.failure is None, self.failure

    def _enqueue(self, connection: Connection) -> list[str]:
        ids = [new_id() for _ in range(self._rng.choice([1, 1, 3, COPY]))]
        sample_app.app.enqueue_many(
            (sample_app.step.s(self._ledger).set(task_id=id, priority=PRIORITY) for id in ids),
            connection=connection,
        )
        return ids

    def _hold(self) -> None:
        until(time.monotonic() + self._rng.uniform(0.0, self._most))

    def _commit(self, connection: Connection) -> list[str]:
        ids = self._enqueue(connection)
        self._hold()
        ids += self._enqueue(connection)
        connection.commit()
        return ids

    def _roll_back(self, connection: Connection) -> list[str]:
        self._enqueue(connection)
        self._hold()
        connection.rollback()
        return []

    def _savepoints(self, connection: Connection) -> list[str]:
        ids = self._enqueue(connection)
        with connection.transaction(force_rollback=True):
            self._enqueue(connection)
        self._hold()
        with connection.transaction():
            ids += self._enqueue(connection)
        connection.commit()
        return ids

    def _prepare(self, connection: Connection) -> list[str]:
        name = new_id()
        ids = self._enqueue(connection)
        try:
            connection.execute(f"prepare transaction '{name}'")
        except psycopg.errors.FeatureNotSupported:
            return []  # PostgreSQL prepares none that notifies: a worker that listens was idle
        self.prepared += 1
        connection.commit()
        self._hold()
        connection.autocommit = True
        # Nobody may rely on the session's end here: the transaction is the server's.
        if self._rng.random() < 0.3:
            connection.execute(f"rollback prepared '{name}'")
            return []
        connection.execute(f"commit prepared '{name}'")
        return ids


@pytest.mark.parametrize(
    "listen",
    [False, pytest.param(True, marks=pytest.mark.long)],
    ids=["by-sweeps-and-polls", "notified"],
)
def test_each_job_is_claimed_soon_after_its_commit_and_never_before(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
    listen: bool,
) -> None:
    """Others enqueue fast, so that the cursors run far ahead of what commits late."""
    both = [workers.start(concurrency=2, name=f"w{n}", listen=listen) for n in range(2)]
    fast = Producer(server.dsn, runs.path, pause=0.005, priority=PRIORITY)
    seconds = scale.seconds(4.0, most=180.0)
    backlog = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, 0.01)
        for _ in range(round(seconds * 4 * 100) + 400)
    )
    most = scale.seconds(1.5, most=60.0)
    late = [Enqueuer(server.dsn, runs.path, random.Random(rng.random()), most) for _ in range(6)]
    fast.start()
    for one in late:
        one.start()
    until(time.monotonic() + seconds)
    for one in late:
        one.stop()
    fast.stop()
    wait_until_finished(look.open(), timeout=60 + seconds)

    committed_at = {id: at for one in late for id, at in one.committed.items()}
    assert len(committed_at) > 20
    assert listen or sum(one.prepared for one in late) > 0
    verdict = check(look.open(), runs, {*fast.committed, *committed_at, *ids_of(backlog)})
    verdict.assert_sound()  # what was rolled back did not run: unexpected would say so
    verdict.assert_all_succeeded()
    waits = [
        found[0].began - committed_at[id]
        for id, found in runs.by_job().items()
        if id in committed_at
    ]
    measured("late commit, rollbacks, savepoints, COPY, 2PC: claimed after, at worst", max(waits))
    assert max(waits) <= CLAIMED_WITHIN
    assert [worker.stop() for worker in both] == [0, 0]


def ids_of(results: list[AsyncResult[Any]]) -> set[str]:
    return {result.id for result in results}
