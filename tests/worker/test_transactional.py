"""Transactional tasks: success commits with what the task wrote, or not at all, through any death."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState
from tests.fixtures import limited_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, wait_until_begun, wait_until_finished

LIMITED = "tests.fixtures.limited_app"


@pytest.fixture(autouse=True)
def tables(connection: psycopg.Connection[Any]) -> Iterator[None]:
    connection.execute("create table if not exists effect (number integer)")
    connection.execute(
        "create table if not exists deferred (number integer unique deferrable initially deferred)"
    )
    yield
    connection.execute("drop table effect, deferred")


def effects(connection: psycopg.Connection[Any]) -> list[int]:
    return [number for (number,) in connection.execute("select number from effect order by 1")]


@pytest.mark.parametrize("at_once", [1, 4])
def test_success_and_writes_commit_together(
    app: App, workers: Workers, runs: Runs, connection: psycopg.Connection[Any], at_once: int
) -> None:
    workers.start(LIMITED, concurrency=2, async_concurrency=at_once)
    results = [limited_app.transfer.delay(runs.path, None, n) for n in range(5)]
    results += [limited_app.transfer_later.delay(n) for n in range(5, 10)]

    assert [result.get(timeout=10) for result in results] == list(range(10))

    assert effects(connection) == list(range(10))
    assert {result.job().attempt for result in results} == {1}
    eventually(lambda: _no_claims(connection))


def _no_claims(connection: psycopg.Connection[Any]) -> None:
    assert connection.execute("select from pgtasks.claim").fetchall() == []


def test_a_failure_leaves_no_writes(
    app: App, workers: Workers, connection: psycopg.Connection[Any]
) -> None:
    workers.start(LIMITED)

    with pytest.raises(ValueError, match="no"):
        limited_app.transfer_and_fail.delay(1).get(timeout=10)

    assert effects(connection) == []


def test_jobs_enqueued_inside_commit_with_the_rest(
    app: App, workers: Workers, runs: Runs, connection: psycopg.Connection[Any]
) -> None:
    workers.start(LIMITED)

    inner = limited_app.transfer_and_enqueue.delay(runs.path, 1).get(timeout=10)

    assert app.result(inner).get(timeout=10) == 1


def test_an_error_at_commit_fails_the_job(
    app: App, workers: Workers, connection: psycopg.Connection[Any]
) -> None:
    workers.start(LIMITED)
    connection.execute("insert into deferred values (1)")

    result = limited_app.transfer_too_late.delay(1)

    with pytest.raises(Exception, match="duplicate key"):
        result.get(timeout=10)
    assert result.job().state is JobState.FAILED


def test_a_child_that_dies_before_its_commit_leaves_nothing_and_the_job_runs_again(
    app: App,
    workers: Workers,
    runs: Runs,
    gate: Gate,
    connection: psycopg.Connection[Any],
) -> None:
    workers.start(LIMITED)
    result = limited_app.transfer.delay(runs.path, str(gate), 7)
    pid = wait_until_begun(runs, result.id)

    def written() -> None:
        row = connection.execute(
            "select count(*) from pg_stat_activity where state = 'idle in transaction'"
            " and query like 'insert into effect%'"
        ).fetchone()
        assert row == (1,)

    eventually(written)
    os.kill(pid, signal.SIGKILL)
    wait_until_begun(runs, result.id, times=2)
    gate.open()

    assert result.get(timeout=10) == 7
    assert effects(connection) == [7]
    job = result.job()
    assert (job.attempt, job.crashes) == (2, 1)


def test_children_that_are_killed_at_any_moment_write_each_effect_once(
    app: App, workers: Workers, runs: Runs, connection: psycopg.Connection[Any]
) -> None:
    worker = workers.start(LIMITED, concurrency=2)
    results = app.enqueue_many(limited_app.transfer.s(runs.path, None, n) for n in range(300))

    def more_than(done: int) -> None:
        row = connection.execute("select count(*) from pgtasks.job").fetchone()
        assert row is not None
        assert row[0] < 300 - done

    for done in range(10, 260, 25):
        eventually(lambda done=done: more_than(done))  # type: ignore[misc]
        for pid in worker.children()[:1]:
            os.kill(pid, signal.SIGKILL)
    wait_until_finished(connection)

    succeeded = [
        number for number, result in enumerate(results) if result.job().state is JobState.SUCCEEDED
    ]
    assert effects(connection) == succeeded
    assert len(succeeded) >= 290
