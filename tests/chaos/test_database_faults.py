"""The database goes away: nothing is lost, nothing that ended runs again, no worker exits."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
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
    until,
    wait_until_begun,
    wait_until_finished,
    wait_until_idle,
    wait_until_polls_are_rare,
)

pytestmark = pytest.mark.chaos


def sessions(connection: psycopg.Connection[Any]) -> list[int]:
    """Return the pids of the sessions that workers have."""
    return [
        pid
        for (pid,) in connection.execute(
            "select pid from pg_stat_activity where application_name like 'pgtasks %'"
        )
    ]


@pytest.mark.parametrize("how", [pytest.param("immediate", marks=pytest.mark.long), "kill -9"])
def test_restarts_under_load_lose_nothing(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
    how: str,
) -> None:
    both = [workers.start(concurrency=2) for _ in range(2)]
    producer = Producer(server.dsn, runs.path)
    producer.start()

    slowest = 0.0
    for _ in range(scale(2, most=40)):
        until(time.monotonic() + rng.uniform(0.3, 1.2))
        if how == "immediate":
            server.stop("immediate")
        else:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
        server.start()
        up_at = time.monotonic()
        for worker in both:
            eventually(partial(_has_run_since, runs, worker, up_at), 5.0)
        slowest = max(slowest, time.monotonic() - up_at)
    producer.stop()
    wait_until_finished(look.open())

    for worker in both:
        assert worker.process.poll() is None, worker.log()
    verdict = check(look.open(), runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    # No worker died, so no job had a reason to run again.
    verdict.assert_all_succeeded()
    measured(f"server restarted, {how}: both workers run jobs again after, at worst", slowest)
    assert [worker.stop() for worker in both] == [0, 0]


def _has_run_since(runs: Runs, worker: RunningWorker, moment: float) -> None:
    children = worker.children()
    assert any(run.began > moment and run.pid in children for run in runs.all())


def test_outage_longer_than_the_lease_kills_nobody(
    server: TemporaryServer, workers: Workers, runs: Runs, gate: Gate, look: Look, tmp_path: Path
) -> None:
    lease = 2.5  # more than a worker's longest pause before it connects again, which is 2 s
    both = [workers.start(concurrency=1, beat=0.3, lease=lease, name=f"w{n}") for n in range(2)]
    across = sample_app.step.delay(runs.path, str(gate))
    inner = Gate(tmp_path / "inner")
    inside = sample_app.step.delay(runs.path, str(inner))
    for result in (across, inside):
        wait_until_begun(runs, result.id)
    ids = look.open().execute("select id from pgtasks.worker order by id").fetchall()

    look.close()
    server.stop("fast")
    inner.open()

    def ended() -> None:
        assert runs.of(inside.id)[0].ended

    eventually(ended)
    until(time.monotonic() + 2 * lease)
    server.start()
    eventually(lambda: _succeeded(inside))
    until(time.monotonic() + lease + 0.5)  # the others look at its beats for longer than the lease
    gate.open()
    eventually(lambda: _succeeded(across))
    sample_app.app.close()  # what it had open is broken

    for worker in both:
        assert worker.process.poll() is None, worker.log()
    assert look.open().execute("select id from pgtasks.worker order by id").fetchall() == ids
    for result in (across, inside):
        assert len(runs.of(result.id)) == 1
        assert (result.job().attempt, result.job().crashes) == (1, 0)
    assert [worker.stop() for worker in both] == [0, 0]


def _succeeded(result: Any) -> None:
    with psycopg.connect(sample_app.app.dsn) as connection:
        row = connection.execute(
            "select state from pgtasks.jobs where id = %s", [result.id]
        ).fetchone()
    assert row == (JobState.SUCCEEDED,)


def test_storm_of_terminated_sessions_loses_nothing(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
) -> None:
    both = [workers.start(concurrency=2) for _ in range(2)]
    connection = look.open()
    eventually(lambda: _has_sessions(connection, 4))
    producer = Producer(server.dsn, runs.path)
    producer.start()

    end = time.monotonic() + scale.seconds(3.0, most=60.0)
    while time.monotonic() < end:
        until(time.monotonic() + rng.uniform(0.0, 0.1))
        victims = connection.execute(
            "select pid from pg_stat_activity where application_name similar to 'pgtasks %|producer'"
        ).fetchall()
        if victims:
            connection.execute("select pg_terminate_backend(%s)", rng.choice(victims))
    producer.stop()
    wait_until_finished(connection)

    for worker in both:
        assert worker.process.poll() is None, worker.log()
    verdict = check(connection, runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    verdict.assert_all_succeeded()
    eventually(lambda: _has_sessions(connection, 4))
    assert [worker.stop() for worker in both] == [0, 0]


def _has_sessions(connection: psycopg.Connection[Any], number: int) -> None:
    assert len(sessions(connection)) == number


@pytest.mark.long
def test_idle_worker_whose_sessions_are_cut_listens_again(
    workers: Workers, runs: Runs, look: Look
) -> None:
    worker = workers.start(concurrency=1, poll_interval=30.0)
    connection = look.open()
    wait_until_idle(connection)
    old = sessions(connection)
    assert len(old) == 2

    for pid in old:
        connection.execute("select pg_terminate_backend(%s)", [pid])

    def reconnected() -> None:
        found = sessions(connection)
        assert len(found) == 2
        assert not set(found) & set(old)

    eventually(reconnected)
    # Its polls are so far apart by now that only a notification can be quick.
    wait_until_polls_are_rare(connection, 1.2)
    began = time.monotonic()
    connection.execute("select pgtasks.enqueue(%s, args => %s)", [sample_app.add.name, "[1, 2]"])
    wait_until_finished(connection, 1)
    assert time.monotonic() - began < 0.5
    assert worker.stop() == 0


@pytest.mark.long
def test_claim_that_commits_after_its_worker_gave_up_on_it_comes_back(
    server: TemporaryServer, workers: Workers, runs: Runs, gate: Gate, look: Look
) -> None:
    """A server that stands still answers a claim after the worker has connected anew."""
    worker = workers.start(concurrency=1, poll_interval=3.0)
    connection = look.open()
    wait_until_idle(connection)
    # Had it a look under way, the old session would end with its answer, before the claim.
    work = wait_until_polls_are_rare(connection, 1.2)
    os.kill(work, signal.SIGSTOP)
    try:
        first = sample_app.step.using(connection).delay(runs.path, str(gate))
        worker.said("no reply within", timeout=25)
        wait_until_begun(runs, first.id)  # through a new connection
        second = sample_app.step.delay(runs.path)
    finally:
        os.kill(work, signal.SIGCONT)

    def old_session_is_gone() -> None:
        row = connection.execute(
            "select count(*) from pg_stat_activity where pid = %s", [work]
        ).fetchone()
        assert row == (0,)

    eventually(old_session_is_gone)
    claims = connection.execute("select count(*) from pgtasks.claim").fetchone()
    assert claims == (2,)  # the second is nobody's
    gate.open()
    wait_until_finished(connection, 2, timeout=20)

    assert (second.job().state, second.job().attempt) == (JobState.SUCCEEDED, 1)
    check(connection, runs, {first.id, second.id}).assert_sound()


def test_worker_that_is_told_to_stop_during_an_outage_ends_and_its_jobs_are_rescued(
    server: TemporaryServer, workers: Workers, runs: Runs, gate: Gate, look: Look
) -> None:
    first = workers.start(concurrency=1, beat=0.2, grace=0.5)
    result = sample_app.step.delay(runs.path, str(gate))
    pid = wait_until_begun(runs, result.id)
    look.close()
    server.stop("immediate")

    first.signal(signal.SIGTERM)
    first.wait(timeout=15)
    assert not is_alive(pid)
    server.start()
    gate.open()
    workers.start(concurrency=1, beat=0.2)
    wait_until_finished(look.open(), 1)

    check(look.open(), runs, {result.id}).assert_sound()
    assert len(runs.of(result.id)) == 2
