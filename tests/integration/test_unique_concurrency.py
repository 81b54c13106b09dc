"""Two processes that want the same keys at the same moment: one of them gets each, and none meets a deadlock."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import psycopg
import pytest

from pgtasks import App
from tests.fixtures.eventually import eventually
from tests.fixtures.simulated_worker import blocked_on_a_lock, count_rows

SPAWN = multiprocessing.get_context("spawn")
ROUNDS = 200
BATCHES = 10

Said = list[tuple[str, bool]]


def call_at_once(dsn: str, start: Any, answers: Any) -> None:
    """In a process: one call a key, each at the same moment as the other process."""
    app = App("producer", dsn)
    app.send_task("warm.up")
    said: Said = []
    for n in range(ROUNDS):
        start.wait(30)
        result = app.send_task("t", (n,), unique=True)
        said.append((result.id, result.created))
    answers.put(said)
    app.close()


def call_in_batches(dsn: str, start: Any, answers: Any) -> None:
    """In a process: the same keys in another order each time, in one transaction."""
    app = App("producer", dsn)
    said: Said = []
    for n in range(BATCHES):
        order = [*range(20)] if answers.is_first else [*reversed(range(20))]
        start.wait(30)
        calls = [app.signature("t", (n, one)).set(unique=True) for one in order]
        results = app.enqueue_many(calls)
        said += [(one.id, one.created) for one in sorted(results, key=lambda one: one.id)]
    answers.put(said)
    app.close()


class Answers:
    """Where a process puts what it got; and whether it is the first of the two."""

    def __init__(self, queue: Any, is_first: bool) -> None:
        self.queue = queue
        self.is_first = is_first

    def put(self, said: Said) -> None:
        self.queue.put(said)


def in_two_processes(target: Any, dsn: str) -> list[Said]:
    start, queue = SPAWN.Barrier(2), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=target, args=(dsn, start, Answers(queue, is_first)))
        for is_first in (True, False)
    ]
    for process in processes:
        process.start()
    try:
        return [queue.get(timeout=60) for _ in processes]
    finally:
        for process in processes:
            process.join(30)
            process.kill()
        queue.close()


def test_of_two_calls_at_once_exactly_one_makes_the_job(dsn, connection):
    one, other = in_two_processes(call_at_once, dsn)

    assert [id for id, _ in one] == [id for id, _ in other]
    assert all(a != b for (_, a), (_, b) in zip(one, other, strict=True))
    assert {created for _, created in one} == {True, False}  # they did run at once
    assert count_rows(connection, "unique_key") == ROUNDS
    assert count_rows(connection, "job") == ROUNDS + 2


def test_batches_in_any_order_do_not_deadlock(dsn, connection):
    one, other = in_two_processes(call_in_batches, dsn)

    assert {id for id, _ in one} == {id for id, _ in other}
    assert sum(created for _, created in one + other) == 20 * BATCHES
    assert count_rows(connection, "job") == count_rows(connection, "unique_key") == 20 * BATCHES


@pytest.mark.parametrize("commits", [True, False])
def test_the_second_waits_for_the_transaction_of_the_first(app, dsn, connection, commits):
    second: list[Any] = []
    with psycopg.connect(dsn) as mine, psycopg.connect(dsn, autocommit=True) as others:
        with app.connection(mine):
            first = app.send_task("t", unique=True)

        def call() -> None:
            with app.connection(others):
                second.append(app.send_task("t", unique=True))

        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: blocked_on_a_lock(connection, others.info.backend_pid))
        assert not second
        (mine.commit if commits else mine.rollback)()
        thread.join(10)

    [result] = second
    assert result.created is not commits
    assert (result.id == first.id) is commits
    assert count_rows(connection, "job") == 1


def test_a_job_ends_while_a_call_that_met_its_key_is_not_committed(app, dsn, connection, worker):
    app.send_task("t", unique=True)
    held = worker.claim_one()
    connection.execute("set lock_timeout = '2s'")
    with psycopg.connect(dsn) as mine, app.connection(mine):
        assert not app.send_task("t", unique=True).created

        assert worker.succeed(held) == [held.id]

        assert app.send_task("t", unique=True).created
    assert count_rows(connection, "unique_key") == 1


def test_a_call_waits_for_the_end_of_the_job_that_is_being_written(app, dsn, connection, worker):
    app.send_task("t", unique=True)
    held = worker.claim_one()
    second: list[Any] = []

    with psycopg.connect(dsn, autocommit=True) as others:

        def call() -> None:
            with app.connection(others):
                second.append(app.send_task("t", unique=True))

        thread = threading.Thread(target=call)
        with connection.transaction():
            worker.succeed(held)
            thread.start()
            with psycopg.connect(dsn, autocommit=True) as third:
                eventually(lambda: blocked_on_a_lock(third, others.info.backend_pid))
        thread.join(10)

    assert second[0].created
