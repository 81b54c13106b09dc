"""Running jobs say how far they are: seen within a second or two, by whatever pool, and throttled."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgtasks import App, Job
from pgtasks.result import AsyncResult
from tests.fixtures import progress_app, sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, until, wait_until_begun

PROGRESS = "tests.fixtures.progress_app"


def wait_until_said(result: AsyncResult[Any], text: str) -> Job:
    """Wait until the database knows that a job said so."""

    def said() -> Job:
        job = result.job()
        assert job.progress.text() == text
        return job

    return eventually(said)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (progress_app.stand, {"concurrency": 1}),
        (progress_app.stand, {"pool": "threads", "concurrency": 3}),
        (progress_app.stand, {"pool": "solo"}),
        (progress_app.stand_later, {"concurrency": 1}),
        (progress_app.stand_later, {"concurrency": 1, "async_concurrency": 3}),
        (progress_app.stand_in_transaction, {"concurrency": 1}),
    ],
    ids=["prefork", "threads", "solo", "coroutine", "coroutines", "transactional"],
)
def test_what_a_job_said_last_is_seen_while_it_runs_and_gone_when_it_ends(
    app: App, workers: Workers, runs: Runs, gate: Gate, task: Any, options: dict[str, Any]
) -> None:
    workers.start(PROGRESS, **options)
    several = options.get("pool") == "threads" or "async_concurrency" in options
    results = [
        task.delay(runs.path, str(gate), done, 40) for done in ((12, 30, 5) if several else (12,))
    ]

    shares = [
        wait_until_said(result, f"{done}/40 ({done * 2.5:.0f} %) reading")
        for result, done in zip(results, (12, 30, 5), strict=False)
    ]
    assert all(share.progress.at for share in shares)
    gate.open()
    for result in results:
        result.get(timeout=10)

    assert not any(result.job().progress for result in results)
    assert [run.attempt for run in runs.all()] == [1] * len(results)


def test_a_word_of_its_own_is_the_state_until_the_end(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(PROGRESS)
    result = progress_app.say_word.delay(runs.path, str(gate))
    wait_until_said(result, "READING")

    assert (result.state, result.info) == ("READING", {"page": 3})
    gate.open()
    assert result.get(timeout=10) == "read"
    assert (result.state, result.info) == ("SUCCESS", "read")


@pytest.fixture
def writes(connection: psycopg.Connection[Any]) -> Iterator[Any]:
    """How many statements have written progress."""
    connection.execute(
        "create sequence public.progress_writes;"
        "create function public.count_write() returns trigger language plpgsql security definer as"
        " $$ begin perform nextval('public.progress_writes'); return null; end $$;"
        "create trigger counted after insert on pgtasks.job_progress"
        " for each statement execute function public.count_write()"
    )

    def written() -> int:
        row = connection.execute(
            "select case when is_called then last_value else 0 end from public.progress_writes"
        ).fetchone()
        assert row is not None
        return int(row[0])

    yield written
    connection.execute(
        "drop trigger counted on pgtasks.job_progress; drop function public.count_write();"
        "drop sequence public.progress_writes"
    )


def test_a_thousand_reports_a_second_of_four_children_are_one_statement_a_second(
    app: App, workers: Workers, runs: Runs, gate: Gate, writes: Any
) -> None:
    workers.start(PROGRESS, concurrency=4)
    results = [progress_app.count.delay(runs.path, str(gate)) for _ in range(4)]
    for result in results:
        wait_until_begun(runs, result.id)
    eventually(lambda: _all_said_something(results))
    began, before = time.monotonic(), writes()

    until(began + 3.0)
    gate.open()
    reports = [result.get(timeout=10) for result in results]
    written, took = writes() - before, time.monotonic() - began

    assert sum(reports) > 1000
    # Every 0.9 to 1.0 s; one more at each end.
    assert 2 <= written <= took / 0.9 + 2


def _all_said_something(results: list[AsyncResult[Any]]) -> None:
    assert all(result.job().progress for result in results)


def test_jobs_that_say_nothing_are_written_nothing_for(
    app: App, workers: Workers, runs: Runs, gate: Gate, writes: Any
) -> None:
    workers.start(PROGRESS)
    result = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id)

    until(time.monotonic() + 1.2)
    gate.open()
    result.get(timeout=10)

    assert writes() == 0


def test_a_child_that_is_killed_right_after_a_report_leaves_none_to_the_next_attempt(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    workers.start(PROGRESS)
    result = progress_app.die_once.delay(runs.path, str(gate))
    wait_until_begun(runs, result.id, times=2)

    until(time.monotonic() + 1.2)  # the next look at the slates
    job = result.job()
    gate.open()
    result.get(timeout=10)

    assert (job.attempt, job.crashes) == (2, 1)
    assert not job.progress


def test_a_retried_job_starts_anew(app: App, workers: Workers, runs: Runs, tmp_path: Path) -> None:
    first, second = Gate(tmp_path / "first"), Gate(tmp_path / "second")
    workers.start(PROGRESS)
    result = progress_app.say_and_retry.delay(runs.path, str(first), str(second))
    wait_until_said(result, "39/40 (98 %)")

    first.open()
    wait_until_begun(runs, result.id, times=2)
    until(time.monotonic() + 1.2)  # the next look at the slates
    job = result.job()
    second.open()
    result.get(timeout=10)

    assert job.attempt == 2
    assert not job.progress


def test_what_cannot_be_said_is_an_error_in_the_task_which_may_go_on(
    app: App, workers: Workers
) -> None:
    workers.start(PROGRESS)

    refused = progress_app.say_nothing_of_value.delay().get(timeout=10)

    assert [one.partition(":")[0] for one in refused] == ["done", "done", "done"]


def test_a_report_is_cheap_in_a_worker_too(app: App, workers: Workers) -> None:
    workers.start(PROGRESS)

    # 2 µs; with the processor shared by other tests a good deal more.
    assert progress_app.measure.delay().get(timeout=10) < 50
