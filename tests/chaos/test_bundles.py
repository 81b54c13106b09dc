"""Large groups that several workers finish at once, and last members that end at the same moment."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest

from pgtasks import chord
from pgtasks.db.embedded import TemporaryServer
from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.runs import Runs
from tests.fixtures.simulated_worker import SimulatedWorker, blocked_on_a_lock
from tests.fixtures.workers import Workers, wait_until_finished

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("killed", [False, True], ids=["", "one parent is killed"])
def test_four_workers_count_a_large_group_exactly_and_its_callback_runs_once(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured, killed: bool
) -> None:
    members = scale(2000, most=20_000)
    all_workers = [workers.start(concurrency=1) for _ in range(4)]
    # Every other one takes its time, so that each worker has its share.
    result = chord(
        (
            sample_app.step.si(runs.path, work=0.004)
            if number % 2
            else sample_app.record.si(runs.path, number)
            for number in range(members)
        ),
        sample_app.echo.s(),
    ).delay()

    if killed:
        eventually(partial(all_have_finished_some, look.open()), 30.0)
        all_workers[0].kill()
    wait_until_finished(look.open(), members + 1, timeout=100.0)

    # In the order of the members, each once, though some may have run twice.
    given = result.get(timeout=1.0)
    assert given[::2] == list(range(0, members, 2))
    assert len(given) == members
    assert len(set(given[1::2])) == 4  # the processes that ran them
    bundle = sample_app.app.bundle(str(result.job().after_bundle_id))
    assert (bundle.total, bundle.remaining, bundle.failed) == (members, 0, 0)
    job = result.job()
    assert (job.attempt, job.crashes) == (1, 0)
    again = sum(len(one) - 1 for one in runs.by_job().values())
    assert killed or again == 0
    if killed:
        measured(f"{members} members, 4 workers: ran again after the kill", again, "jobs")


def all_have_finished_some(connection: psycopg.Connection) -> None:
    """What a process has only run is run again elsewhere when its parent is killed; what is written stays its own."""
    row = connection.execute(
        "select count(distinct result) from pgtasks.job_history where task = %s",
        [sample_app.step.name],
    ).fetchone()
    assert row == (4,)


def test_two_last_members_that_end_at_the_same_moment_release_the_callback_once_with_both_results(
    server: TemporaryServer, look: Look, scale: Scale
) -> None:
    rounds = scale(60, most=3000)
    ends: Counter[str] = Counter()
    with (
        psycopg.connect(server.dsn, autocommit=True) as one,
        psycopg.connect(server.dsn, autocommit=True) as two,
        psycopg.connect(server.dsn) as holding,
        ThreadPoolExecutor(2) as threads,
    ):
        pair = [SimulatedWorker(one), SimulatedWorker(two)]
        for number in range(rounds):
            fails = number % 3 == 0
            members = [sample_app.echo.s(index) for index in range(2)]
            body = chord(members, sample_app.echo.s()).delay()
            held = [worker.claim_one() for worker in pair]
            bundle_id = held[0].bundle_id
            holding.execute("select from pgtasks.job_bundle where id = %s for update", [bundle_id])
            start = threading.Barrier(2)

            def end(index: int, worker: SimulatedWorker) -> None:
                start.wait(10)  # noqa: B023
                if fails and index:  # noqa: B023
                    worker.fail(held[index])  # noqa: B023
                else:
                    worker.succeed(held[index], index)  # noqa: B023

            ended = [threads.submit(end, index, worker) for index, worker in enumerate(pair)]
            for worker in pair:
                eventually(
                    partial(blocked_on_a_lock, look.open(), worker.connection.info.backend_pid)
                )
            holding.rollback()
            for future in ended:
                future.result(10)

            job = body.job()
            ends[str(job.state)] += 1
            found = look.open().execute(
                "select remaining, failed, stopped_at is not null from pgtasks.job_bundle where id = %s",
                [bundle_id],
            )
            assert found.fetchone() == (0, int(fails), True)
            if not fails:
                callback = pair[0].claim_one()
                assert json.loads(callback.input or "") == [0, 1]
                pair[0].succeed(callback)

    assert ends == {
        "ready": rounds - len(range(0, rounds, 3)),
        "cancelled": len(range(0, rounds, 3)),
    }
    assert look.one("select count(*) from pgtasks.job") == 0
