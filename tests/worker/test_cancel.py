"""Cancel: what waits at once, what runs through its worker, and what lies in between is not begun."""

from typing import Any

import psycopg
import pytest

from pgtasks import App, JobCancelledError, JobState
from tests.fixtures import limited_app, sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, wait_until_begun, wait_until_held, warm_up

LIMITED = "tests.fixtures.limited_app"


@pytest.mark.parametrize("listen", [True, False])
def test_a_running_job_is_interrupted_and_may_clean_up(
    app: App, workers: Workers, runs: Runs, listen: bool
) -> None:
    worker = workers.start(LIMITED, listen=listen, beat=0.2)
    result = limited_app.until_cancelled.delay(runs.path)
    pid = wait_until_begun(runs, result.id)

    assert app.cancel(result.id) == {result.id: "requested"}

    with pytest.raises(JobCancelledError):
        result.get(timeout=10)
    job = result.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.CANCELLED, 1, 0)
    assert worker.children() == [pid]


def test_a_job_that_refuses_is_killed_after_the_grace(
    app: App, workers: Workers, runs: Runs
) -> None:
    worker = workers.start(LIMITED, grace=0.5)
    result = limited_app.swallows_everything.delay(runs.path)
    pid = wait_until_begun(runs, result.id)

    result.revoke(terminate=True)

    with pytest.raises(JobCancelledError):
        result.get(timeout=10)
    assert result.job().crashes == 0

    def replaced() -> None:
        assert pid not in worker.has_children(1)

    eventually(replaced)


def test_without_terminate_a_success_still_counts(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(LIMITED, beat=0.2)
    running = limited_app.unlimited.delay(runs.path, str(gate))
    retrying = sample_app.retry_at_gate.delay(runs.path, str(gate))
    workers.start(LIMITED, beat=0.2, name="second")
    for one in (running, retrying):
        wait_until_begun(runs, one.id)

    for one in (running, retrying):
        one.revoke()
    gate.open()

    assert running.get(timeout=10) == 1
    with pytest.raises(JobCancelledError):
        retrying.get(timeout=10)


def test_a_job_in_the_pipe_behind_another_is_not_begun(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: psycopg.Connection[Any]
) -> None:
    workers.start(LIMITED, concurrency=2)
    warm_up(runs)
    busy = limited_app.until_cancelled.delay(runs.path)
    wait_until_begun(runs, busy.id)
    first, *others = app.enqueue_many(
        [sample_app.step.s(runs.path, str(gate))] + [sample_app.step.s(runs.path) for _ in range(8)]
    )
    wait_until_begun(runs, first.id)
    wait_until_held(connection, 10)

    app.cancel(busy.id, *[one.id for one in others[:5]])
    with pytest.raises(JobCancelledError):  # so the parent has heard of all of them
        busy.get(timeout=10)
    gate.open()

    assert first.get(timeout=10)
    for one in others[5:]:
        assert one.get(timeout=10)
    for one in others[:5]:
        with pytest.raises(JobCancelledError):
            one.get(timeout=10)
        assert (one.job().attempt, runs.of(one.id)) == (0, [])


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_interrupt_too(app: App, workers: Workers, runs: Runs, pool: str) -> None:
    workers.start(LIMITED, pool=pool)
    result = limited_app.wait_in_await.delay(runs.path, "never")
    wait_until_begun(runs, result.id)

    app.cancel(result.id)

    with pytest.raises(JobCancelledError):
        result.get(timeout=10)


def test_a_coroutine_is_interrupted_and_its_neighbours_are_not(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(LIMITED, async_concurrency=4)
    neighbour, cancelled = (limited_app.wait_in_await.delay(runs.path, str(gate)) for _ in range(2))
    for one in (neighbour, cancelled):
        wait_until_begun(runs, one.id)

    app.cancel(cancelled.id)

    with pytest.raises(JobCancelledError):
        cancelled.get(timeout=10)
    gate.open()
    assert neighbour.get(timeout=10) == 1
