"""Processes are killed or stand still, at random: lost is nothing, charged is who was running."""

import os
import random
import signal
import time
from functools import partial

import psutil
import pytest

from pgtasks import JobState
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


def test_killed_children_lose_nothing_and_charge_only_what_ran(
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    jobs = scale(1200, most=10_000)
    worker = workers.start(concurrency=4)
    results = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, rng.choice([0.0, 0.001, 0.01, 0.05]))
        for _ in range(jobs)
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
    kills = scale(5, most=60)

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
    killed_at = time.monotonic()
    if other is None:
        other = workers.launch(concurrency=1)
    wait_until_begun(runs, job.id, times=2)
    took = time.monotonic() - killed_at
    gate.open()
    job.get(timeout=10)

    measured(f"parent killed, same host, {who}: its job runs again after", took)
    assert took < 2.0
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


def test_term_at_any_moment_lets_what_runs_end_and_gives_the_rest_back(
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    grace, rounds = 10.0, scale(3, most=40)
    results = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, rng.choice([0.0, 0.002, 0.05]))
        for _ in range(300 * rounds)
    )

    slowest = 0.0
    for _ in range(rounds):
        worker = workers.start(concurrency=4, grace=grace)
        until(time.monotonic() + rng.uniform(0.0, 0.4))
        asked_at = time.monotonic()
        assert worker.stop(grace) == 0
        slowest = max(slowest, time.monotonic() - asked_at)

        assert all(run.ended is not None for run in runs.all())
        # Neither held, nor charged, nor counted as an attempt.
        assert look.one("select count(*) from pgtasks.job where token is not null") == 0
        assert look.one("select coalesce(max(attempt + crashes), 0) from pgtasks.job") == 0
        assert look.one("select count(*) from pgtasks.claim") == 0
        assert look.one("select count(*) from pgtasks.worker") == 0
    last = workers.start(concurrency=4)
    wait_until_finished(look.open(), len(results), timeout=60)

    verdict = check(look.open(), runs, {result.id for result in results})
    verdict.assert_sound()
    assert not verdict.excess
    measured("TERM under load: exit after, at worst", slowest)
    assert last.stop() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGQUIT], ids=["term", "quit"])
def test_second_signal_kills_what_runs_and_it_runs_again_elsewhere(
    workers: Workers, runs: Runs, gate: Gate, look: Look, second: signal.Signals
) -> None:
    worker = workers.start(concurrency=2)
    results = [sample_app.step.delay(runs.path, str(gate)) for _ in range(6)]
    for result in results[:2]:
        wait_until_begun(runs, result.id)

    if second == signal.SIGTERM:
        worker.signal(signal.SIGTERM)
        worker.said("worker.draining")
    worker.signal(second)
    assert worker.wait(5) == 0
    assert look.one("select max(attempt + crashes) from pgtasks.job where token is null") == 0
    gate.open()
    other = workers.start(concurrency=2)
    wait_until_finished(look.open(), len(results))

    verdict = check(look.open(), runs, {result.id for result in results})
    verdict.assert_sound()
    # The two that were killed on order, and nobody else.
    assert verdict.excess == {result.id: 1 for result in results[:2]}
    assert other.stop() == 0


def test_rolling_restart_of_three_workers_runs_every_job_once(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
) -> None:
    alive = [workers.start(concurrency=2) for _ in range(3)]
    producers = [Producer(server.dsn, runs.path, pause=0.001, work=0.005) for _ in range(2)]
    for producer in producers:
        producer.start()

    slowest = 0.0
    for _ in range(scale(1, most=10)):
        for old in tuple(alive):
            until(time.monotonic() + rng.uniform(0.0, 0.3))
            alive.append(workers.start(concurrency=2))
            asked_at = time.monotonic()
            assert old.stop() == 0
            slowest = max(slowest, time.monotonic() - asked_at)
            alive.remove(old)
    for producer in producers:
        producer.stop()
    wait_until_finished(look.open())

    committed = producers[0].committed | producers[1].committed
    assert len(committed) > 300
    verdict = check(look.open(), runs, committed)
    verdict.assert_sound()
    assert verdict.finals == {"succeeded": len(committed)}
    assert {len(found) for found in runs.by_job().values()} == {1}
    measured("rolling restart under load: a worker stops within, at worst", slowest)
    assert [worker.stop() for worker in alive] == [0, 0, 0]


WAYS = {"kill": "quarantined", "segv": "quarantined", "abort": "quarantined", "exit": "quarantined"}
WAYS |= {"memory": "failed"}  # a MemoryError is an error like any other


def test_poison_is_quarantined_and_leaves_its_neighbours_alone(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    worker = workers.start(concurrency=4)
    seconds = scale.seconds(2.0, most=20.0)
    # They sleep, so what they need is children, not this machine's processor.
    neighbours = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, 0.02) for _ in range(round(seconds * 2 * 250))
    )
    eventually(partial(_has_run, runs, 20))

    def finished_in_window() -> int:
        began = time.monotonic()
        until(began + seconds)
        ends = [run.ended for run in runs.all() if run.ended is not None]
        return sum(began <= end < began + seconds for end in ends)

    alone = finished_in_window()
    poison = {how: sample_app.crash.apply_async((runs.path, how), priority=5) for how in WAYS}
    beside = finished_in_window()
    wait_until_finished(look.open(), len(neighbours) + len(poison), timeout=60)

    verdict = check(look.open(), runs, {one.id for one in (*neighbours, *poison.values())})
    verdict.assert_sound()
    assert {how: result.job().state for how, result in poison.items()} == WAYS
    for how, result in poison.items():
        job = result.job()
        assert len(runs.of(job.id)) == job.attempt == (3 if WAYS[how] == "quarantined" else 1)
    ids = [one.id for one in neighbours]
    unlucky = "select count(*) from pgtasks.job_history where id = any(%s) and (attempt, crashes) <> (1, 0)"
    assert look.one(unlucky, ids) == 0
    measured("five kinds of poison: throughput of the others, of that without", beside / alone, "")
    assert beside >= 0.8 * alone
    worker.has_children(4)
    assert worker.stop() == 0


def _has_run(runs: Runs, number: int) -> None:
    assert len(runs.all()) >= number


def test_descriptors_memory_and_sessions_stay_flat_over_many_dead_children(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    worker = workers.start(concurrency=4)
    warm = 30
    parent = psutil.Process(worker.pid)

    def kill_some(number: int) -> None:
        for _ in range(number):
            sample_app.noop.delay()
            kill_and_wait(worker.has_children(4)[0])

    def cost() -> tuple[int, int, int]:
        worker.has_children(4)
        wait_until_finished(look.open())
        sessions = look.one(
            "select count(*) from pg_stat_activity where application_name like 'pgtasks %%'"
        )
        return parent.num_fds(), sessions, parent.memory_info().rss

    kill_some(warm)
    fds, sessions, memory = cost()
    kills = scale(120, most=10_000)
    kill_some(kills)
    fds_after, sessions_after, memory_after = cost()

    assert fds_after == fds
    assert sessions_after == sessions == 2
    per_child = (memory_after - memory) / kills
    measured(f"{kills} dead children: the parent grew, each", per_child / 1024, "KiB")
    assert memory_after - memory < 4 * 2**20 + kills * 1024
    # Nobody but the parent holds a connection: a child that did would keep a dead parent's session.
    for child in worker.has_children(4):
        assert not psutil.Process(child).net_connections("all")
    assert worker.stop() == 0
