"""Claiming: who gets which jobs, in which order, and what a claim costs."""

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState
from tests.fixtures.simulated_worker import SimulatedWorker


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def fill(connection: psycopg.Connection[Any], count: int) -> None:
    """Insert jobs by plain SQL: many, and quickly."""
    connection.execute(
        "insert into pgtasks.job (id, queue, task, args)"
        " select pgtasks.new_id(), 'default', 'echo', '[' || n || ']' from generate_series(1, %s) n",
        [count],
    )


def test_jobs_come_by_priority_then_in_the_order_of_their_arrival(app, echo, worker):
    priorities = [0, 5, -1, 5, 0, -1, 2**31 - 1, -(2**31)]
    ids = [echo.apply_async(priority=one).id for one in priorities]

    claimed = [worker.claim_one().id for _ in ids]

    by_priority = sorted(
        zip(priorities, range(len(ids)), ids, strict=True), key=lambda j: (-j[0], j[1])
    )
    assert claimed == [id for _, _, id in by_priority]
    assert worker.claim() == []


def test_a_claim_tells_everything_that_running_the_job_takes(app, echo, worker):
    result = echo.apply_async((7,), priority=3, retries=2, origin="shop", expires=3600)

    held = worker.claim_one()

    job = result.job()
    assert (held.id, held.task, held.queue, held.args, held.kwargs) == (
        job.id,
        "echo",
        "default",
        "[7]",
        "{}",
    )
    assert (held.priority, held.options, held.origin) == (3, '{"retries": 2}', "shop")
    assert (held.attempt, held.crashes, held.attempts, held.expired) == (1, 0, None, False)
    assert held.created_at == pytest.approx(job.created_at.timestamp(), abs=1e-5)
    assert held.expires_at == pytest.approx(held.created_at + 3600, abs=1e-5)


def test_a_claimed_job_is_running_and_belongs_to_its_worker(app, echo, worker, connection):
    result = echo.delay()

    held = worker.claim_one()

    job = result.job()
    assert job.state is JobState.RUNNING
    assert (job.attempt, job.worker_id) == (1, worker.id)
    assert job.started_at is not None
    claims = connection.execute(
        "select token::text, worker_id, queue, job_ids::text[] from pgtasks.claim"
    )
    assert claims.fetchall() == [(held.token, worker.id, "default", [result.id])]


def test_a_claim_of_nothing_leaves_no_claim_row(worker, connection):
    assert worker.claim(tasks=["echo"]) == []

    assert connection.execute("select count(*) from pgtasks.claim").fetchone() == (0,)


