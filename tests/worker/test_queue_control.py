"""What operators hold back, with real workers: pauses, and how many jobs of a queue run."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from pgtasks import App, AsyncResult, JobState, Rate
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, wait_until_begun, wait_until_held, warm_up

Connection = psycopg.Connection[Any]
STEP = "tests.fixtures.sample_app.step"


def most_at_once(runs: Runs) -> int:
    """Return how many runs there were at the same time at most, as the jobs themselves wrote it."""
    moments = sorted(
        moment
        for run in runs.all()
        for moment in [(run.began, 1), *([(run.ended, -1)] if run.ended is not None else [])]
    )
    most = now = 0
    for _, step in moments:
        now += step
        most = max(most, now)
    return most


@pytest.mark.parametrize("what", ["queue", "task"])
def test_a_pause_takes_back_what_has_not_begun_within_a_second_and_what_runs_ends(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection, what: str
) -> None:
    workers.start(concurrency=1)
    warm_up(runs)
    running = sample_app.retry_at_gate.delay(runs.path, str(gate))  # unmeasured: alone
    wait_until_begun(runs, running.id)
    waiting = app.enqueue_many(sample_app.step.s(runs.path) for _ in range(10))
    eventually(lambda: _some_are_held_ahead(connection))

    began = time.monotonic()
    if what == "queue":
        app.pause_queue("default", reason="a test")
    else:
        app.pause_task(STEP)
    wait_until_held(connection, 1)
    took = time.monotonic() - began
    more = sample_app.step.delay(runs.path)
    gate.open()
    eventually(lambda: _has_ended(running.job().state))

    assert took < 1.0
    for result in [*waiting, more]:
        job = result.job()
        assert (job.attempt, job.started_at) == (0, None)
        assert job.state in (JobState.READY, JobState.PARKED)
    assert app.resume_queue("default") if what == "queue" else app.resume_task(STEP)
    for result in [*waiting, more]:
        result.get(timeout=10)
    assert [len(runs.of(one.id)) for one in waiting] == [1] * 10


def _has_priority(result: AsyncResult[None], priority: int) -> None:
    assert result.job().priority == priority


def _some_are_held_ahead(connection: Connection) -> None:
    row = connection.execute("select count(*) from pgtasks.job where token is not null").fetchone()
    assert row is not None
    assert row[0] > 1


def _has_ended(state: JobState) -> None:
    assert state is JobState.SCHEDULED  # its retry


def test_two_workers_keep_to_the_limits_of_a_queue_and_do_not_wait_for_a_poll(
    app: App, workers: Workers, runs: Runs
) -> None:
    app.limit_queue("default", max_running=2)
    for _ in range(2):
        workers.start(concurrency=2, poll_interval=30)
    results = app.enqueue_many(sample_app.step.s(runs.path, work=0.03) for _ in range(16))

    for result in results:
        result.get(timeout=15)

    assert most_at_once(runs) == 2
    assert len(runs.all()) == 16

    app.limit_queue("default", max_running=None, rate=Rate(10, burst=1))
    for result in app.enqueue_many(sample_app.step.s(runs.path) for _ in range(6)):
        result.get(timeout=15)

    begun = sorted(run.began for run in runs.all()[16:])
    assert begun[-1] - begun[0] >= 0.4  # five tokens, one in 0.1 s; the first may begin late

    app.limit_queue("default", ageing=1)
    app.pause_queue("default")
    old = sample_app.noop.delay()
    sample_app.noop.apply_async(priority=2)
    eventually(lambda: _has_priority(old, 2))


def test_the_places_of_a_killed_worker_are_free_again_all_of_them_and_no_more(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    app.limit_queue("default", max_running=2)
    first = workers.start(concurrency=2)
    results = [sample_app.step.delay(runs.path, str(gate)) for _ in range(4)]
    victims = [result for result in results[:2] if wait_until_begun(runs, result.id)]
    second = workers.start(concurrency=4)

    first.kill()

    def taken_over() -> None:
        assert {run.pid for run in runs.all()[2:]} <= set(second.children())
        assert len(runs.all()) == 4

    eventually(taken_over)
    held = connection.execute("select pgtasks.count_held('default')").fetchone()
    gate.open()
    for result in results:
        result.get(timeout=10)

    assert held == (2,)
    assert [len(runs.of(one.id)) for one in victims] == [2, 2]
    # Of the runs of the worker that lived; the others were never ended.
    assert all(run.ended is None for run in runs.all()[:2])
