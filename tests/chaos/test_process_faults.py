"""Processes are killed or stand still, at random: lost is nothing, charged is who was running."""

import os
import random
import signal
import time
from functools import partial

import pytest

from pgtasks import JobState
from pgtasks.db.embedded import TemporaryServer
from tests.chaos.conftest import Look
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.producer import Producer
from tests.fixtures.runs import Runs
from tests.fixtures.workers import (
    Gate,
    Workers,
    is_alive,
    until,
    wait_until_begun,
    wait_until_finished,
)

pytestmark = pytest.mark.chaos


def test_killed_children_lose_nothing_and_charge_only_what_ran(
    workers: Workers, runs: Runs, look: Look, rng: random.Random
) -> None:
    worker = workers.start(concurrency=4)
    results = sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, rng.choice([0.0, 0.001, 0.01, 0.05]))
        for _ in range(3000)
    )
    connection = look.open()

    kills = 0
    while connection.execute("select exists (select from pgtasks.job)").fetchone() == (True,):
        until(time.monotonic() + rng.uniform(0.1, 0.5))
        children = worker.children()
        if children:
            os.kill(rng.choice(children), signal.SIGKILL)
            kills += 1
        assert kills < 300
    wait_until_finished(connection, 3000)

    verdict = check(connection, runs, {result.id for result in results})
    verdict.assert_sound()
    verdict.assert_only_charged_ran_again()
    assert verdict.finals.keys() <= {"succeeded", "quarantined"}
    crashes = connection.execute("select sum(crashes) from pgtasks.job_history").fetchone()
    assert crashes is not None
    assert crashes[0] <= kills
    worker.has_children(4)
    assert worker.stop() == 0


def test_killed_parents_lose_nothing(
    server: TemporaryServer, workers: Workers, runs: Runs, look: Look, rng: random.Random
) -> None:
    producer = Producer(server.dsn, runs.path, pause=0.001, work=0.001)
    producer.start()
    kills = 6

    for _ in range(kills):  # the supervisor
        worker = workers.start(concurrency=2, beat=0.2)
        until(time.monotonic() + rng.uniform(0.0, 0.8))
        children = worker.children()
        worker.kill()
        eventually(partial(_none_lives, children), timeout=2.0)
    producer.stop()
    last = workers.start(concurrency=2, beat=0.2)
    connection = look.open()
    wait_until_finished(connection)

    verdict = check(connection, runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    assert verdict.finals.keys() <= {"succeeded", "quarantined"}
    # A job runs again for each parent at most; what it had done and not written yet, runs again too.
    assert all(excess <= kills for excess in verdict.excess.values())
    row = connection.execute("select count(*) from pgtasks.worker").fetchone()
    assert row == (1,)
    assert last.stop() == 0


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
