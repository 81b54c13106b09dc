"""Retries: how many, and when, by every kind of schedule."""

from datetime import datetime
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState, MaxRetriesExceededError
from tests.fixtures import sample_app
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    Workers,
    wait_until_begun,
    wait_until_finished,
)

SCHEDULES: dict[str, tuple[Any, list[float]]] = {
    "expo": (sample_app.flaky_expo, [0.1, 0.2, 0.4]),
    "linear": (sample_app.flaky_linear, [0.1, 0.2, 0.3]),
    "fixed": (sample_app.flaky_fixed, [0.15, 0.15, 0.15]),
    "list": (sample_app.flaky_list, [0.25, 0.05, 0.05]),
    "callable": (sample_app.flaky_callable, [0.1, 0.2, 0.3]),
    "Retry(after=)": (sample_app.flaky_after, [0.12, 0.12, 0.12]),
    "self.retry": (sample_app.flaky_self, [0.12, 0.12, 0.12]),
}


def test_attempts_come_when_their_schedule_says(app: App, workers: Workers) -> None:
    workers.start(concurrency=2)

    results = {name: task.delay() for name, (task, _) in SCHEDULES.items()}

    for name, result in results.items():
        assert result.get(timeout=15) == 4, name
        job = result.job()
        assert [one.attempt for one in job.attempts] == [1, 2, 3], name
        assert [one.error and one.error.message for one in job.attempts] == [
            "attempt 1",
            "attempt 2",
            "attempt 3",
        ], name
        waits = waits_between(job)
        expected = SCHEDULES[name][1]
        for waited, delay in zip(waits, expected, strict=True):
            assert delay <= waited < delay + 0.5, (name, waits, expected)
        late = sum(waits) - sum(expected)
        assert late < 0.6, (name, waits, expected)


def waits_between(job: Any) -> list[float]:
    """Return the seconds between the end of each attempt and the begin of the next."""
    began = [datetime.fromisoformat(one.started_at) for one in job.attempts] + [job.started_at]
    ended = [datetime.fromisoformat(one.stopped_at) for one in job.attempts]
    return [
        (later - earlier).total_seconds() for earlier, later in zip(ended, began[1:], strict=True)
    ]


def test_retries_end(app: App, workers: Workers) -> None:
    workers.start()

    hopeless, by_hand = sample_app.hopeless.delay(), sample_app.hopeless_self.delay()

    with pytest.raises(Exception, match="never"):
        hopeless.get(timeout=10)
    with pytest.raises(MaxRetriesExceededError):
        by_hand.get(timeout=10)
    assert (hopeless.job().attempt, by_hand.job().attempt) == (3, 3)


def test_call_says_how_many_retries(app: App, workers: Workers) -> None:
    workers.start()

    none = sample_app.hopeless.apply_async(retries=0)
    four = sample_app.hopeless.apply_async(retries=4)

    for result in (none, four):
        with pytest.raises(Exception, match="never"):
            result.get(timeout=10)
    assert (none.job().attempt, four.job().attempt) == (1, 5)


def test_state_between_two_attempts_is_retry(app: App, workers: Workers) -> None:
    workers.start()

    result = sample_app.flaky_self.delay()
    seen = set()
    while not result.ready():
        seen.add(result.state)

    assert seen <= {"PENDING", "STARTED", "RETRY", "SUCCESS"}
    assert "RETRY" in seen


def test_cancel_of_a_running_job_stops_its_retries(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: psycopg.Connection[Any]
) -> None:
    workers.start()
    result = sample_app.retry_at_gate.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)

    assert app.cancel(result) == {result.id: "requested"}
    gate.open()
    wait_until_finished(connection, 1)

    assert result.job().state is JobState.CANCELLED
    assert result.state == "REVOKED"
    assert len(runs.of(result.id)) == 1


def test_cancel_of_a_running_job_that_succeeds_changes_nothing(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start()
    result = sample_app.step.delay(runs.path, str(gate))
    pid = wait_until_begun(runs, result.id)

    result.revoke()
    gate.open()

    assert result.get(timeout=10) == pid


def test_cancelled_job_that_waits_does_not_run(
    app: App, workers: Workers, runs: Runs, connection: psycopg.Connection[Any]
) -> None:
    cancelled, other = (sample_app.step.delay(runs.path) for _ in range(2))
    later = sample_app.step.apply_async((runs.path,), countdown=0.1)

    assert app.cancel(cancelled, later) == {cancelled.id: "cancelled", later.id: "cancelled"}
    workers.start()
    other.get(timeout=10)
    wait_until_finished(connection, 3)

    assert not runs.of(cancelled.id)
    assert not runs.of(later.id)
