"""Processes are killed or stand still, at random: lost is nothing, charged is who was running."""

import os
import random
import signal
import time
from functools import partial

import pytest

from pgtasks import JobState, Task
from pgtasks.db.embedded import TemporaryServer
from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.producer import Producer
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    RunningWorker,
    Workers,
    is_alive,
    kill_and_wait,
    until,
    wait_until_begun,
    wait_until_finished,
)

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize(
    ("work", "number"),
    [((0.0, 0.001, 0.01, 0.05), 1000), ((0.001,), 5000)],
    ids=["one-by-one", "many-in-a-pipe"],
)
def test_killed_children_lose_nothing_and_charge_only_what_ran(
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
    work: tuple[float, ...],
    number: int,
) -> None:
    jobs = scale(number, most=10 * number)
    worker = workers.start(concurrency=4)
    results = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, rng.choice(work)) for _ in range(jobs)
    )
    connection = look.open()

    kills, seen, slowest = 0, [], 0.0
    while look.one("select exists (select from pgtasks.job)"):
        until(time.monotonic() + rng.uniform(0.1, 0.5))
        children = worker.children()
        seen.append(len(children))
        if len(children) == 4:
            kill_and_wait(rng.choice(children))
            killed_at = time.monotonic()
            kills += 1
            worker.has_children(4)
            slowest = max(slowest, time.monotonic() - killed_at)
        assert kills < jobs / 10
    wait_until_finished(connection, jobs)

    verdict = check(connection, runs, {result.id for result in results})
    verdict.assert_sound()
    verdict.assert_only_charged_ran_again()
    assert verdict.finals.keys() <= {"succeeded", "quarantined"}
    assert look.one("select sum(crashes) from pgtasks.job_history") <= kills
    # A kill may come when a job has been taken up, and has not written yet that it began.
    assert len(verdict.unduly) <= 1 + kills / 20
    assert sum(seen) / len(seen) >= 0.9 * 4
    assert slowest < 1.0
    measured(f"child killed ({kills} times): another is forked within, at worst", slowest)
    assert worker.stop() == 0


def test_killed_parents_lose_nothing(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    producer = Producer(server.dsn, runs.path, pause=0.001, work=0.001)
    producer.start()
    kills = scale(4, most=60)

    slowest = 0.0
    for _ in range(kills):  # the supervisor
        worker = workers.start(concurrency=2, beat=0.2)
        until(time.monotonic() + rng.uniform(0.0, 0.8))
        children = worker.children()
        worker.kill()
        killed_at = time.monotonic()
        eventually(partial(_none_lives, children), timeout=2.0)
        slowest = max(slowest, time.monotonic() - killed_at)
    producer.stop()
    last = workers.start(concurrency=2, beat=0.2)
    connection = look.open()
    wait_until_finished(connection)

    verdict = check(connection, runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    assert verdict.finals.keys() <= {"succeeded", "quarantined"}
    # A job runs again for each parent at most; what it had done and not written yet, runs again too.
    assert all(excess <= kills for excess in verdict.excess.values())
    assert look.one("select count(*) from pgtasks.worker") == 1
    measured("parent killed: its last child is gone within, at worst", slowest)
    assert last.stop() == 0


@pytest.mark.parametrize("who", ["a restart by the supervisor", "another worker"])
def test_jobs_of_a_killed_parent_run_again_on_the_same_host_within_two_seconds(
    workers: Workers, runs: Runs, gate: Gate, measured: Measured, who: str
) -> None:
    """With the default beat and lease."""
    victim = workers.start(concurrency=1)
    job = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, job.id)
    other = workers.start(concurrency=1) if who == "another worker" else None

    victim.kill()
    killed_at = ready_at = time.monotonic()
    if other is None:
        other = workers.start(concurrency=1)
        ready_at = time.monotonic()  # what Python takes to start on a busy machine is not ours
    wait_until_begun(runs, job.id, times=2)
    began_again = runs.of(job.id)[1].began
    gate.open()
    job.get(timeout=10)

    measured(f"parent killed, same host, {who}: its job runs again after", began_again - killed_at)
    assert began_again - ready_at < 2.0
    assert other.stop() == 0


def test_jobs_of_a_host_that_is_gone_run_again_within_the_lease_and_six_seconds(
    workers: Workers, runs: Runs, gate: Gate, look: Look, measured: Measured
) -> None:
    lease = 2.0
    victim = workers.start(concurrency=1, beat=0.4, lease=lease)
    move_elsewhere(look, victim)
    job = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, job.id)
    other = workers.start(concurrency=1, beat=0.4, lease=lease)

    victim.signal(signal.SIGSTOP)  # its sessions stay, as those of a host that lost its power would
    try:
        stopped_at = time.monotonic()
        wait_until_begun(runs, job.id, times=2)
        took = time.monotonic() - stopped_at
        gate.open()
        wait_until_finished(look.open(), 1)
    finally:
        victim.signal(signal.SIGCONT)

    measured(f"host gone, lease {lease:g} s: its job runs again after", took)
    assert took < lease + 6.0
    assert [worker.stop() for worker in (victim, other)] == [0, 0]


@pytest.mark.long
def test_jobs_of_a_parent_that_was_killed_on_another_host_run_again_within_ten_seconds(
    workers: Workers, runs: Runs, gate: Gate, look: Look, measured: Measured
) -> None:
    """With the default beat and lease, since the server notices that the session is gone."""
    victim = workers.start(concurrency=1)
    move_elsewhere(look, victim)
    job = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, job.id)
    other = workers.start(concurrency=1)
    until(time.monotonic() + 6.0)  # a beat with which both know of each other

    victim.kill()
    killed_at = time.monotonic()
    wait_until_begun_within(runs, job.id, 2, timeout=20.0)
    took = time.monotonic() - killed_at
    gate.open()
    wait_until_finished(look.open(), 1)

    measured("parent killed, other host: its job runs again after", took)
    assert took < 10.0
    assert other.stop() == 0


