"""at_most_once: what may have run when its process died never runs again; it fails as lost."""

import os
import signal

import pytest

from pgtasks import App, JobLostError, JobState
from tests.fixtures import limited_app, sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    Workers,
    wait_until_begun,
    wait_until_finished,
    warm_up,
)

LIMITED = "tests.fixtures.limited_app"


def test_a_job_whose_child_dies_is_lost_and_never_runs_again(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(LIMITED)
    result = limited_app.once.delay(runs.path, str(gate))

    os.kill(wait_until_begun(runs, result.id), signal.SIGKILL)

    with pytest.raises(JobLostError, match="SIGKILL"):
        result.get(timeout=10)
    assert result.job().attempt == 1
    assert limited_app.once.delay(runs.path).get(timeout=10) == 1
    assert len(runs.of(result.id)) == 1


def test_a_job_whose_parent_dies_is_lost_and_never_runs_again(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    victim = workers.start(LIMITED, beat=0.2)
    result = limited_app.once.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)

    victim.kill()
    workers.start(LIMITED, beat=0.2)

    with pytest.raises(JobLostError, match="died"):
        result.get(timeout=10)
    assert len(runs.of(result.id)) == 1


def test_a_second_signal_loses_what_runs_and_gives_nothing_back(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    worker = workers.start(LIMITED)
    running = limited_app.once.delay(runs.path, str(gate))
    wait_until_begun(runs, running.id)
    waiting = limited_app.once.delay(runs.path)

    worker.signal(signal.SIGQUIT)
    worker.wait()

    assert running.job().state is JobState.FAILED
    job = waiting.job()
    assert (job.state, job.attempt) == (JobState.READY, 0)


def test_no_more_are_claimed_than_can_begin(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(LIMITED, concurrency=2)
    results = app.enqueue_many(limited_app.once.s(runs.path, str(gate)) for _ in range(6))

    def two_run() -> None:
        states = [result.job().state for result in results]
        assert states.count(JobState.RUNNING) == 2
        assert sum(bool(runs.of(result.id)) for result in results) == 2

    eventually(two_run)
    gate.open()

    assert [result.get(timeout=10) for result in results] == [1] * 6


def test_they_take_turns_with_a_backlog_of_others(
    app: App, workers: Workers, runs: Runs, connection
) -> None:
    workers.start(LIMITED, concurrency=1)
    warm_up(runs)
    backlog = app.enqueue_many(
        sample_app.step.s(runs.path, None, False, 0.002) for _ in range(1500)
    )
    once = app.enqueue_many(limited_app.once.s(runs.path) for _ in range(20))

    assert [result.get(timeout=20) for result in once] == [1] * 20

    left = sum(not result.ready() for result in backlog[-200:])
    assert left > 0, "the backlog was through first"
    wait_until_finished(connection, timeout=30)
