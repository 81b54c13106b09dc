"""Rescue: a dead worker's jobs become ready again, charged only if a child had begun them."""

from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState, group
from tests.fixtures.simulated_worker import Held, SimulatedWorker, count_rows, heard


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


@pytest.fixture
def dead(connection: psycopg.Connection[Any]) -> SimulatedWorker:
    return SimulatedWorker(connection)


def beat(worker: SimulatedWorker, *running: Held) -> int:
    count = worker.beat([one.id for one in running])
    assert count is not None
    return count


def rescue(worker: SimulatedWorker, dead: SimulatedWorker, beat: int) -> int | None:
    [(count,)] = worker.execute("rescue_worker", worker_id=dead.id, beat=beat)
    return count


def test_what_a_child_had_begun_is_charged_a_crash_and_what_was_merely_held_is_not(
    app, echo, worker, dead
):
    begun, held, waiting = (echo.delay(n) for n in range(3))
    jobs = dead.claim(limit=2)
    last = beat(dead, jobs[0])

    assert rescue(worker, dead, last) == 2

    job = begun.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.READY, 1, 1)
    job = held.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.READY, 0, 0)
    assert (job.started_at, job.worker_id) == (None, None)
    assert waiting.job().crashes == 0
    again = worker.claim()
    assert [one.id for one in again] == [begun.id, held.id, waiting.id]
    assert [one.seq for one in again[:2]] == [one.seq for one in jobs]
    assert [one.attempt for one in again] == [2, 1, 1]


def test_the_dead_worker_and_its_claims_are_forgotten(app, echo, worker, dead, connection):
    echo.delay()
    dead.claim()
    echo.delay()
    mine = worker.claim()

    rescue(worker, dead, beat(dead))

    assert [info.id for info in app.workers()] == [worker.id]
    assert connection.execute("select token::text from pgtasks.claim").fetchall() == [
        (mine[0].token,)
    ]


def test_a_worker_that_wakes_up_later_finds_that_nothing_is_its_own(app, echo, worker, dead):
    result = echo.delay()
    jobs = dead.claim()
    rescue(worker, dead, beat(dead, *jobs))

    late = dead.succeed(jobs, "late")
    renewed = dead.beat()

    assert late == []
    assert renewed is None
    assert result.job().state is JobState.READY


def test_a_beat_that_moved_after_all_rescues_nothing(app, echo, worker, dead):
    result = echo.delay()
    jobs = dead.claim()
    seen = beat(dead)
    beat(dead)

    assert rescue(worker, dead, seen) is None
    assert result.job().state is JobState.RUNNING
    assert dead.succeed(jobs) == [result.id]


def test_a_worker_is_rescued_once(echo, worker, dead):
    echo.delay()
    dead.claim()
    last = beat(dead)

    assert rescue(worker, dead, last) == 1
    assert rescue(worker, dead, last) is None


def test_of_two_rescuers_at_once_one_does_nothing(echo, worker, dead, dsn):
    echo.delay()
    dead.claim()
    last = beat(dead)

    with psycopg.connect(dsn) as other:
        first = rescue(SimulatedWorker(other), dead, last)
        second = rescue(worker, dead, last)
        other.commit()

    assert (first, second) == (1, None)


def test_a_job_whose_cancel_was_requested_ends_cancelled_and_its_bundle_is_counted(
    app, echo, worker, dead
):
    result = group(echo.s(n) for n in range(2)).apply()
    jobs = dead.claim()
    app.cancel(result[0].id)

    assert rescue(worker, dead, beat(dead, *jobs)) == 2

    job = result[0].job()
    assert job.state is JobState.CANCELLED
    assert job.reason == "given back after a cancel was requested"
    bundle = result.bundle()
    assert (bundle.remaining, bundle.failed, bundle.state) == (1, 1, "running")
    worker.succeed(worker.claim())
    assert result.bundle().state == "failed"


def test_several_queues_and_claims_of_a_worker_come_back(app, echo, worker, dead):
    results = [echo.apply_async(queue=queue) for queue in ("a", "b", "b", "c")]
    for queue in ("a", "b", "b"):
        dead.claim_one(queue)
    finished = dead.claim_one("c")
    dead.succeed(finished)

    assert rescue(worker, dead, beat(dead)) == 3
    assert [result.job().state for result in results] == [JobState.READY] * 3 + [JobState.SUCCEEDED]


def test_a_job_that_another_worker_holds_by_now_is_left_alone(app, echo, worker, dead):
    result = echo.delay()
    jobs = dead.claim()
    dead.release(jobs)
    mine = worker.claim()

    assert rescue(worker, dead, beat(dead, *jobs)) == 0

    assert result.job().state is JobState.RUNNING
    assert result.job().crashes == 0
    assert worker.succeed(mine) == [result.id]


def test_idle_workers_of_the_queue_are_woken(echo, worker, dead, connection):
    echo.delay()
    dead.claim()
    worker.execute("set_idle", worker_id=worker.id, idle=True)
    [(channel,)] = connection.execute("select pgtasks.wake_channel('default')").fetchall()
    connection.execute(f'listen "{channel}"')

    rescue(worker, dead, beat(dead))

    assert heard(connection) == [(channel, "")]


def test_a_worker_that_stops_cleanly_leaves_no_row(app, dead, connection):
    dead.execute("deregister_worker", worker_id=dead.id)

    assert app.workers() == []
    assert count_rows(connection, "worker") == 0
