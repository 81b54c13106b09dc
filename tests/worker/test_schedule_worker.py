"""Real workers tick, in each of them and by a beat alone, once and on time."""

import itertools
from datetime import timedelta
from typing import Any

import psycopg

from pgtasks import App
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import RunningWorker, Workers

MODULE = "tests.fixtures.schedule_app"
TASK = f"{MODULE}.tick"


def scheduled(workers: Workers, *names: str, ledger: str = "", **options: Any) -> RunningWorker:
    """Start a worker with these schedules in its code."""
    environment = {"SCHEDULES": ",".join(names), "LEDGER": ledger}
    return workers.start(MODULE, environment, **options)


def test_a_beat_sees_to_the_ticks_that_a_worker_runs_once_and_on_time(
    workers: Workers, runs: Runs, app: App, connection: psycopg.Connection[Any]
) -> None:
    silent = scheduled(workers, "second", ledger=runs.path, schedules=False, concurrency=1)
    jobs = "select count(*) from pgtasks.jobs"
    eventually(lambda: app.schedules.get("second"))
    started = connection.execute("select clock_timestamp()").fetchone()
    assert started is not None
    beat = scheduled(workers, "second", ledger=runs.path, pool="beat", name="beat@%h")

    def ran() -> None:
        row = connection.execute(f"{jobs} where state = 'succeeded'").fetchone()
        assert row is not None
        assert row[0] >= 4

    eventually(ran)
    codes = [one.stop() for one in (beat, silent)]

    rows = connection.execute(
        "select start_at, created_at, started_at, id::text from pgtasks.jobs order by start_at"
    ).fetchall()
    ticks = [row[0] for row in rows]
    assert codes == [0, 0]
    assert {b - a for a, b in itertools.pairwise(ticks)} == {timedelta(seconds=1)}
    assert rows[0][1] > started[0] - timedelta(seconds=0.001)  # none before the beat was there
    assert all(timedelta(0) <= created - tick < timedelta(seconds=1) for tick, created, *_ in rows)
    ran_ids = [run.id for run in runs.all()]
    assert sorted(ran_ids) == sorted(id for *_, began, id in rows if began)
    assert beat.children() == []


def test_a_sleeping_worker_hears_of_a_new_schedule_and_of_one_that_is_gone(
    workers: Workers, app: App, connection: psycopg.Connection[Any]
) -> None:
    first = scheduled(workers, "nightly", "gone", pool="beat")
    eventually(lambda: app.schedules.get("gone"))

    def planned() -> None:
        assert app.schedules.get("nightly").next_at is not None

    eventually(planned)
    app.schedules.add("new", "every 0.5s", TASK)

    def ticked() -> None:
        row = connection.execute("select min(created_at - start_at) from pgtasks.job").fetchone()
        assert row is not None
        assert row[0] is not None
        assert row[0] < timedelta(seconds=0.4)

    eventually(ticked, 2.0)

    scheduled(workers, "nightly", pool="threads", concurrency=1)
    assert app.schedules.get("gone").state == "active"  # an older worker has it yet
    assert first.stop() == 0
    connection.execute("select pgtasks.keep_schedules()")

    assert [one.name for one in app.schedules.list()] == ["new", "nightly"]
