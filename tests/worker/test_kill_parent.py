"""A parent that is killed: no orphans, no sessions left behind, its jobs come back at once."""

from functools import partial
from typing import Any

import psycopg

from pgtasks import App, JobState
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    RunningWorker,
    Workers,
    is_alive,
    wait_until_begun,
    wait_until_finished,
    wait_until_held,
    warm_up,
)

Connection = psycopg.Connection[Any]


def sessions(connection: Connection, name: str) -> int:
    row = connection.execute(
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and application_name = %s",
        [f"pgtasks {name}"],
    ).fetchone()
    assert row is not None
    return row[0]


def known_as_running(connection: Connection, id: str) -> None:
    row = connection.execute(
        "select count(*) from pgtasks.worker where %s::uuid = any(running)", [id]
    ).fetchone()
    assert row == (1,)


def gone(worker: RunningWorker, children: list[int]) -> None:
    assert not any(map(is_alive, children))


def test_children_die_with_their_parent(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    worker = workers.start(concurrency=3, name="victim")
    running = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, running.id)
    children = worker.has_children(3)
    assert sessions(connection, "victim") == 2

    worker.kill()

    eventually(lambda: gone(worker, children), timeout=2.0)

    def disconnected() -> None:
        assert sessions(connection, "victim") == 0

    eventually(disconnected, timeout=2.0)


def test_other_worker_on_the_host_rescues_the_jobs_of_a_killed_parent(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    victim = workers.start(concurrency=1, beat=0.2)
    warm_up(runs)
    running, *prefetched = app.enqueue_many(
        [sample_app.step.s(runs.path, str(gate))] + [sample_app.step.s(runs.path) for _ in range(8)]
    )
    first = wait_until_begun(runs, running.id)
    wait_until_held(connection, 9)
    eventually(lambda: known_as_running(connection, running.id))

    victim.kill()
    eventually(lambda: gone(victim, [first]), timeout=2.0)
    rescuer = workers.start(concurrency=2, beat=0.2)
    gate.open()
    wait_until_finished(connection, 39, timeout=5.0)

    rescuer.said("worker.rescued")
    job = running.job()
    assert (job.state, job.crashes, job.attempt) == (JobState.SUCCEEDED, 1, 2)
    assert [run.attempt for run in runs.of(running.id)] == [1, 2]
    for result in prefetched:
        job = result.job()
        assert (job.state, job.crashes, job.attempt) == (JobState.SUCCEEDED, 0, 1)
        assert len(runs.of(result.id)) == 1
    row = connection.execute(
        "select (select count(*) from pgtasks.worker), (select count(*) from pgtasks.claim)"
    ).fetchone()
    assert row == (1, 0)


def test_worker_that_runs_already_rescues_without_waiting_for_the_lease(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    workers.start(concurrency=1, beat=0.3, lease=60.0)
    victim = workers.start(concurrency=1, beat=0.3, lease=60.0)
    # As many as there are children: each worker takes one.
    results = [sample_app.step.delay(runs.path, str(gate)) for _ in range(2)]
    for result in results:
        wait_until_begun(runs, result.id)
        eventually(partial(known_as_running, connection, result.id))

    victim.kill()
    gate.open()
    wait_until_finished(connection, 2, timeout=5.0)

    assert sorted(result.job().crashes for result in results) == [0, 1]
    assert all(result.successful() for result in results)


def test_cancelled_job_of_a_killed_parent_does_not_run_again(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    victim = workers.start(concurrency=1, beat=0.2)
    running = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, running.id)

    app.cancel(running)
    victim.kill()
    gate.open()
    workers.start(concurrency=1, beat=0.2)
    wait_until_finished(connection, 1)

    assert running.job().state is JobState.CANCELLED
    assert len(runs.of(running.id)) == 1


def test_worker_declared_dead_by_mistake_registers_again_and_overwrites_nothing(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: Connection
) -> None:
    worker = workers.start(concurrency=1, beat=0.2)
    running = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, running.id)
    rescued = connection.execute("select pgtasks.rescue_worker(id, beat) from pgtasks.worker")
    assert rescued.fetchone() == (1,)

    worker.said("worker.lease_lost")
    second = workers.start(concurrency=1, beat=0.2)
    wait_until_begun(runs, running.id, times=2)
    gate.open()
    wait_until_finished(connection, 1)

    worker.said("job.late")
    assert running.successful()
    row = connection.execute("select count(*) from pgtasks.worker").fetchone()
    assert row == (2,)
    assert sample_app.add.delay(1, 2).get(timeout=5) == 3
    assert second.stop() == 0
    assert sample_app.add.delay(2, 3).get(timeout=5) == 5
    assert worker.stop() == 0
