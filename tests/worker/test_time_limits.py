"""Time limits: soft ones warn the task, hard ones kill its child; nobody else is hurt."""

import os
import signal
from pathlib import Path

import psycopg
import pytest

from pgtasks import App, JobState, SoftTimeLimitExceeded, TimeLimitExceeded
from tests.fixtures import limited_app, sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, wait_until_begun, wait_until_finished

LIMITED = "tests.fixtures.limited_app"


def test_a_hard_limit_kills_the_child_and_hurts_nobody_else(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    worker = workers.start(LIMITED, concurrency=2)
    neighbour = sample_app.step.delay(runs.path, str(gate))
    survivor = wait_until_begun(runs, neighbour.id)
    hanging = limited_app.hang.delay(runs.path)

    with pytest.raises(TimeLimitExceeded, match=r"time limit of 0\.4 s"):
        hanging.get(timeout=10)

    job = hanging.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.FAILED, 1, 0)
    gate.open()
    assert neighbour.get(timeout=10) == survivor
    assert neighbour.job().attempt == 1
    worker.has_children(2)
    assert worker.stop() == 0


def test_a_job_over_its_limit_is_retried_by_its_policy(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(LIMITED)
    result = limited_app.hang_once.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id, times=2)

    gate.open()

    assert result.get(timeout=10) == 1
    job = result.job()
    assert (job.attempt, job.crashes) == (2, 0)
    [first] = job.attempts
    assert first.error is not None
    assert first.error.type == "pgtasks.errors.TimeLimitExceeded"


def test_a_signal_that_was_missed_is_sent_again(app: App, workers: Workers) -> None:
    workers.start(LIMITED)

    with pytest.raises(SoftTimeLimitExceeded):
        limited_app.deaf_at_first.delay().get(timeout=10)


def test_the_hooks_of_a_task_hear_of_its_limit(
    app: App, workers: Workers, tmp_path: Path, connection: psycopg.Connection
) -> None:
    workers.start(LIMITED)
    path = tmp_path / "told"

    limited_app.hang_and_tell.delay(str(path))

    wait_until_finished(connection, 1)
    assert path.read_text().startswith("on_failure TimeLimitExceeded: ran longer than")


def test_a_child_that_stands_still_is_killed_at_the_limit(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(LIMITED)
    result = limited_app.unlimited.apply_async((runs.path, str(gate)), time_limit=1.0)
    pid = wait_until_begun(runs, result.id)

    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=10)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_soft_limit_lets_the_task_clean_up(app: App, workers: Workers, pool: str) -> None:
    workers.start(LIMITED, pool=pool)

    late, in_time = limited_app.clean_up.delay(60), limited_app.clean_up.delay(0.0)

    assert late.get(timeout=10) == "cleaned up"
    assert in_time.get(timeout=10) == "in time"


def test_a_soft_limit_that_is_not_caught_counts_like_any_exception(
    app: App, workers: Workers, runs: Runs
) -> None:
    workers.start(LIMITED)
    result = limited_app.too_slow.delay(runs.path)

    with pytest.raises(Exception, match="soft time limit"):
        result.get(timeout=10)

    assert len(runs.of(result.id)) == 2


def test_a_guarded_section_is_not_interrupted(
    app: App, workers: Workers, gate: Gate, tmp_path: Path, connection: psycopg.Connection
) -> None:
    workers.start(LIMITED)
    path = tmp_path / "section"
    result = limited_app.in_a_guarded_section.delay(str(path), str(gate))

    def limit_is_over() -> None:
        row = connection.execute(
            "select now() - started_at > interval '0.5 s' from pgtasks.job where id = %s",
            [result.id],
        ).fetchone()
        assert row == (True,)

    eventually(limit_is_over)
    gate.open()

    assert result.get(timeout=10) == "interrupted after the section"
    assert path.read_text() == "whole\n"


@pytest.mark.parametrize("where", ["call", "worker", "app"])
def test_limits_come_from_the_call_the_worker_or_the_app(
    app: App, workers: Workers, runs: Runs, gate: Gate, where: str
) -> None:
    environment = {"SAMPLE_TIME_LIMIT": "0.3"} if where == "app" else {}
    options = {"time_limit": 0.3} if where == "worker" else {}
    workers.start(LIMITED, environment, **options)
    limit = 0.3 if where == "call" else None
    result = limited_app.unlimited.apply_async((runs.path, str(gate)), time_limit=limit)

    with pytest.raises(TimeLimitExceeded, match=r"0\.3 s"):
        result.get(timeout=10)


@pytest.mark.parametrize("at_once", [1, 10])
def test_coroutines_have_both_limits(app: App, workers: Workers, runs: Runs, at_once: int) -> None:
    workers.start(LIMITED, async_concurrency=at_once)

    soft, hard = limited_app.clean_up_later.delay(60), limited_app.hang_in_await.delay(runs.path)

    assert soft.get(timeout=10) == "cleaned up"
    with pytest.raises(TimeLimitExceeded, match=r"0\.3 s"):
        hard.get(timeout=10)
    assert hard.job().attempt == 1


def test_a_coroutine_that_holds_up_the_loop_is_killed_and_its_neighbours_run_again(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    worker = workers.start(LIMITED, concurrency=1, async_concurrency=10)
    neighbours = [limited_app.wait_in_await.delay(runs.path, str(gate)) for _ in range(3)]
    for one in neighbours:
        wait_until_begun(runs, one.id)

    result = limited_app.hang_the_loop.delay(runs.path)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)
    gate.open()
    assert [one.get(timeout=10) for one in neighbours] == [1, 1, 1]
    for one in neighbours:
        assert one.job().crashes == 0
    assert worker.stop() == 0
