"""Which job runs when: priority and age, scheduled times, several workers, wake-ups."""

import threading
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState, group
from pgtasks.ids import new_id
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    Workers,
    until,
    wait_until_begun,
    wait_until_finished,
    wait_until_idle,
    wait_until_polls_are_rare,
    warm_up,
)

Connection = psycopg.Connection[Any]


def test_jobs_run_by_priority_and_then_by_age(
    app: App, workers: Workers, runs: Runs, connection: Connection
) -> None:
    priorities = [0, 5, -3, 5, 0, 9, -3, 0, 5, 9] * 5
    results = [
        sample_app.step.apply_async((runs.path,), priority=priority) for priority in priorities
    ]

    workers.start(concurrency=1)
    wait_until_finished(connection, len(results))

    order = {result.id: place for place, result in enumerate(results)}
    ran = [order[run.id] for run in runs.all()]
    assert ran == sorted(ran, key=lambda place: (-priorities[place], place))


def test_higher_priority_overtakes_what_waits(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    workers.start(concurrency=1)
    first = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, first.id)
    low = [sample_app.step.delay(runs.path) for _ in range(20)]
    high = sample_app.step.apply_async((runs.path,), priority=1)

    gate.open()
    wait_until_finished(connection, 22)

    assert [run.id for run in runs.all()] == [
        first.id,
        high.id,
        *(result.id for result in low),
    ]


