"""Jobs that wait for a bundle: released exactly once, with every result, or gone where not needed.

There is no Python API for them yet, so their rows are written as canvas will write them.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from pgtasks import App, JobState
from pgtasks.db import operations
from pgtasks.db.run import run
from tests.fixtures.bundles import add_waiter, insert_bundle, insert_job
from tests.fixtures.eventually import eventually
from tests.fixtures.simulated_worker import Held, SimulatedWorker, blocked_on_a_lock


def claim(worker: SimulatedWorker) -> dict[str, Held]:
    return {one.id: one for one in worker.claim()}


def exists(app: App, id: str) -> bool:
    return any(job.id == id for job in app.jobs(limit=1000))


def test_a_waiter_is_blocked_until_the_bundle_stops(app, connection, worker):
    bundle = insert_bundle(connection, total=2)
    members = [insert_job(connection, bundle, index=n) for n in range(2)]
    waiter = add_waiter(connection, bundle)
    held = claim(worker)
    assert set(held) == set(members)

    worker.succeed(held[members[1]], "second")
    halfway = app.job(waiter).state
    worker.succeed(held[members[0]], {"first": 1})

    assert halfway is JobState.BLOCKED
    [released] = worker.claim()
    assert released.id == waiter
    assert released.input == '[{"first": 1},"second"]'
    assert released.attempt == 1


def test_what_a_waiter_takes_is_one_result_all_results_or_nothing(app, connection, worker):
    bundle = insert_bundle(connection, total=1)
    insert_job(connection, bundle, index=0)
    takes = {
        add_waiter(connection, bundle, takes=takes): takes for takes in ("result", "results", None)
    }

    worker.run_all(result=[7])

    rows = connection.execute(
        "select id::text, input from pgtasks.job_history where after_bundle_id = %s", [bundle]
    ).fetchall()
    assert {takes[id]: input for id, input in rows} == {
        "result": "[7]",
        "results": "[[7]]",
        None: None,
    }


def test_results_come_in_the_order_of_the_members_and_a_missing_one_is_null(connection, worker):
    bundle = insert_bundle(connection, total=12)
    members = [insert_job(connection, bundle, index=n) for n in reversed(range(12))]
    add_waiter(connection, bundle)
    held = claim(worker)

    for id in members[1:]:
        worker.succeed(held[id], held[id].bundle_index)
    worker.finish(held[members[0]], result=None)

    [released] = worker.claim()
    assert released.input == "[" + ",".join(map(str, range(11))) + ",null]"


@pytest.mark.parametrize(("takes", "expected"), [("results", "[1,null]"), ("result", "null")])
def test_a_member_of_which_nothing_is_kept_gives_null(connection, worker, takes, expected):
    bundle = insert_bundle(connection, total=2 if takes == "results" else 1)
    kept = [insert_job(connection, bundle, index=0)] if takes == "results" else []
    dropped = insert_job(connection, bundle, index=1)
    add_waiter(connection, bundle, takes=takes)
    held = claim(worker)

    worker.succeed([held[id] for id in kept], 1)
    worker.finish(held[dropped], keep=False)

    [released] = worker.claim()
    assert released.input == expected


@pytest.mark.parametrize("failed", [False, True], ids=["success", "failure"])
def test_only_the_waiters_for_what_happened_run(app, connection, worker, failed):
    bundle = insert_bundle(connection, total=2)
    for n in range(2):
        insert_job(connection, bundle, index=n)
    waiters = {
        on: add_waiter(connection, bundle, after_on=on, takes=None)
        for on in ("success", "failure", "stop")
    }
    first, second = worker.claim()

    worker.succeed(first)
    (worker.fail if failed else worker.succeed)(second)

    runs = {one.id for one in worker.claim()}
    assert runs == {waiters["failure" if failed else "success"], waiters["stop"]}
    if failed:
        # What waited for success is a job that somebody may ask for; a callback is none.
        assert app.job(waiters["success"]).state is JobState.CANCELLED
        assert app.job(waiters["success"]).reason == "what it waited for failed"
    else:
        assert not exists(app, waiters["failure"])


def test_a_cancelled_waiter_cancels_what_waits_for_it_in_turn(app, connection, worker):
    steps = [insert_bundle(connection, total=1) for _ in range(3)]
    first = insert_job(connection, steps[0], index=0)
    second = insert_job(connection, steps[1], index=0, after=steps[0], after_on="success")
    third = insert_job(connection, steps[2], index=0, after=steps[1], after_on="success")
    callback = add_waiter(connection, steps[2], after_on="failure", takes=None)

    worker.fail(worker.claim())

    assert app.job(first).state is JobState.FAILED
    assert app.job(second).state is JobState.CANCELLED
    assert app.job(third).state is JobState.CANCELLED
    assert [app.bundle(step).state for step in steps] == ["failed"] * 3
    assert [one.id for one in worker.claim()] == [callback]


def test_an_unneeded_waiter_for_failure_vanishes_and_so_does_what_waits_for_it(
    app, connection, worker
):
    bundle = insert_bundle(connection, total=1)
    member = insert_job(connection, bundle, index=0)
    around = insert_bundle(connection, total=2)
    inner = insert_bundle(connection, total=1, parent=around, depth=1)
    insert_job(connection, inner, index=0, after=bundle, after_on="failure")
    insert_job(connection, around, index=1, after=inner, after_on="success")
    for after_on in ("success", "failure", "stop"):
        insert_job(connection, after=around, after_on=after_on)

    worker.run_all()

    assert [job.id for job in app.jobs()] == [member]
    assert [one.id for one in app.bundles()] == [bundle]


def test_a_chain_of_bundles_of_one_runs_step_by_step(app, connection, worker):
    steps = [insert_bundle(connection, total=1) for _ in range(3)]
    ids = [insert_job(connection, steps[0], index=0)]
    for before, step in pairwise(steps):
        ids.append(
            insert_job(connection, step, index=0, after=before, after_on="success", takes="result")
        )

    ran = []
    while held := worker.claim():
        ran += [(one.id, one.input) for one in held]
        worker.succeed(held, len(ran))

    assert ran == [(ids[0], None), (ids[1], "1"), (ids[2], "2")]
    assert [app.bundle(step).state for step in steps] == ["succeeded"] * 3


def test_a_waiter_is_released_once_although_its_bundle_stops_twice(app, connection, worker):
    bundle = insert_bundle(connection, total=1)
    member = insert_job(connection, bundle, index=0)
    waiter = add_waiter(connection, bundle)
    worker.succeed(worker.claim(), 1)

    app.reset(member)
    before = app.job(waiter).state
    while held := [one for one in worker.claim() if one.id == member]:
        worker.succeed(held, 2)

    assert before is JobState.READY
    [(input,)] = connection.execute(
        "select input from pgtasks.jobs where id = %s", [waiter]
    ).fetchall()
    assert input == "[1]"
    assert app.bundle(bundle).state == "succeeded"


def test_a_waiter_of_a_stopped_bundle_is_settled_at_once(app, connection, worker):
    bundle = insert_bundle(connection, total=1)
    insert_job(connection, bundle, index=0)
    worker.run_all(result=5)

    success = add_waiter(connection, bundle)
    failure = add_waiter(connection, bundle, after_on="failure")

    assert [(one.id, one.input) for one in worker.claim()] == [(success, "[5]")]
    assert not exists(app, failure)


def test_the_last_two_members_finished_at_once_hand_over_both_results(app, connection, dsn):
    """Race 1 of design.md: in a single statement the snapshot predates the wait for the bundle's row."""
    bundle = insert_bundle(connection, total=2)
    for n in range(2):
        insert_job(connection, bundle, index=n)
    waiter = add_waiter(connection, bundle)

    with psycopg.connect(dsn) as first, psycopg.connect(dsn, autocommit=True) as second:
        one, other = SimulatedWorker(first), SimulatedWorker(second)
        mine = one.claim(limit=1, tasks=["echo"])
        first.commit()
        theirs = other.claim(limit=1, tasks=["echo"])
        one.succeed(mine, "mine")  # holds the bundle's row until it commits
        thread = threading.Thread(target=other.succeed, args=(theirs, "theirs"))
        thread.start()
        eventually(lambda: blocked_on_a_lock(connection, second.info.backend_pid))
        first.commit()
        thread.join()

    worker = SimulatedWorker(connection)
    assert [(held.id, held.input) for held in worker.claim()] == [(waiter, '["mine","theirs"]')]
    assert app.bundle(bundle).state == "succeeded"


