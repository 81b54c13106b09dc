"""Giving jobs back: released, crashed, or claimed by a statement whose reply was lost."""

from typing import Any

import pytest

from pgtasks import App, JobState, group
from tests.fixtures.simulated_worker import SimulatedWorker, count_rows


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def test_a_released_job_keeps_its_place_and_its_attempt_does_not_count(app, echo, worker):
    result = echo.delay()
    held = worker.claim_one()

    worker.release(held)

    job = result.job()
    assert (job.state, job.attempt, job.started_at, job.worker_id) == (
        JobState.READY,
        0,
        None,
        None,
    )
    again = worker.claim_one()
    assert (again.seq, again.attempt, again.crashes) == (held.seq, 1, 0)


def test_a_crash_is_charged_and_the_attempt_counts(app, echo, worker):
    result = echo.delay()
    held = worker.claim_one()

    worker.crash(held)

    job = result.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.READY, 1, 1)
    again = worker.claim_one()
    assert (again.seq, again.attempt, again.crashes) == (held.seq, 2, 1)
    worker.succeed(again)
    assert result.job().crashes == 1


@pytest.mark.parametrize("release_jobs", [SimulatedWorker.release, SimulatedWorker.crash])
def test_a_job_that_is_given_back_after_a_cancel_was_requested_ends_cancelled(
    app, echo, worker, release_jobs
):
    result = group([echo.s(), echo.s()]).apply()
    held = worker.claim()
    app.cancel(result[0].id)

    release_jobs(worker, held)

    assert [one.job().state for one in result] == [JobState.CANCELLED, JobState.READY]
    bundle = result.bundle()
    assert (bundle.remaining, bundle.failed) == (1, 1)


def test_a_claim_row_goes_with_the_last_job_of_its_batch(app, echo, worker, connection):
    for _ in range(3):
        echo.delay()
    held = worker.claim()

    worker.succeed(held[:2])
    before_the_last = count_rows(connection, "claim")
    worker.succeed(held[2])

    assert before_the_last == 1
    assert count_rows(connection, "claim") == 0


def test_a_claim_row_without_jobs_can_be_forgotten_by_itself(app, echo, worker, connection):
    echo.delay()
    held = worker.claim_one()
    worker.release(held)

    worker.execute("delete_claims", claims=[held.token])

    assert count_rows(connection, "claim") == 0


def test_a_claim_whose_reply_was_lost_is_given_back(app, echo, connection, dsn):
    one, other = SimulatedWorker(connection), SimulatedWorker(connection)
    results = [echo.delay(n) for n in range(3)]
    lost = one.claim(limit=1)
    known = one.claim(limit=1)
    foreign = other.claim(limit=1)

    one.execute("release_lost_claims", worker_id=one.id, known=[known[0].token])

    states = [result.job().state for result in results]
    assert states == [JobState.READY, JobState.RUNNING, JobState.RUNNING]
    assert results[0].job().attempt == 0
    assert one.succeed(lost) == []
    assert one.succeed(known) == [results[1].id]
    assert other.succeed(foreign) == [results[2].id]