@pytest.mark.parametrize("limit", [1, 5, 59, 60, 61])
def test_a_claim_never_takes_more_than_its_limit(app, connection, worker, limit):
    # A small table that was never analysed: the case where a joined subquery ran again.
    fill(connection, 60)

    counts = []
    while held := worker.claim(limit=limit):
        counts.append(len(held))

    assert counts == [limit] * (60 // limit) + ([60 % limit] if 60 % limit else [])
    [(rows,)] = connection.execute(
        "select count(*) from pgtasks.job where token is null"
    ).fetchall()
    assert rows == 0


def test_the_limit_holds_for_all_ranges_together(app, echo, worker):
    for priority in (3, 2, 1):
        for _ in range(4):
            echo.apply_async(priority=priority)

    held = worker.claim(limit=6, ranges=[(3, 3, 0), (2, 2, 0), (1, 1, 0)])

    assert [one.priority for one in held] == [3, 3, 3, 3, 2, 2]


def test_a_promotion_never_takes_more_than_its_limit(app, echo, worker, connection):
    for _ in range(60):
        echo.apply_async(countdown=60)
    connection.execute("update pgtasks.job set start_at = now() - interval '1 second'")

    for _ in range(7):
        worker.execute("promote_jobs", queue="default", limit=5)

    assert app.status().jobs[JobState.READY] == 35


def test_other_queues_unknown_tasks_and_waiting_jobs_are_stepped_over(app, echo, worker):
    @app.task(name="unknown")
    def unknown() -> None: ...

    unknown.delay()
    echo.apply_async(queue="other")
    echo.apply_async(countdown=3600)
    wanted = echo.delay()

    assert [one.id for one in worker.claim(tasks=["echo"])] == [wanted.id]
    assert worker.claim(tasks=["echo"]) == []
    assert worker.claim(tasks=[]) == []
    assert app.status().jobs[JobState.READY] == 2


def test_a_job_is_never_claimed_twice(app, echo, worker):
    echo.delay()

    assert len(worker.claim()) == 1
    assert worker.claim() == []


def test_two_connections_claim_at_once_and_no_job_twice(app, connection, dsn):
    fill(connection, 600)
    start = threading.Barrier(3)
    claimed: list[list[str]] = [[], [], []]

    def claim(mine: list[str]) -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            worker = SimulatedWorker(own)
            start.wait()
            while held := worker.claim(limit=7, tasks=["echo"]):
                mine += [one.id for one in held]

    threads = [threading.Thread(target=claim, args=[mine]) for mine in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    everything = [id for mine in claimed for id in mine]
    assert len(everything) == 600
    assert len(set(everything)) == 600


def test_a_claim_steps_over_what_another_claim_has_locked(app, echo, connection, worker, dsn):
    first, second = echo.delay().id, echo.delay().id

    with psycopg.connect(dsn) as other:
        [held] = SimulatedWorker(other).claim(limit=1, tasks=["echo"])
        # Not committed: a claim that waited for it would hang here.
        taken = [one.id for one in worker.claim(tasks=["echo"])]
        other.rollback()
    left = [one.id for one in worker.claim(tasks=["echo"])]

    assert held.id == first
    assert taken == [second]
    assert left == [first]


def test_an_expired_job_is_claimed_with_a_flag_that_says_so(app, echo, worker, connection):
    late = echo.apply_async(expires=60)
    echo.apply_async(expires=60)
    connection.execute(
        "update pgtasks.job set expires_at = now() - interval '1 second' where id = %s", [late.id]
    )

    assert [(one.id == late.id, one.expired) for one in worker.claim()] == [
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"to": "ann@example.com"}, {"body": "x" * 500}],
    ids=["no arguments", "few", "many"],
)
def test_claims_are_hot_updates(app, echo, connection, worker, arguments):
    @app.task(name="send")
    def send(**arguments: Any) -> None: ...

    app.enqueue_many([send.s(**arguments)] * 2000)

    def updates() -> tuple[int, int]:
        return connection.execute(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables"
            " where schemaname = 'pgtasks' and relname = 'job'"
        ).fetchone()

    total = hot = 0
    for _ in range(4):
        with connection.transaction():  # the counters are the session's own, in a transaction
            before = updates()
            assert len(worker.claim(limit=500, tasks=["send"])) == 500
            after = updates()
            total += after[0] - before[0]
            hot += after[1] - before[1]

    assert (total, hot) == (2000, 2000)


def test_a_look_says_where_something_is_ready_and_when_the_next_is_due(app, echo, worker):
    echo.apply_async(queue="ready")
    echo.apply_async(queue="later", countdown=60)
    echo.apply_async(queue="later", countdown=30)
    app.send_task("unknown", queue="unknown")
    echo.apply_async(queue="running")
    worker.claim("running")

    queues = ["ready", "later", "unknown", "running", "empty"]
    rows = worker.execute("look", queues=queues, tasks=["echo"], hot=[])

    looks = {queue: (ready, due) for queue, ready, due in rows}
    assert looks["ready"] == (True, None)
    assert looks["later"] == (False, pytest.approx(30, abs=5))
    assert looks["unknown"] == (False, None)
    assert looks["running"] == (False, None)
    assert looks["empty"] == (False, None)


def test_a_look_does_not_look_whether_something_is_ready_in_hot_queues(echo, worker):
    echo.apply_async(queue="hot")
    echo.apply_async(queue="hot", countdown=60)

    [(queue, ready, due)] = worker.execute("look", queues=["hot"], tasks=["echo"], hot=["hot"])

    assert (queue, ready, due) == ("hot", None, pytest.approx(60, abs=5))


def test_a_survey_names_the_highest_priorities_and_their_last_seq(app, echo, worker, connection):
    for priority in (-7, 2**31 - 1, 5, -(2**31), 5):
        app.send_task("unknown", priority=priority)
    echo.apply_async(priority=3)
    worker.claim(tasks=["echo"])  # runs, and is ready all the same
    echo.apply_async(priority=1, countdown=60)
    echo.apply_async(priority=1, queue="other")
    last = dict(
        connection.execute(
            "select priority, max(seq) from pgtasks.job where priority <> 1 group by 1 order by 1 desc"
        ).fetchall()
    )

    found = worker.execute("ready_priorities", queue="default", limit=10)
    three = worker.execute("ready_priorities", queue="default", limit=3)

    assert found == list(last.items())
    assert three == list(last.items())[:3]
    assert worker.execute("ready_priorities", queue="empty", limit=10) == []


def test_a_look_tells_how_long_a_job_is_overdue(app, echo, worker, connection):
    echo.apply_async(countdown=60)
    connection.execute("update pgtasks.job set start_at = now() - interval '1 hour'")

    [(_, _, due)] = worker.execute("look", queues=["default"], tasks=["echo"], hot=[])

    assert due == pytest.approx(-timedelta(hours=1).total_seconds(), abs=5)
