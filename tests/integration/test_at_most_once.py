"""Claims of at_most_once tasks: whose worker died may have run them, so they fail as lost."""

from typing import Any

import psycopg
import pytest

from pgtasks import App, JobLostError, JobState, group
from tests.fixtures.simulated_worker import SimulatedWorker, count_rows


@pytest.fixture
def charge(app: App) -> Any:
    @app.task(name="charge", at_most_once=True)
    def charge(n: int = 0) -> int:
        return n

    return charge


@pytest.fixture
def dead(connection: psycopg.Connection[Any]) -> SimulatedWorker:
    return SimulatedWorker(connection)


def rescue(worker: SimulatedWorker, dead: SimulatedWorker) -> int:
    [(count,)] = worker.execute("rescue_worker", worker_id=dead.id, beat=dead.beat())
    return count


def test_a_dead_workers_jobs_fail_as_lost_whether_they_had_begun_or_not(
    app, charge, worker, dead, connection
):
    results = [charge.delay(n) for n in range(2)]
    dead.claim(at_most_once=True)

    assert rescue(worker, dead) == 2

    for result in results:
        job = result.job()
        assert (job.state, job.attempt, job.crashes) == (JobState.FAILED, 1, 0)
        assert job.started_at is not None
        with pytest.raises(JobLostError, match="died"):
            result.get(timeout=1)
    assert worker.claim() == []
    assert count_rows(connection, "claim") == 0


def test_those_of_other_claims_of_the_worker_come_back(app, charge, worker, dead):
    @app.task(name="other")
    def other() -> None:
        pass

    lost, returned = charge.delay(), other.delay()
    dead.claim(tasks=["charge"], at_most_once=True)
    dead.claim(tasks=["other"])

    rescue(worker, dead)

    assert lost.job().state is JobState.FAILED
    assert returned.job().state is JobState.READY


def test_a_lost_member_counts_as_a_failure_of_its_bundle(app, charge, worker, dead):
    bundle = group([charge.s(1)]).apply()
    dead.claim(at_most_once=True)

    rescue(worker, dead)

    assert bundle.bundle().failed == 1
    assert bundle.bundle().stopped_at is not None


def test_what_a_late_worker_finished_before_its_rescue_is_not_lost(app, charge, worker, dead):
    done, lost = charge.delay(1), charge.delay(2)
    first, _ = dead.claim(at_most_once=True)
    dead.succeed(first)

    assert rescue(worker, dead) == 1

    assert done.job().state is JobState.SUCCEEDED
    assert lost.job().state is JobState.FAILED


def test_a_late_success_changes_nothing_after_the_loss(app, charge, worker, dead):
    result = charge.delay()
    held = dead.claim(at_most_once=True)
    rescue(worker, dead)

    assert dead.succeed(held) == []

    assert result.job().state is JobState.FAILED


def test_an_orphaned_claim_is_lost_too(app, charge, worker, dead, connection):
    result = charge.delay()
    dead.claim(at_most_once=True)
    connection.execute("delete from pgtasks.worker where id = %s", [dead.id])

    worker.execute("release_orphaned_claims")

    assert result.job().state is JobState.FAILED
    assert count_rows(connection, "claim") == 0


def test_a_claim_whose_reply_was_lost_never_reached_a_child_and_comes_back(app, charge, worker):
    result = charge.delay()
    worker.claim(at_most_once=True)

    worker.execute("release_lost_claims", worker_id=worker.id, known=[])

    job = result.job()
    assert (job.state, job.attempt) == (JobState.READY, 0)