def wait_until_begun_within(runs: Runs, id: str, times: int, timeout: float) -> None:
    def begun() -> None:
        assert len(runs.of(id)) == times

    eventually(begun, timeout)


def move_elsewhere(look: Look, worker: RunningWorker) -> None:
    """Let a worker look as if it were on another machine: nobody may ask the kernel for its pid."""
    moved = look.open().execute(
        "update pgtasks.worker set boot_id = 'elsewhere', pid_namespace = 'elsewhere' where pid = %s",
        [worker.pid],
    )
    assert moved.rowcount == 1


def _none_lives(children: list[int]) -> None:
    assert not any(map(is_alive, children))


def test_parent_that_stands_still_is_replaced_and_overwrites_nothing(
    workers: Workers, runs: Runs, gate: Gate, look: Look
) -> None:
    connection = look.open()
    frozen = workers.start(concurrency=1, beat=0.2, lease=1.0)
    running = sample_app.step.delay(runs.path, str(gate))
    wait_until_begun(runs, running.id)

    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        other = workers.start(concurrency=1, beat=0.2, lease=1.0)
        wait_until_begun(runs, running.id, times=2)  # taken over after the lease
        gate.open()
        wait_until_finished(connection, 1)
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    frozen.said("worker.lease_lost")
    frozen.said("job.late")

    assert running.job().state is JobState.SUCCEEDED
    ends = connection.execute("select count(*) from pgtasks.job_history").fetchone()
    assert ends == (1,)
    assert [worker.stop() for worker in (frozen, other)] == [0, 0]


@pytest.mark.parametrize("task", [sample_app.step, sample_app.retry_at_gate], ids=["end", "retry"])
def test_late_outcome_of_a_frozen_parent_does_not_touch_the_run_of_another(
    workers: Workers, runs: Runs, gate: Gate, look: Look, task: Task
) -> None:
    frozen = workers.start(concurrency=1, beat=0.2, lease=1.0)
    job = task.delay(runs.path, str(gate))
    wait_until_begun(runs, job.id)

    frozen.signal(signal.SIGSTOP)
    try:
        gate.open()
        eventually(
            partial(_has_ended, runs, job.id)
        )  # its child said so, to a parent that does not listen
        gate.close()
        other = workers.start(concurrency=1, beat=0.2, lease=1.0, name="other")
        wait_until_begun(runs, job.id, times=2)
        holder = look.one("select token::text from pgtasks.job")
    finally:
        frozen.signal(signal.SIGCONT)
    frozen.said("job.late")

    assert look.one("select token::text from pgtasks.job") == holder
    assert job.job().state is JobState.RUNNING
    gate.open()
    wait_until_finished(look.open(), 1)
    assert "job.late" not in other.log()
    assert [worker.stop() for worker in (frozen, other)] == [0, 0]


def _has_ended(runs: Runs, id: str) -> None:
    assert runs.of(id)[0].ended


def test_frozen_parent_starts_nothing_when_it_goes_on_after_its_lease(
    workers: Workers, runs: Runs, look: Look, scale: Scale
) -> None:
    """What it held back has run elsewhere by then."""
    frozen = workers.start(concurrency=2, beat=0.2, lease=1.0)
    # So long that none waits in a pipe, and so short that some wait in the parent.
    results = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, 0.02) for _ in range(scale(150, most=2000))
    )
    eventually(partial(_has_run, runs, 40))

    frozen.signal(signal.SIGSTOP)
    try:
        other = workers.start(concurrency=2, beat=0.2, lease=1.0)
        wait_until_finished(look.open(), len(results), timeout=60)
    finally:
        resumed_at = time.monotonic()
        frozen.signal(signal.SIGCONT)
    frozen.said("worker.lease_lost")

    assert [worker.stop() for worker in (frozen, other)] == [0, 0]
    assert not [run for run in runs.all() if run.began > resumed_at]
    verdict = check(look.open(), runs, {result.id for result in results})
    verdict.assert_sound()
    assert verdict.finals == {"succeeded": len(results)}
    # What ran when it was frozen, and what had ended without being written.
    assert len(verdict.excess) <= 6


def test_child_that_stands_still_does_not_hold_up_the_others(
    workers: Workers, runs: Runs, gate: Gate, look: Look
) -> None:
    worker = workers.start(concurrency=2)
    pids = {sample_app.step.delay(runs.path).get(timeout=10) for _ in range(20)}
    victim = min(pids)
    os.kill(victim, signal.SIGSTOP)
    try:
        results = sample_app.app.enqueue_many(sample_app.step.s(runs.path) for _ in range(200))

        def most_are_done() -> None:
            # What lies in the pipe of the stopped one waits: 10 ms of work at most.
            row = look.open().execute("select count(*) from pgtasks.job").fetchone()
            assert row is not None
            assert row[0] < 100

        eventually(most_are_done)
    finally:
        os.kill(victim, signal.SIGCONT)
    wait_until_finished(look.open(), 20 + len(results))

    verdict = check(look.open(), runs, {run.id for run in runs.all()})
    verdict.assert_sound()
    assert not verdict.excess
    assert worker.stop() == 0


def _has_run(runs: Runs, number: int) -> None:
    assert len(runs.all()) >= number
