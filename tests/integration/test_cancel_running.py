"""A cancel of what workers hold: flagged on the job, and told on the claim, where the worker looks."""

from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState
from tests.fixtures.simulated_worker import SimulatedWorker, count_rows, heard


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def request_cancel(worker: SimulatedWorker, *ids: str, terminate: bool = True) -> set[str]:
    rows = worker.execute("request_cancel", ids=list(ids), terminate=terminate)
    return {id for (id,) in rows}


def asked(worker: SimulatedWorker) -> dict[str, tuple[set[str], set[str]]]:
    """Return what the worker finds at its next beat: token -> (cancel, interrupt)."""
    rows = worker.execute("list_cancels", worker_id=worker.id)
    return {token: (set(cancel), set(interrupt)) for token, cancel, interrupt in rows}


@pytest.mark.parametrize("terminate", [True, False])
def test_a_worker_finds_what_was_cancelled_of_its_jobs(app, echo, worker, terminate):
    first, second, other = (echo.delay(n) for n in range(3))
    held = worker.claim(limit=2)

    found = request_cancel(worker, first.id, other.id, terminate=terminate)

    assert found == {first.id}
    interrupt = {first.id} if terminate else set()
    assert asked(worker) == {held[0].token: ({first.id}, interrupt)}
    assert first.job().cancel_requested
    assert not second.job().cancel_requested
    assert not other.job().cancel_requested


def test_cancels_of_one_claim_add_up_and_end_with_it(app, echo, worker, connection):
    results = [echo.delay(n) for n in range(2)]
    held = worker.claim()

    request_cancel(worker, results[0].id, terminate=False)
    request_cancel(worker, results[1].id)

    ids = {result.id for result in results}
    assert asked(worker) == {held[0].token: (ids, {results[1].id})}
    worker.succeed(held)
    assert asked(worker) == {}
    assert count_rows(connection, "claim") == 0


def test_each_worker_finds_its_own(app, echo, worker, connection):
    other = SimulatedWorker(connection)
    mine, its = echo.delay(1), echo.delay(2)
    worker.claim_one()
    [held] = other.claim()

    request_cancel(worker, mine.id, its.id)

    assert asked(other) == {held.token: ({its.id}, {its.id})}


def test_workers_are_notified_once_and_only_if_something_runs(app, echo, worker, connection):
    connection.execute("listen pgtasks_cancel")
    waiting = echo.delay(1)
    request_cancel(worker, waiting.id)
    assert heard(connection) == []
    worker.claim()

    request_cancel(worker, waiting.id)

    assert heard(connection) == [("pgtasks_cancel", "")]


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (SimulatedWorker.succeed, JobState.SUCCEEDED),
        (SimulatedWorker.fail, JobState.FAILED),
        (SimulatedWorker.retry, JobState.CANCELLED),
        (SimulatedWorker.release, JobState.CANCELLED),
        (SimulatedWorker.crash, JobState.CANCELLED),
    ],
)
def test_after_a_cancel_only_what_is_final_still_counts(app, echo, worker, end, state):
    result = echo.delay()
    held = worker.claim_one()
    request_cancel(worker, result.id)

    end(worker, held)

    assert result.job().state is state


def test_a_claim_that_ends_right_now_is_not_waited_for(app, echo, worker, dsn):
    result = echo.delay()
    held = worker.claim_one()
    with psycopg.connect(dsn) as other:
        other.execute("select from pgtasks.claim where token = %s for update", [held.token])

        found = request_cancel(worker, result.id)

    assert found == {result.id}
    assert result.job().cancel_requested
    assert asked(worker) == {}