def test_a_waiter_added_while_the_last_member_finishes_is_released(app, connection, dsn):
    """Race 2 of design.md: the finish waits for the bundle's row, and sees what was added meanwhile."""
    bundle = insert_bundle(connection, total=1)
    insert_job(connection, bundle, index=0)

    with psycopg.connect(dsn) as adding, psycopg.connect(dsn, autocommit=True) as finishing:
        worker = SimulatedWorker(finishing)
        held = worker.claim()
        adding.execute("begin")  # so that it stays open
        waiter = add_waiter(adding, bundle)
        thread = threading.Thread(target=worker.succeed, args=(held, 1))
        thread.start()
        eventually(lambda: blocked_on_a_lock(connection, finishing.info.backend_pid))
        adding.commit()
        thread.join()

        assert [(one.id, one.input) for one in worker.claim()] == [(waiter, "[1]")]


def test_a_waiter_that_came_too_late_sees_that_the_bundle_stopped(app, connection, dsn):
    bundle = insert_bundle(connection, total=1)
    insert_job(connection, bundle, index=0)
    added: list[str] = []

    with psycopg.connect(dsn) as finishing, psycopg.connect(dsn, autocommit=True) as adding:
        worker = SimulatedWorker(finishing)
        worker.succeed(worker.claim(), 1)
        thread = threading.Thread(target=lambda: added.append(add_waiter(adding, bundle)))
        thread.start()
        eventually(lambda: blocked_on_a_lock(connection, adding.info.backend_pid))
        finishing.commit()
        thread.join()

        assert [one.id for one in worker.claim()] == added


