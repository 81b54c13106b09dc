"""Jobs of tasks that no worker knows stand at the head of the line: they are let alone, and cost little."""

import time

import psycopg
import pytest

from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Workers, wait_until_finished

pytestmark = pytest.mark.chaos

LATER = "later"  # `other_app` knows it, `sample_app` does not
# What must be reached with unknown jobs at the head, of the rate without them. Each job sleeps, so the
# rates are those of four children and not of the machine, but for what it does besides.
SHARE = 0.9


def test_unknown_tasks_at_the_head_are_never_claimed_and_run_once_a_worker_knows_them(
    workers: Workers, runs: Runs, look: Look, scale: Scale, measured: Measured
) -> None:
    unknown = scale(2000, most=100_000)
    connection = look.open()
    sample_app.app.send_task(LATER, (0,))  # not parked yet, although a worker looks when it starts
    worker = workers.start(concurrency=4)
    baseline = rate(runs, connection, scale(600, most=4000))

    connection.execute(
        "insert into pgtasks.job (id, queue, task, priority, args)"
        " select pgtasks.new_id(), 'default', %s, 10, jsonb_build_array(n)::text"
        " from generate_series(1, %s) n",
        [LATER, unknown - 1],
    )
    # What the insert itself brings along (autovacuum, a checkpoint) is no part of the comparison.
    connection.execute("vacuum analyze pgtasks.job")
    connection.execute("checkpoint")
    beside = rate(runs, connection, scale(600, most=4000))

    untouched = (
        "select count(*) from pgtasks.job where attempt = 0 and token is null and crashes = 0"
    )
    assert look.one(untouched) == unknown
    measured(
        f"{unknown} unknown jobs at the head: throughput, of that without", beside / baseline, ""
    )
    assert beside >= scale.share(SHARE) * baseline

    # What has waited for a minute is parked: a worker looks when it starts.
    rest = min(unknown, 900)
    connection.execute(
        "delete from pgtasks.job where ctid in (select ctid from pgtasks.job offset %s)", [rest]
    )
    connection.execute("update pgtasks.job set created_at = created_at - interval '2 minutes'")
    second = workers.start(concurrency=1)
    parked = "select count(*) from pgtasks.job where state = 'parked' and reason = 'unknown task'"

    def all_are_parked() -> None:
        assert look.one(parked) == rest

    eventually(all_are_parked)
    assert look.one(untouched) == rest
    began = time.monotonic()
    knowing = workers.start("tests.fixtures.other_app", concurrency=2)
    wait_until_finished(connection, timeout=60)
    measured(
        f"{rest} parked jobs: all run, from the start of a worker that knows them",
        time.monotonic() - began,
    )

    done = "select count(*) from pgtasks.job_history where task = %s and state = 'succeeded' and attempt = 1"
    assert look.one(done, LATER) == rest
    check(connection, runs, {run.id for run in runs.all()}, later_ids(connection)).assert_sound()
    assert [one.stop() for one in (worker, second, knowing)] == [0, 0, 0]


def rate(runs: Runs, connection: psycopg.Connection, number: int) -> float:
    """Run so many known jobs, and return how many a second there were."""
    before = len(runs.all())
    began = time.monotonic()
    sample_app.app.enqueue_many(
        sample_app.step.s(runs.path, None, False, 0.01) for _ in range(number)
    )

    def done() -> None:
        row = connection.execute(
            "select count(*) from pgtasks.job_history where task = %s", [sample_app.step.name]
        ).fetchone()
        assert row == (before + number,)

    eventually(done, 60.0)
    return number / (time.monotonic() - began)


def later_ids(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute(
        "select id::text from pgtasks.job_history where task = %s", [LATER]
    ).fetchall()
    return {id for (id,) in rows}


def test_worker_of_an_older_version_leaves_new_tasks_to_the_newer_one(
    workers: Workers, runs: Runs, look: Look, scale: Scale
) -> None:
    number = scale(300, most=5000)
    old = workers.start(concurrency=2)
    new = workers.start("tests.fixtures.other_app", concurrency=2)
    results = []
    for _ in range(number):
        results.append(sample_app.step.delay(runs.path))
        results.append(sample_app.app.send_task(LATER, (1,)))
    wait_until_finished(look.open(), len(results))

    ends = look.open().execute(
        "select task, state, attempt, crashes, count(*) from pgtasks.job_history group by 1, 2, 3, 4"
    )
    assert set(ends.fetchall()) == {
        (LATER, "succeeded", 1, 0, number),
        (sample_app.step.name, "succeeded", 1, 0, number),
    }
    assert {run.pid for run in runs.all()} <= {*old.children(), *new.children()}
    assert [worker.stop() for worker in (old, new)] == [0, 0]
