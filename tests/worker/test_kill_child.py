"""Children that are killed: only the job that was running is charged, and nothing is lost."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import psycopg

from pgtasks import App, JobState
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    RunningWorker,
    Workers,
    kill_and_wait,
    wait_until_begun,
    wait_until_finished,
    wait_until_held,
    warm_up,
)


def test_killed_child_charges_the_running_job_alone(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: psycopg.Connection[Any]
) -> None:
    workers.start(concurrency=1)
    warm_up(runs)
    victim, *neighbours = app.enqueue_many(
        [sample_app.step.s(runs.path, str(gate))]
        + [sample_app.step.s(runs.path) for _ in range(10)]
    )
    pid = wait_until_begun(runs, victim.id)
    wait_until_held(connection, 11)

    kill_and_wait(pid)
    gate.open()
    wait_until_finished(connection, 41)

    job = victim.job()
    assert (job.state, job.crashes, job.attempt) == (JobState.SUCCEEDED, 1, 2)
    assert [run.attempt for run in runs.of(victim.id)] == [1, 2]
    for neighbour in neighbours:
        job = neighbour.job()
        assert (job.state, job.crashes, job.attempt) == (JobState.SUCCEEDED, 0, 1)
        assert len(runs.of(neighbour.id)) == 1


def test_neighbours_of_a_killed_job_do_not_wait_for_its_second_run(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: psycopg.Connection[Any]
) -> None:
    workers.start(concurrency=2)
    warm_up(runs)
    victim, *neighbours = app.enqueue_many(
        [sample_app.step.s(runs.path, str(gate))]
        + [sample_app.step.s(runs.path) for _ in range(10)]
    )
    pid = wait_until_begun(runs, victim.id)

    kill_and_wait(pid)

    assert all(result.get(timeout=10) for result in neighbours)
    wait_until_begun(runs, victim.id, times=2)
    gate.open()
    assert victim.get(timeout=10) != pid


def test_poison_job_is_quarantined_with_the_signal(
    app: App, workers: Workers, runs: Runs, connection: psycopg.Connection[Any]
) -> None:
    worker = workers.start(concurrency=2)
    warm_up(runs)

    poison, *neighbours = app.enqueue_many(
        [sample_app.step.s(runs.path, None, True)]
        + [sample_app.step.s(runs.path) for _ in range(20)]
    )
    wait_until_finished(connection, 51)

    job = poison.job()
    assert job.state is JobState.QUARANTINED
    assert job.error is not None
    assert "SIGKILL" in job.error.message
    assert "peak memory" in job.error.message
    assert len(runs.of(poison.id)) == 3
    for neighbour in neighbours:
        assert neighbour.job().attempt == 1
        assert len(runs.of(neighbour.id)) == 1
    assert worker.process.poll() is None


def test_exit_code_of_a_child_is_told(app: App, workers: Workers) -> None:
    workers.start(concurrency=1)
    result = sample_app.exit_now.delay(7)

    eventually(lambda: _finished(result))

    job = result.job()
    assert job.state is JobState.QUARANTINED
    assert job.error is not None
    assert "exited with code 7" in job.error.message


def _finished(result: Any) -> None:
    assert result.ready()


def test_outcome_that_was_not_yet_reported_survives_its_child(
    app: App, workers: Workers, runs: Runs, connection: psycopg.Connection[Any]
) -> None:
    workers.start(concurrency=1)
    warm_up(runs)

    # One frame: ten that end within milliseconds, then one that kills the child.
    *done, poison = app.enqueue_many(
        [sample_app.step.s(runs.path) for _ in range(10)]
        + [sample_app.step.s(runs.path, None, True)]
    )
    wait_until_finished(connection, 41)

    assert {run.pid for one in done for run in runs.of(one.id)} & {
        run.pid for run in runs.of(poison.id)[:1]
    }
    for one in done:
        assert len(runs.of(one.id)) == 1
        assert one.get() == runs.of(one.id)[0].pid
        assert one.job().attempt == 1
    assert poison.job().state is JobState.QUARANTINED


def test_outcome_in_front_of_a_long_job_is_reported_at_once(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: psycopg.Connection[Any]
) -> None:
    workers.start(concurrency=1)
    warm_up(runs)

    fast, slow = app.enqueue_many(
        [sample_app.step.s(runs.path), sample_app.step.s(runs.path, str(gate))]
    )
    pid = wait_until_begun(runs, slow.id)

    assert fast.get(timeout=5) == pid
    assert not slow.ready()
    gate.open()
    assert slow.get(timeout=5) == pid


def test_cancelled_job_does_not_run_again_after_a_crash(
    app: App, workers: Workers, runs: Runs, gate: Gate, connection: psycopg.Connection[Any]
) -> None:
    workers.start(concurrency=1)
    victim = sample_app.step.delay(runs.path, str(gate))
    pid = wait_until_begun(runs, victim.id)

    app.cancel(victim)
    kill_and_wait(pid)
    gate.open()
    wait_until_finished(connection)

    assert victim.job().state is JobState.CANCELLED
    assert len(runs.of(victim.id)) == 1


def test_descriptors_stay_flat_over_fifty_dead_children(
    app: App, workers: Workers, runs: Runs
) -> None:
    worker = workers.start(concurrency=1)
    process = psutil.Process(worker.pid)

    def recycle() -> None:
        kill_and_wait(sample_app.step.delay(runs.path).get(timeout=10))

    for _ in range(3):
        recycle()
    # A child that answers is whole: right after its fork the parent has both ends of its pipes.
    sample_app.step.delay(runs.path).get(timeout=10)
    before = process.num_fds(), len(process.memory_maps(grouped=False))
    for _ in range(50):
        recycle()
    sample_app.step.delay(runs.path).get(timeout=10)

    assert process.num_fds() == before[0]
    assert len(process.memory_maps(grouped=False)) <= before[1] + 3


def test_idle_child_that_is_killed_is_replaced(app: App, workers: Workers) -> None:
    worker = workers.start(concurrency=2)
    victim, neighbour = worker.has_children(2)

    kill_and_wait(victim)

    def replaced() -> None:
        found = worker.children()
        assert len(found) == 2
        assert neighbour in found

    eventually(replaced)


def test_children_that_cannot_start_are_not_forked_without_end(
    app: App, workers: Workers, tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing" / "file")  # the hook of the app raises
    worker = workers.start(environment={"SAMPLE_HOOKS": missing}, concurrency=2)

    eventually(lambda: _said(worker, "exited with code 1", 4))

    assert worker.log().count("exited with code 1") < 10
    assert worker.stop() == 0


def _said(worker: RunningWorker, text: str, times: int) -> None:
    assert worker.log().count(text) >= times


def test_children_hold_nothing_of_parent_and_siblings(app: App, workers: Workers) -> None:
    worker = workers.start(concurrency=3)
    sample_app.noop.delay().get(timeout=10)
    kill_and_wait(worker.has_children(3)[1])  # one that is forked while all is open
    sample_app.noop.delay().get(timeout=10)
    children = worker.has_children(3)

    parent = descriptors(worker.pid)
    own = {pid: descriptors(pid) for pid in children}

    assert [one for one in parent if one.startswith("socket:")]  # the database's
    for pid, found in own.items():
        assert not [one for one in found if one.startswith("socket:")], (pid, found)
        assert not [one for one in found if "eventpoll" in one], (pid, found)
        pipes = {one for one in found if one.startswith("pipe:")}
        assert len(pipes) == 2, (pid, found)
        for other in children:
            assert other == pid or not pipes & set(own[other])


def descriptors(pid: int) -> list[str]:
    """Return what a process has open beyond stdin, stdout and stderr."""
    folder = f"/proc/{pid}/fd"
    return [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder) if int(fd) > 2]


def test_signals_to_the_whole_process_group_leave_children_to_the_parent(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    worker = workers.start(concurrency=1)
    result = sample_app.step.delay(runs.path, str(gate))
    pid = wait_until_begun(runs, result.id)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        os.kill(pid, number)
    gate.open()

    assert result.get(timeout=10) == pid
    assert worker.has_children(1) == [pid]