def test_waiters_added_while_members_finish_are_never_left_blocked(app, connection, dsn):
    rounds = 25
    bundles = [insert_bundle(connection, total=1) for _ in range(rounds)]
    for bundle in bundles:
        insert_job(connection, bundle, index=0)
    together = threading.Barrier(2)
    errors: list[BaseException] = []

    def guarded(step: Any) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                worker = SimulatedWorker(own)
                for bundle in bundles:
                    step(own, worker, bundle)
        except BaseException as error:
            errors.append(error)
            together.abort()

    def finish(own: psycopg.Connection[Any], worker: SimulatedWorker, bundle: str) -> None:
        held = [one for one in worker.claim(tasks=["echo"]) if one.bundle_id == bundle] or [
            held_back.pop(bundle)
        ]
        together.wait(10)
        worker.succeed(held, 1)

    def add(own: psycopg.Connection[Any], worker: SimulatedWorker, bundle: str) -> None:
        together.wait(10)
        add_waiter(own, bundle)

    held_back = {one.bundle_id: one for one in SimulatedWorker(connection).claim()}
    threads = [threading.Thread(target=guarded, args=[step]) for step in (finish, add)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    rows = connection.execute(
        "select state, input, count(*) from pgtasks.job where after_bundle_id is not null group by 1, 2"
    ).fetchall()
    assert rows == [("ready", "[1]", rounds)]


def test_cancelling_a_waiter_while_its_bundle_stops_is_no_deadlock(app, connection, dsn):
    around = insert_bundle(connection, total=2)
    header = insert_bundle(connection, total=1, parent=around, depth=1)
    insert_job(connection, header, index=0)
    body = insert_job(connection, around, index=0, after=header, after_on="success")
    held = SimulatedWorker(connection).claim()

    with (
        psycopg.connect(dsn) as locking,
        psycopg.connect(dsn, autocommit=True) as finishing,
        psycopg.connect(dsn, autocommit=True) as cancelling,
        ThreadPoolExecutor(2) as threads,
    ):
        worker = SimulatedWorker(finishing)
        # Hold both where they want the bundle around; from there each wants what the other has.
        locking.execute("select from pgtasks.job_bundle where id = %s for update", [around])
        finished = threads.submit(worker.succeed, held)
        eventually(lambda: blocked_on_a_lock(connection, finishing.info.backend_pid))
        cancelled = threads.submit(run, cancelling, operations.cancel_jobs([body]))
        eventually(lambda: blocked_on_a_lock(connection, cancelling.info.backend_pid))
        locking.commit()

        assert len(finished.result()) == 1
        assert cancelled.result() == {body: "cancelled"}

    assert app.bundle(header).state == "succeeded"
    assert app.bundle(around).remaining == 0


def test_results_that_are_too_large_to_hand_on_fail_what_takes_them_and_nobody_else(
    app, connection, worker
):
    header = insert_bundle(connection, total=65)
    for index in range(65):
        insert_job(connection, header, index=index)
    step = insert_bundle(connection, total=1)
    body = insert_job(connection, step, index=0, after=header, after_on="success", takes="results")
    callback = insert_job(connection, after=step, after_on="failure", takes="error")
    held = worker.claim(limit=65)

    assert len(worker.succeed(held, "x" * 2**20)) == 65

    job = app.job(body)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.message.startswith(f"the results of bundle {header} take 68157635 bytes")
    assert app.bundle(header).state == "succeeded"
    assert [(one.id, one.input) for one in worker.claim()] == [(callback, f'"{body}"')]


@pytest.mark.parametrize("odd", ['"soon"', "[]", "1e300", "-5", "null"])
def test_odd_options_of_a_waiter_do_not_fail_who_releases_it(app, connection, worker, odd):
    bundle = insert_bundle(connection, total=1)
    insert_job(connection, bundle, index=0)
    waiter = insert_job(connection, after=bundle, after_on="success")
    connection.execute(
        'update pgtasks.job set options = format(\'{"countdown": %%s, "expires_in": %%s, "replaced": %%s}\','
        " %s::text, %s::text, %s::text)::jsonb where id = %s",
        [odd, odd, odd, waiter],
    )

    worker.run_all()

    assert app.job(waiter).state in (JobState.SUCCEEDED, JobState.SCHEDULED, JobState.EXPIRED)
