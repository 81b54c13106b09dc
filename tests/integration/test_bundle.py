"""Bundles: members are counted exactly once, whatever way they leave, up all levels."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgtasks import App, Bundle, JobState, group
from pgtasks.ids import new_id
from tests.fixtures.bundles import insert_bundle, insert_job
from tests.fixtures.eventually import eventually
from tests.fixtures.simulated_worker import SimulatedWorker, blocked_on_a_lock, heard


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: int = 0) -> int:
        return n

    return echo


def counts(bundle: Bundle) -> tuple[int, int, int, str]:
    return bundle.total, bundle.remaining, bundle.failed, bundle.state


def test_each_finished_member_is_counted_and_the_last_one_stops_the_bundle(app, echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()
    held = worker.claim()

    seen = []
    for one in held:
        worker.succeed(one, 1)
        seen.append(counts(result.bundle()))

    assert seen == [(3, 2, 0, "running"), (3, 1, 0, "running"), (3, 0, 0, "succeeded")]
    assert result.bundle().stopped_at is not None


@pytest.mark.parametrize("outcome", ["failed", "expired", "quarantined", "cancelled"])
def test_every_end_but_success_counts_as_failure(app, echo, worker, outcome):
    result = group(echo.s(n) for n in range(2)).apply()
    first, second = worker.claim()

    worker.finish(first, outcome)
    worker.succeed(second)

    assert counts(result.bundle()) == (2, 0, 1, "failed")


def test_a_batch_counts_several_bundles_and_members_at_once(app, echo, worker):
    results = [group(echo.s(n) for n in range(size)).apply() for size in (1, 2, 3)]
    held = worker.claim()

    worker.succeed(held[:-1])
    open_one = counts(results[2].bundle())
    worker.fail(held[-1])

    assert open_one == (3, 1, 0, "running")
    assert [counts(result.bundle()) for result in results] == [
        (1, 0, 0, "succeeded"),
        (2, 0, 0, "succeeded"),
        (3, 0, 1, "failed"),
    ]


def test_a_member_of_which_nothing_is_kept_is_counted_too(app, echo, worker):
    result = group([echo.s()]).apply()

    worker.finish(worker.claim_one(), keep=False)

    assert counts(result.bundle()) == (1, 0, 0, "succeeded")


def test_a_retry_a_release_and_a_crash_are_no_end(app, echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()
    first, second, third = worker.claim()

    worker.retry(first)
    worker.release(second)
    worker.crash(third)

    assert counts(result.bundle()) == (3, 3, 0, "running")


def test_a_late_finish_counts_nothing(app, echo, worker):
    result = group(echo.s(n) for n in range(2)).apply()
    held = worker.claim()
    worker.succeed(held[0])

    worker.succeed(held[0])
    worker.fail(held[0])

    assert counts(result.bundle()) == (2, 1, 0, "running")


def test_cancelled_and_deleted_members_count_as_failed(app, echo, worker):
    result = group(echo.s(n) for n in range(3)).apply()

    app.cancel(result[0].id)
    app.delete(result[1].id)
    between = counts(result.bundle())
    worker.succeed(worker.claim())

    assert between == (3, 1, 2, "running")
    assert counts(result.bundle()) == (3, 0, 2, "failed")


def test_a_retry_that_became_cancelled_is_counted(app, echo, worker):
    result = group([echo.s()]).apply()
    held = worker.claim_one()
    app.cancel(result[0].id)

    worker.retry(held)

    assert counts(result.bundle()) == (1, 0, 1, "failed")


def test_a_reset_member_is_counted_up_again_and_its_second_finish_counts_once(app, echo, worker):
    result = group(echo.s(n) for n in range(2)).apply()
    first, second = worker.claim()
    worker.fail(first)
    worker.succeed(second)

    app.reset(first.id)
    reopened = result.bundle()
    worker.succeed(worker.claim())

    assert counts(reopened) == (2, 1, 0, "running")
    assert reopened.stopped_at is None
    assert counts(result.bundle()) == (2, 0, 0, "succeeded")


def test_a_reset_member_of_an_open_bundle_is_counted_up_too(app, echo, worker):
    result = group(echo.s(n) for n in range(2)).apply()
    first, _ = worker.claim()
    worker.succeed(first)

    app.reset(first.id)

    assert counts(result.bundle()) == (2, 2, 0, "running")


def test_bundles_within_bundles_count_up_all_levels(app, connection, worker):
    outer = insert_bundle(connection, total=2)
    middle = insert_bundle(connection, total=2, parent=outer, depth=1)
    inner = insert_bundle(connection, total=2, parent=middle, depth=2)
    ids = [insert_job(connection, bundle) for bundle in (outer, middle, inner, inner)]
    held = {one.id: one for one in worker.claim()}

    def remaining() -> list[int]:
        return [app.bundle(bundle).remaining for bundle in (outer, middle, inner)]

    worker.succeed(held[ids[2]])
    one_inner = remaining()
    worker.fail(held[ids[3]])
    inner_stopped = remaining()
    worker.succeed([held[ids[0]], held[ids[1]]])

    assert one_inner == [2, 2, 1]
    assert inner_stopped == [2, 1, 0]
    assert [counts(app.bundle(bundle)) for bundle in (outer, middle, inner)] == [
        (2, 0, 1, "failed"),
        (2, 0, 1, "failed"),
        (2, 0, 1, "failed"),
    ]


def test_one_batch_counts_through_all_levels(app, connection, worker):
    outer = insert_bundle(connection, total=3)
    inner = [insert_bundle(connection, total=2, parent=outer, depth=1) for _ in range(2)]
    insert_job(connection, outer)
    for bundle in inner * 2:
        insert_job(connection, bundle)

    worker.succeed(worker.claim())

    assert [app.bundle(one).state for one in (outer, *inner)] == ["succeeded"] * 3


def test_a_reset_deep_inside_opens_every_level_again(app, connection, worker):
    outer = insert_bundle(connection, total=1)
    inner = insert_bundle(connection, total=1, parent=outer, depth=1)
    id = insert_job(connection, inner)
    worker.fail(worker.claim())

    app.reset(id)
    reopened = [counts(app.bundle(one)) for one in (outer, inner)]
    worker.succeed(worker.claim())

    assert reopened == [(1, 1, 0, "running")] * 2
    assert [counts(app.bundle(one)) for one in (outer, inner)] == [(1, 0, 0, "succeeded")] * 2


def test_two_workers_that_finish_the_last_two_members_count_both_every_time(app, echo, dsn):
    rounds = 25
    results = [group(echo.s(n) for n in range(2)).apply() for _ in range(rounds)]
    together = threading.Barrier(2)
    errors: list[BaseException] = []

    def finish(index: int) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                worker = SimulatedWorker(connection)
                for _ in results:
                    together.wait(10)
                    held = worker.claim(limit=1, tasks=["echo"])
                    together.wait(10)
                    worker.finish(held, "succeeded" if index else "failed")
        except BaseException as error:
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=finish, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert [counts(result.bundle()) for result in results] == [(2, 0, 1, "failed")] * rounds


def test_many_workers_count_a_large_bundle_exactly(app, echo, dsn):
    result = group(echo.s(n) for n in range(400)).apply()
    nested = [group(echo.s(n) for n in range(3)).apply() for _ in range(20)]
    errors: list[BaseException] = []

    def drain() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                worker = SimulatedWorker(connection)
                while held := worker.claim(limit=9, tasks=["echo"]):
                    worker.succeed(held[:5])
                    worker.fail(held[5:])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=drain) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    for one in (result, *nested):
        bundle = one.bundle()
        failed = app.jobs(JobState.FAILED, bundle_id=one.id, limit=1000)
        assert (bundle.remaining, bundle.failed) == (0, len(failed))
        assert bundle.stopped_at is not None


def test_stopped_bundles_are_told_to_listeners(app, echo, worker, connection):
    connection.execute("listen pgtasks_job_bundle_stopped")
    unheard = group([echo.s()]).apply()
    worker.run_all()
    worker.execute("register_listener", id=new_id())
    results = [group([echo.s()]).apply() for _ in range(2)]

    worker.run_all()

    [(_, payload)] = heard(connection)
    assert set(payload.split(",")) == {result.id for result in results}
    assert unheard.id not in payload


def test_bundles_are_locked_deepest_first_and_by_id(connection, dsn):
    """The order of every writer: else two batches that share two bundles wait for each other."""

    def is_locked(bundle: str) -> bool:
        try:
            connection.execute(
                "select from pgtasks.job_bundle where id = %s for update nowait", [bundle]
            )
        except psycopg.errors.LockNotAvailable:
            return True
        return False

    outer = insert_bundle(connection, total=20)
    inner = [insert_bundle(connection, total=20, parent=outer, depth=1) for _ in range(3)]
    order = [*inner, outer]

    with (
        psycopg.connect(dsn) as locking,
        psycopg.connect(dsn, autocommit=True) as finishing,
        ThreadPoolExecutor(1) as thread,
    ):
        worker = SimulatedWorker(finishing)
        for place, bundle in enumerate(order):
            for one in (outer, *reversed(inner)):
                insert_job(connection, one)
            held = worker.claim()
            locking.execute("select from pgtasks.job_bundle where id = %s for update", [bundle])
            finished = thread.submit(worker.succeed, held)
            eventually(lambda: blocked_on_a_lock(connection, finishing.info.backend_pid))
            locked = [is_locked(one) for one in order]
            locking.rollback()

            assert locked == [index <= place for index in range(len(order))]
            assert len(finished.result()) == len(order)
