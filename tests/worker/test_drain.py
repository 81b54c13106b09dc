"""How a worker ends: TERM drains, the second TERM, QUIT and the end of grace kill and give back."""

import os
import signal
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    Workers,
    is_alive,
    wait_until_begun,
    wait_until_held,
    warm_up,
)

Connection = psycopg.Connection[Any]


def nothing_is_held(connection: Connection) -> None:
    """Assert that no job and no claim belongs to anybody, and no worker is registered."""
    for what in ("job where token is not null", "claim", "worker"):
        row = connection.execute(f"select count(*) from pgtasks.{what}").fetchone()
        assert row == (0,), what


def test_term_lets_the_running_job_end_and_returns_what_was_prefetched(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    worker = workers.start(concurrency=1)
    warm_up(runs)
    running = sample_app.retry_at_gate.delay(runs.path, str(gate))  # unmeasured: alone
    wait_until_begun(runs, running.id)
    waiting = app.enqueue_many(sample_app.step.s(runs.path) for _ in range(10))
    wait_until_held(connection, 11)

    worker.signal(signal.SIGTERM)
    wait_until_held(connection, 1)  # given back at once, not at the end
    assert worker.process.poll() is None
    gate.open()

    assert worker.wait() == 0
    job = running.job()
    assert (job.state, job.attempt) == (JobState.SCHEDULED, 1)  # its retry
    for result in waiting:
        job = result.job()
        assert (job.state, job.attempt, job.crashes) == (JobState.READY, 0, 0)
    nothing_is_held(connection)


@pytest.mark.parametrize(
    "how", ["second term", "term and int", "quit", "grace"], ids=lambda how: how.replace(" ", "-")
)
def test_killed_jobs_are_given_back_unattempted(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection, how: str
) -> None:
    worker = workers.start(concurrency=2, grace=0.3 if how == "grace" else 25.0)
    running = [sample_app.step.delay(runs.path, str(gate)) for _ in range(2)]
    children = {wait_until_begun(runs, result.id) for result in running}

    if how == "quit":
        worker.signal(signal.SIGQUIT)
    else:
        worker.signal(signal.SIGTERM)
        worker.said("worker.draining")
    if how == "second term":
        worker.signal(signal.SIGTERM)
    if how == "term and int":
        worker.signal(signal.SIGINT)

    assert worker.wait(timeout=5) == 0
    assert len(children) == 2
    assert not any(map(is_alive, children))
    for result in running:
        job = result.job()
        assert (job.state, job.attempt, job.crashes) == (JobState.READY, 0, 0)
    nothing_is_held(connection)


def test_outcome_before_a_kill_counts(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    worker = workers.start(concurrency=1)
    warm_up(runs)
    *done, running, behind = app.enqueue_many(
        [sample_app.step.s(runs.path) for _ in range(5)]
        + [sample_app.step.s(runs.path, str(gate)), sample_app.step.s(runs.path)]
    )
    wait_until_begun(runs, running.id)

    worker.signal(signal.SIGQUIT)

    assert worker.wait(timeout=5) == 0
    assert [result.job().state for result in done] == [JobState.SUCCEEDED] * 5
    for result in (running, behind):
        assert (result.job().state, result.job().attempt) == (JobState.READY, 0)
    assert not runs.of(behind.id)
    nothing_is_held(connection)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_worker_that_is_stopped_under_load_leaves_nothing_behind(
    app: App, workers: Workers, runs: Runs, connection: Connection, number: int
) -> None:
    jobs = app.enqueue_many(sample_app.record.s(runs.path) for _ in range(5000))

    for finished in (200, 900):  # each at another moment of its work
        worker = workers.start(concurrency=2)

        def busy(finished: int = finished) -> None:
            assert os.path.exists(runs.path)
            assert os.path.getsize(runs.path) > 2 * 100 * finished

        eventually(busy)
        worker.signal(number)
        assert worker.wait() == 0
        nothing_is_held(connection)

    states = dict(
        connection.execute("select state, count(*) from pgtasks.jobs group by 1").fetchall()
    )
    assert states.keys() <= {"ready", "succeeded"}
    assert sum(states.values()) == len(jobs)
    attempted = connection.execute("select count(*) from pgtasks.job where attempt <> 0").fetchone()
    assert attempted == (0,)
    done = {id for (id,) in connection.execute("select id::text from pgtasks.job_history")}
    by_job = runs.by_job()
    if number == signal.SIGTERM:
        assert set(by_job) == done
        assert all(len(found) == 1 for found in by_job.values())
    else:  # two children, each with one job that was cut short
        assert len(set(by_job) - done) <= 6


def test_idle_worker_stops_at_once(app: App, workers: Workers, connection: Connection) -> None:
    worker = workers.start(concurrency=2)
    worker.has_children(2)

    assert worker.stop(timeout=3) == 0
    nothing_is_held(connection)


def test_draining_worker_says_so_and_claims_nothing(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    worker = workers.start(concurrency=2, beat=0.2)
    running = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, running.id)
    worker.signal(signal.SIGTERM)

    def draining() -> None:
        row = connection.execute("select state from pgtasks.worker").fetchone()
        assert row == ("draining",)

    eventually(draining)
    later = sample_app.step.delay(runs.path)
    gate.open()

    assert worker.wait() == 0
    assert running.successful()
    assert (later.job().state, later.job().attempt) == (JobState.READY, 0)


def test_block_of_app_worker_drains_at_its_end(
    app: App, runs: Runs, connection: Connection
) -> None:
    with app.worker(concurrency=2) as worker:
        pid = sample_app.step.delay(runs.path).get(timeout=10)
        assert pid not in (worker.pid, os.getpid())
        results = [sample_app.step.delay(runs.path, None, False, 0.2) for _ in range(2)]
        for result in results:
            wait_until_begun(runs, result.id)

    assert [result.successful() for result in results] == [True, True]
    assert not is_alive(worker.pid)
    nothing_is_held(connection)


def test_solo_worker_ends_its_job_and_drains(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    worker = workers.start(pool="solo", beat=0.2)
    running = sample_app.step.delay(runs.path, str(gate))
    assert wait_until_begun(runs, running.id) == worker.pid
    worker.signal(signal.SIGTERM)
    worker.said("worker.draining")
    worker.signal(signal.SIGTERM)  # nothing to kill here: the job still ends in its own time

    def beats() -> int:
        row = connection.execute("select beat from pgtasks.worker").fetchone()
        assert row is not None
        return row[0]

    first = beats()

    def beats_on() -> None:
        assert beats() > first + 1

    eventually(beats_on)
    gate.open()

    assert worker.wait() == 0
    assert running.successful()
    nothing_is_held(connection)