def test_scheduled_jobs_start_on_time_and_never_before(app: App, workers: Workers) -> None:
    workers.start(concurrency=2)
    sample_app.noop.delay().get(timeout=10)

    results = [
        sample_app.noop.apply_at(timedelta(seconds=0.3 + 0.15 * number)) for number in range(8)
    ]

    late = []
    for result in results:
        result.get(timeout=10)
        job = result.job()
        assert job.started_at is not None
        assert job.start_at is not None
        late.append((job.started_at - job.start_at).total_seconds())
    assert min(late) >= 0
    assert sorted(late)[len(late) // 2] < 0.1, late  # most; single ones suffer from neighbours
    assert max(late) < 1.0, late


def test_expired_job_is_not_begun(app: App, workers: Workers, runs: Runs) -> None:
    late = sample_app.step.apply_async((runs.path,), expires=0)
    in_time = sample_app.step.apply_async((runs.path,), expires=60)

    workers.start()

    assert in_time.get(timeout=10)
    eventually(lambda: _is(late, JobState.EXPIRED))
    assert not runs.of(late.id)
    assert late.job().attempt == 0


def _is(result: Any, state: JobState) -> None:
    assert result.job().state is state


def test_bundle_of_two_thousand_counts_each_member_once(
    app: App, workers: Workers, runs: Runs, connection: Connection
) -> None:
    for _ in range(2):
        workers.start(concurrency=1)

    bundle = group(sample_app.record.s(runs.path, number) for number in range(2000)).apply()
    numbers = bundle.get(timeout=30)

    assert numbers == list(range(2000))
    found = bundle.bundle()
    assert (found.total, found.remaining, found.failed) == (2000, 0, 0)
    assert bundle.completed_count() == 2000
    by_job = runs.by_job()
    assert len(by_job) == 2000
    assert all(len(one) == 1 for one in by_job.values())
    workers_of = connection.execute("select distinct worker_id from pgtasks.job_history").fetchall()
    assert len(workers_of) == 2


def test_two_workers_never_run_one_job(
    app: App, workers: Workers, runs: Runs, connection: Connection
) -> None:
    for _ in range(2):
        workers.start(concurrency=2, claim_batch=7)
    ids: list[str] = []

    def enqueue(number: int) -> None:
        for turn in range(100):
            result = sample_app.record.apply_async(
                (runs.path,), priority=turn % 3, countdown=0.05 if turn % 5 == number else None
            )
            ids.append(result.id)

    threads = [threading.Thread(target=enqueue, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until_finished(connection, 300)

    by_job = runs.by_job()
    assert set(by_job) == set(ids)
    assert all(len(found) == 1 for found in by_job.values())
    attempts = connection.execute("select distinct attempt from pgtasks.job_history").fetchall()
    assert attempts == [(1,)]


def test_unknown_task_waits_for_a_worker_that_knows_it(
    app: App, workers: Workers, connection: Connection
) -> None:
    unknown = app.send_task("later", [5])
    workers.start(concurrency=1)
    assert [sample_app.add.delay(n, n).get(timeout=10) for n in range(5)] == [0, 2, 4, 6, 8]
    assert (unknown.job().state, unknown.job().attempt) == (JobState.READY, 0)

    workers.start(module="tests.fixtures.other_app", concurrency=1)

    assert unknown.get(timeout=10) == -5
    assert unknown.job().attempt == 1


def test_worker_serves_its_queues_only(app: App, workers: Workers, connection: Connection) -> None:
    workers.start(queues=["mail"])
    elsewhere = sample_app.add.delay(1, 2)
    here = sample_app.add.apply_async((2, 3), queue="mail")

    assert here.get(timeout=10) == 5
    assert (elsewhere.job().state, elsewhere.job().attempt) == (JobState.READY, 0)


@pytest.mark.parametrize("listen", [True, False])
def test_insert_that_commits_late_is_found_behind_the_cursor(
    app: App, workers: Workers, runs: Runs, connection: Connection, dsn: str, listen: bool
) -> None:
    workers.start(concurrency=1, listen=listen)
    warm_up(runs)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.wait(0.005):
            sample_app.step.delay(runs.path)

    feeder = threading.Thread(target=keep_busy)
    with psycopg.connect(dsn) as late:
        result = sample_app.step.using(late).delay(runs.path)  # takes its seq here
        feeder.start()
        try:
            eventually(lambda: _ran(runs, 50))
            late.commit()
            committed = time.monotonic()
            wait_until_begun(runs, result.id)
        finally:
            stop.set()
            feeder.join()

    assert runs.of(result.id)[0].began - committed < 4.0  # 1 s and what a noisy machine adds
    wait_until_finished(connection)


def _ran(runs: Runs, number: int) -> None:
    assert len(runs.all()) >= number


def test_idle_worker_is_woken_by_plain_sql(
    app: App, workers: Workers, connection: Connection
) -> None:
    workers.start(concurrency=1, poll_interval=60.0)
    wait_until_idle(connection)
    # Its polls are more than a second apart by now, so only a notification is quick.
    wait_until_polls_are_rare(connection, 0.8)

    began = time.monotonic()
    id = new_id()
    connection.execute(
        "insert into pgtasks.job (id, queue, task, args) values (%s, 'default', %s, '[1, 2]')",
        [id, sample_app.add.name],
    )
    wait_until_finished(connection, 1)
    took = time.monotonic() - began

    assert took < 0.35
    assert app.job(id).result == 3
    wait_until_idle(connection)


def test_scheduled_insert_wakes_an_idle_worker_in_time(
    app: App, workers: Workers, connection: Connection
) -> None:
    workers.start(concurrency=1, poll_interval=60.0)
    wait_until_idle(connection)
    wait_until_polls_are_rare(connection, 0.8)

    result = sample_app.noop.apply_async(countdown=0.1)
    result.get(timeout=10)

    job = result.job()
    assert job.started_at is not None
    assert job.start_at is not None
    assert 0 <= (job.started_at - job.start_at).total_seconds() < 0.35


def test_worker_that_does_not_listen_polls(
    app: App, workers: Workers, connection: Connection
) -> None:
    workers.start(concurrency=1, listen=False, poll_interval=0.2)

    for number in range(3):
        until(time.monotonic() + 0.1)
        assert sample_app.add.delay(number, 1).get(timeout=5) == number + 1

    row = connection.execute("select idle from pgtasks.worker").fetchone()
    assert row == (False,)
    listening = connection.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name like 'pgtasks %' and query ilike '%listen \"%'"
    ).fetchone()
    assert listening == (0,)


def test_solo_worker_runs_jobs_in_its_own_process(app: App, workers: Workers, runs: Runs) -> None:
    worker = workers.start(pool="solo")

    assert sample_app.step.delay(runs.path).get(timeout=10) == worker.pid
    assert [sample_app.add.delay(n, 1).get(timeout=10) for n in range(5)] == [1, 2, 3, 4, 5]
    assert sample_app.add_later.delay(1, 2).get(timeout=10) == 3
    assert sample_app.flaky_self.delay().get(timeout=10) == 4
    with pytest.raises(sample_app.KnownError):
        sample_app.fail.delay("solo").get(timeout=10)
    assert worker.children() == []
    assert worker.stop() == 0
