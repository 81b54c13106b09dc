"""The server's queue of notifications is full, because somebody sleeps in a transaction and listens.

From PostgreSQL 17 on the queue's size is a setting, so that it can be filled here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgtasks.db.embedded import TemporaryServer
from tests.chaos.conftest import Look
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    Workers,
    wait_until_begun,
    wait_until_finished,
    wait_until_idle,
)

pytestmark = pytest.mark.chaos

SETTINGS = {"max_notify_queue_pages": "64"}
POLL = 1.0  # a worker's default


@contextmanager
def full_queue(server: TemporaryServer) -> Iterator[None]:
    """Let a listener sleep in a transaction, and notify until no more is taken."""
    with (
        psycopg.connect(server.dsn) as sleeper,
        psycopg.connect(server.dsn, autocommit=True) as other,
    ):
        sleeper.execute("listen somewhere")
        sleeper.commit()
        sleeper.execute("select 1")  # and sleeps in this transaction
        try:
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="too many notifications"):
                fill(other)
            yield
        finally:
            sleeper.rollback()


def fill(connection: psycopg.Connection[Any]) -> None:
    for number in range(10_000):
        connection.execute("select pg_notify('somewhere', %s)", [f"{number} {'x' * 7000}"])


@pytest.fixture(autouse=True)
def room(server: TemporaryServer) -> None:
    """Make room: what an earlier test filled stays full until somebody asks how full it is."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        row = connection.execute("select pg_notification_queue_usage()").fetchone()
    assert row == (0.0,)


def test_sleeping_listener_delays_nothing_while_the_queue_has_room(
    server: TemporaryServer, workers: Workers, runs: Runs, look: Look, measured: Measured
) -> None:
    worker = workers.start(concurrency=1)
    wait_until_idle(look.open())
    with psycopg.connect(server.dsn) as sleeper:
        sleeper.execute("listen somewhere")
        sleeper.commit()
        sleeper.execute("select 1")
        began = time.monotonic()
        sample_app.step.delay(runs.path).get(timeout=10)
        measured("listener asleep in a transaction: enqueue to result", time.monotonic() - began)
        sleeper.rollback()

    assert worker.stop() == 0


def test_full_queue_costs_a_poll_interval_and_no_job(
    server: TemporaryServer, workers: Workers, runs: Runs, look: Look, measured: Measured
) -> None:
    """An idle worker asks for notifications, so an enqueue sends one; it is stored all the same."""
    worker = workers.start(concurrency=1)
    wait_until_idle(look.open())
    with full_queue(server):
        began = time.monotonic()
        single = sample_app.step.delay(runs.path)
        many = sample_app.app.enqueue_many(sample_app.step.s(runs.path) for _ in range(20))
        scheduled = sample_app.step.apply_async((runs.path,), countdown=0.1)
        results = [single, *many, scheduled]
        wait_until_finished(look.open(), len(results))
        measured("notification queue full: enqueue to end", time.monotonic() - began)

    check(look.open(), runs, {result.id for result in results}).assert_sound()
    assert {len(found) for found in runs.by_job().values()} == {1}
    assert worker.stop() == 0


def test_full_queue_makes_no_failure_of_a_success_that_somebody_waits_for(
    server: TemporaryServer, workers: Workers, runs: Runs, gate: Gate, look: Look
) -> None:
    worker = workers.start(concurrency=1)
    result = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)
    # What get() does while it waits: finishing sends a notification then.
    look.open().execute("insert into pgtasks.listener (id) values (gen_random_uuid())")
    with full_queue(server):
        gate.open()
        eventually(lambda: _has_stopped(look, result), 10.0)

    job = result.job()
    assert (str(job.state), job.attempt, len(runs.of(result.id))) == ("succeeded", 1, 1)
    assert worker.stop() == 0


def _has_stopped(look: Look, result: Any) -> None:
    assert look.one("select count(*) from pgtasks.job_history where id = %s", result.id) == 1


def test_queue_that_has_room_again_wakes_again(
    server: TemporaryServer, workers: Workers, runs: Runs, look: Look, measured: Measured
) -> None:
    worker = workers.start(concurrency=1, poll_interval=30.0)
    wait_until_idle(look.open())
    with full_queue(server):
        pass
    began = time.monotonic()
    result = sample_app.step.delay(runs.path)
    wait_until_begun(runs, result.id)
    measured("notification queue has room again: enqueue to begin", time.monotonic() - began)

    wait_until_finished(look.open(), 1)
    assert worker.stop() == 0
