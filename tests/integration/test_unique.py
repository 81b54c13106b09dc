"""A unique key is held from the call to what ends it, through every way out of the table of jobs."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pgtasks import JobState, chain, chord, group
from pgtasks.errors import (
    ConfigurationError,
    DuplicateJobError,
    JobStateError,
    NotFoundError,
    Retry,
)
from pgtasks.graph import compile_graph
from pgtasks.worker.outcome import of_exception
from tests.fixtures.simulated_worker import SimulatedWorker, count_rows


@pytest.fixture
def sync(app):
    """A task that is unique for each customer."""

    @app.task(name="shop.sync", unique="{customer}", retries=3)
    def sync(customer: int, page: int = 1) -> int:
        return page

    return sync


def keys(connection) -> dict[str, str]:
    """Return who has each key, without the tasks' names."""
    rows = connection.execute("select key, job_id::text from pgtasks.unique_key").fetchall()
    return {key.partition(":")[2]: id for key, id in rows}


def pass_time(connection, seconds: float) -> None:
    """Let so much time go by for the keys."""
    connection.execute(
        "update pgtasks.unique_key set until = until - %s * interval '1 second'", [seconds]
    )


# What a second call does


def test_a_second_call_gets_the_job_that_has_the_key(app, connection, sync):
    first = sync.delay(7)
    second = sync.delay(7, page=2)
    other = sync.delay(8)

    assert (first.created, second.created, other.created) == (True, False, True)
    assert second.id == first.id
    assert second.job().args == [7]
    assert count_rows(connection, "job") == 2
    assert first.job().options == {"unique_key": "shop.sync:7"}


async def test_the_twins_hold_the_same_key(async_app, connection):
    @async_app.task(name="t", unique=True)
    def t(n: int) -> None: ...

    first = await t.adelay(1)
    second = await t.aapply_async((1,))
    [third, fourth] = await async_app.aenqueue_many([t.s(1), t.s(2)])

    assert [one.created for one in (first, second, third, fourth)] == [True, False, False, True]
    assert first.id == second.id == third.id


def test_replace_gives_the_waiting_job_new_arguments_and_a_new_time(app, connection, worker, sync):
    first = sync.apply_async((7,), countdown=60)
    at = datetime.now(UTC) + timedelta(hours=1)

    second = sync.apply_async((7,), {"page": 2}, eta=at, on_conflict="replace", expires=7200)
    job = first.job()
    assert (second.id, second.created) == (first.id, False)
    assert (job.state, job.start_at, job.kwargs) == (JobState.SCHEDULED, at, {"page": 2})
    assert job.expires_at is not None

    sync.apply_async((7,), {"page": 3}, on_conflict="replace")  # without a time: now
    job = first.job()
    assert (job.state, job.start_at, job.expires_at) == (JobState.READY, None, None)

    held = worker.claim_one()
    assert held.kwargs == '{"page":3}'
    third = sync.apply_async((7,), {"page": 4}, on_conflict="replace")
    assert (third.id, third.created) == (first.id, False)
    assert first.job().kwargs == {"page": 3}


def test_raise_names_the_job_that_has_the_key(app, connection, sync):
    first = sync.delay(7)

    with pytest.raises(DuplicateJobError) as refused:
        sync.apply_async((7,), on_conflict="raise")

    assert refused.value.id == first.id
    assert str(refused.value) == (
        f"job {first.id} of task 'shop.sync' has the unique key '7' in queue 'default'"
    )


def test_a_call_may_say_or_unsay_that_it_is_unique(app, sync, connection):
    @app.task(name="plain")
    def plain(to: str) -> None: ...

    sync.delay(7)
    assert sync.apply_async((7,), unique=False).created
    assert sync.apply_async((7,), queue="other").created  # a key belongs to a queue
    assert plain.delay("a").created
    assert plain.apply_async(("a",), unique=True).created
    assert not plain.apply_async((), {"to": "a"}, unique=True).created
    assert plain.apply_async(("b",), unique=lambda to: to).created
    assert app.send_task("elsewhere", (), {"n": 1}, unique="{n}").created
    assert not app.send_task("elsewhere", (), {"n": 1}, unique="{n}").created
    assert not plain.s("b").set(unique="{to}").delay().created
    with pytest.raises(ConfigurationError, match="takes 'n' into its key, but the task has no"):
        plain.apply_async(("b",), unique=lambda n: n)
    with pytest.raises(ConfigurationError, match="unique_for is about a unique key, and there is"):
        plain.apply_async(("b",), unique_for=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unique": 3}, "unique is True, a function of the task's parameters, or a template"),
        ({"unique": "{page}"}, "takes 'page' into its key, but the task has no such parameter"),
        ({"unique": lambda page: page}, "takes 'page' into its key"),
        ({"unique": True, "unique_for": 0}, "unique_for is a number of seconds, at least 0.001"),
        ({"unique": True, "unique_until": "ever"}, "unique_until is 'started' or 'finished'"),
        ({"unique": True, "on_conflict": "wait"}, "on_conflict is 'skip', 'replace' or 'raise'"),
        ({"unique": True, "unique_for": 1, "unique_until": "started"}, "found both"),
        ({"unique_until": "started"}, "there is none: say unique=True, too"),
    ],
)
def test_what_is_no_unique_task_is_refused_at_its_definition(app, options, said):
    with pytest.raises(ConfigurationError) as refused:

        @app.task(name="shop.sync", **options)
        def sync(customer: int) -> None: ...

    assert said in str(refused.value)


def test_a_key_that_cannot_be_made_is_refused_and_nothing_is_written(app, connection):
    @app.task(name="t", unique=lambda n: 1 / n)
    def t(n: int) -> None: ...

    with pytest.raises(ConfigurationError, match="raised ZeroDivisionError: division by zero"):
        t.delay(0)
    with pytest.raises(ConfigurationError, match="raised ZeroDivisionError"):
        group(t.s(1), t.s(0)).apply()

    assert (count_rows(connection, "job"), count_rows(connection, "unique_key")) == (0, 0)


# How long it is held


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "expired", "quarantined", "cancelled"])
def test_it_is_held_until_the_job_is_finished(connection, worker, sync, outcome):
    first = sync.delay(7)
    held = worker.claim_one()
    assert not sync.delay(7).created

    worker.retry(held, delay=0)
    assert not sync.delay(7).created
    held = worker.claim_one()
    worker.release(held)
    assert not sync.delay(7).created
    held = worker.claim_one()
    worker.crash(held)
    assert not sync.delay(7).created
    held = worker.claim_one()
    worker.finish(held, outcome, keep=False)

    assert keys(connection) == {}
    assert sync.delay(7).created
    assert first.id not in keys(connection).values()


def test_it_is_held_through_the_death_of_its_worker(connection, worker, sync):
    sync.delay(7)
    other = SimulatedWorker(connection)
    held = other.claim_one()

    worker.rescue(other)

    assert not sync.delay(7).created
    assert other.succeed(held) == []  # too late
    assert not sync.delay(7).created
    worker.run_all()
    assert sync.delay(7).created


def test_it_is_given_back_by_whoever_takes_the_job_out(app, connection, worker, sync):
    def gone() -> bool:
        free = keys(connection) == {}
        connection.execute("truncate pgtasks.job, pgtasks.unique_key")
        return free

    app.cancel(sync.delay(7))
    assert gone()
    app.delete(sync.apply_async((7,), countdown=60))
    assert gone()
    sync.delay(7)
    app.purge("default")
    assert gone()
    running = sync.delay(7)
    held = worker.claim_one()
    app.cancel(running)
    assert keys(connection) == {"7": running.id}
    worker.release(held)
    assert gone()
    # What waits, and does not run.
    before = app.send_task("before")
    chain(app.signature("before"), sync.si(7)).apply_async()
    assert len(keys(connection)) == 1
    worker.fail(worker.claim())
    assert gone()
    # What is not needed vanishes.
    app.signature("before", link_error=sync.si(7)).apply_async()
    assert len(keys(connection)) == 1
    worker.run_all()
    assert gone()
    assert before.job().state is JobState.FAILED


def test_until_it_is_started_means_until_a_worker_has_it(app, connection, worker):
    @app.task(name="t", unique=True, unique_until="started", retries=2)
    def t(n: int) -> None: ...

    first = t.delay(1)
    assert not t.delay(1).created
    held = worker.claim_one()

    second = t.delay(1)
    assert second.created
    worker.retry(held, delay=0)  # does not take it again
    assert list(keys(connection).values()) == [second.id]
    app.cancel(second)
    assert keys(connection) == {}
    assert first.job().state is JobState.READY


def test_for_a_time_it_outlives_the_job(app, connection, worker):
    @app.task(name="t", unique=lambda n: n, unique_for=timedelta(minutes=1))
    def t(n: int) -> None: ...

    first = t.delay(1)
    worker.run_all()
    second = t.delay(1)
    assert (second.id, second.created) == (first.id, False)
    assert second.job().state is JobState.SUCCEEDED
    assert t.apply_async((1,), on_conflict="replace").id == first.id

    pass_time(connection, 59)
    assert not t.delay(1).created
    app.delete(first)
    assert not t.delay(1).created
    pass_time(connection, 2)
    third = t.delay(1)
    assert third.created

    pass_time(connection, 61)  # it waits still: another may come all the same
    fourth = t.apply_async((1,), unique_until="finished")
    assert fourth.created
    app.cancel(third)
    assert keys(connection) == {"1": fourth.id}


def test_a_debounce_holds_its_key_from_the_last_call(app, connection):
    @app.task(name="t", unique=True, unique_for=60, on_conflict="replace")
    def t() -> None: ...

    first = t.apply_async(countdown=30)
    pass_time(connection, 40)
    t.apply_async(countdown=30)
    pass_time(connection, 40)

    assert t.apply_async(countdown=30).id == first.id


def test_upkeep_removes_keys_whose_time_is_over(app, connection, worker):
    for n in range(3):
        app.send_task("t", (n,), unique=True, unique_for=60)
    app.send_task("u", unique=True)
    pass_time(connection, 61)

    assert worker.execute("forget_keys", limit=2) == [(2,)]
    assert worker.execute("forget_keys", limit=2) == [(1,)]
    assert count_rows(connection, "unique_key") == 1


# Whose job is gone


def test_a_key_whose_job_is_gone_is_taken_over(app, connection, sync):
    sync.delay(7)
    connection.execute("delete from pgtasks.job")  # as no function of ours does it

    assert sync.delay(7).created


def test_a_transaction_that_rolls_back_holds_nothing(app, dsn, sync):
    with psycopg.connect(dsn) as mine:
        assert sync.using(mine).delay(7).created
        assert not sync.using(mine).delay(7).created
        with app.connection(mine), pytest.raises(DuplicateJobError):
            group(sync.s(8), sync.s(7).set(on_conflict="raise")).apply()
        mine.rollback()

    assert sync.delay(7).created
    assert sync.delay(8).created


def test_an_error_in_the_callers_transaction_leaves_no_key_behind(app, dsn, connection, sync):
    sync.delay(7)
    with psycopg.connect(dsn) as mine, app.connection(mine):
        with pytest.raises(DuplicateJobError):
            group(sync.s(8), sync.s(7).set(on_conflict="raise")).apply()
        sync.delay(9)

    assert set(keys(connection)) == {"7", "9"}


# Batches and graphs


@pytest.mark.parametrize("size", [3, 50])  # by arrays and by COPY
def test_a_batch_leaves_out_what_is_there_and_what_it_says_twice(app, connection, sync, size):
    first = sync.delay(0)

    results = app.enqueue_many(sync.s(n) for n in [*range(size), 1, 0])

    assert [one.created for one in results] == [False, *[True] * (size - 1), False, False]
    assert results[0].id == results[-1].id == first.id
    assert results[-2].id == results[1].id
    assert count_rows(connection, "job") == count_rows(connection, "unique_key") == size


@pytest.mark.parametrize("size", [3, 50])
def test_a_group_has_no_member_for_what_was_left_out(app, connection, worker, sync, size):
    sync.delay(0)

    made = group(sync.s(n, page=n) for n in [*range(size), 1]).apply()

    assert len(made.results) == size - 1
    assert all(one.created for one in made.results)
    assert app.bundle(made.id).total == size - 1
    worker.succeed(worker.claim(), result=1)
    assert made.get(timeout=5) == [1] * (size - 1)
    assert made.successful()


def test_a_group_of_which_nothing_is_left_has_stopped(app, sync):
    sync.delay(0)

    made = group(sync.s(0), sync.s(0)).apply()

    assert (made.results, made.get(timeout=5)) == ([], [])
    assert app.bundle(made.id).total == 0


def test_of_calls_in_one_batch_the_last_replaces(app, connection, sync):
    sync.apply_async((0,), countdown=60)
    calls = [sync.s(n, page=page).set(on_conflict="replace") for page in (1, 2, 3) for n in (0, 1)]

    results = app.enqueue_many(calls)

    assert results[0].job().kwargs == results[1].job().kwargs == {"page": 3}
    assert [one.created for one in results] == [False, True, False, False, False, False]


@pytest.mark.parametrize(
    "make",
    [
        lambda sync, plain: chain(plain.si(), sync.si(7)),
        lambda sync, plain: chain(sync.si(7), plain.si()),
        lambda sync, plain: chord([sync.s(7), plain.si()], plain.si()),
        lambda sync, plain: chord([plain.si()], sync.si(7)),
        lambda sync, plain: sync.si(7).set(link=[plain.si()]),
        lambda sync, plain: group(sync.si(7).set(link=[plain.si()]), plain.si()),
    ],
)
def test_where_something_waits_a_duplicate_is_an_error_before_anything_is_written(
    app, connection, sync, make
):
    @app.task(name="plain")
    def plain() -> None: ...

    first = sync.delay(7)

    with pytest.raises(DuplicateJobError, match="nothing was enqueued") as refused:
        make(sync, plain).apply_async()

    assert refused.value.id == first.id
    assert count_rows(connection, "job") == count_rows(connection, "unique_key") == 1
    assert count_rows(connection, "job_bundle") == 0


def test_a_key_of_what_another_job_gives_is_refused(app, sync):
    with pytest.raises(ConfigurationError, match="another job gives that argument when it ends"):
        (sync.s(1) | sync.s()).apply_async()


def test_a_group_does_not_grow_by_what_is_there(app, connection, sync):
    @app.task(name="plain")
    def plain() -> None: ...

    first = sync.delay(7)
    made = group(plain.s()).apply()

    with pytest.raises(DuplicateJobError) as refused:
        app.grow_group(made.id, sync.s(7))
    app.grow_group(made.id, sync.s(8))

    assert refused.value.id == first.id
    assert app.bundle(made.id).total == 2


def test_without_a_database_keys_are_made_and_not_held(app, sync):
    with app.eager():
        assert sync.delay(7).get() == sync.delay(7).get() == 1
        assert sync.delay(7).created
        with pytest.raises(ConfigurationError):
            sync.apply_async((7,), unique="{nobody}")
    with app.ignoring() as ignored:
        assert sync.delay(7).created
        assert sync.delay(7).created
    assert len(ignored) == 2


# Reset and replacing


def test_a_reset_job_takes_its_key_again_or_is_left(app, connection, worker, sync):
    first = sync.delay(7)
    worker.run_all()
    second = sync.delay(7)

    with pytest.raises(JobStateError, match=f"job {second.id} has its key"):
        app.reset(first)
    assert app.reset_many([first, second]) == []
    assert first.job().state is JobState.SUCCEEDED
    assert keys(connection) == {"7": second.id}

    app.cancel(second)
    assert app.reset_many([second, first]) in ([first.id], [second.id])  # one of them
    assert len(keys(connection)) == 1
    assert not sync.delay(7).created


def test_a_failed_graph_takes_its_keys_again_or_is_left(app, connection, worker, sync):
    made = group(sync.s(1), sync.s(2)).apply()
    worker.fail(worker.claim())
    other = sync.delay(2)

    with pytest.raises(JobStateError, match=f"job {other.id} has its key"):
        app.retry_failed(made.id)
    assert app.bundle(made.id).state == "failed"

    app.cancel(other)
    assert len(app.retry_failed(made.id)) == 2
    assert keys(connection) == {str(n): one.id for n, one in enumerate(made.results, 1)}


def test_a_job_that_is_replaced_keeps_its_key(app, connection, worker, sync):
    first = sync.delay(7)
    held = worker.claim_one()
    graph = compile_graph(sync.si(8) | sync.si(9), options={"task_id": held.id})
    worker.finish(held, "replace", result=graph.replacement())

    assert keys(connection) == {"7": first.id}
    assert not sync.delay(7).created
    assert sync.delay(8).created
    worker.run_all()
    assert first.job().state is JobState.SUCCEEDED
    assert keys(connection) == {}


# From SQL


def test_jobs_from_sql_hold_the_same_keys(app, connection, sync):
    enqueue = "select pgtasks.enqueue('shop.sync', '{\"customer\": 7}', unique_key => '7')::text"

    [(first,)] = connection.execute(enqueue).fetchall()
    [(second,)] = connection.execute(enqueue).fetchall()

    assert first == second == sync.delay(7).id
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="expected 1 to 200"):
        connection.execute("select pgtasks.enqueue('t', unique_key => '')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match='"unique_for" with seconds'):
        connection.execute(
            "select pgtasks.enqueue('t', unique_key => 'a', options => '{\"unique_for\": true}')"
        )


def test_a_key_for_a_time_is_said_in_the_options(connection):
    said = "pgtasks.enqueue('t', unique_key => 'a', options => %s::jsonb)"

    for options in ('{"unique_for": 60}', '{"unique_until": "started"}'):
        connection.execute(f"select {said}", [options])
        [(until, release)] = connection.execute(
            "delete from pgtasks.unique_key returning until, release"
        ).fetchall()

        assert (until is None, release) == (release is not None, "start" if until is None else None)


# Reschedule


def test_a_waiting_job_gets_another_time_priority_and_queue(app, connection, worker, sync):
    job = sync.apply_async((7,), countdown=3600)
    at = datetime.now(UTC) + timedelta(hours=2)

    assert app.reschedule(job, start_at=at, priority=5) is JobState.SCHEDULED
    assert (job.job().start_at, job.job().priority) == (at, 5)
    assert app.reschedule(job.id, queue="other") is JobState.SCHEDULED
    assert (job.job().queue, job.job().start_at, job.job().priority) == ("other", at, 5)
    assert app.reschedule(job, start_at=None) is JobState.READY
    assert app.reschedule(job, start_at=timedelta(seconds=60)) is JobState.SCHEDULED
    assert app.reschedule(job, start_at=datetime(2020, 1, 1, tzinfo=UTC)) is JobState.READY

    # Its key went with it.
    assert not sync.apply_async((7,), queue="other").created
    here = sync.delay(7)
    assert here.created
    with pytest.raises(JobStateError, match=f"job {here.id} has its key in queue default"):
        app.reschedule(job, queue="default")
    assert job.job().queue == "other"
    worker.run_all("other")
    assert sync.apply_async((7,), queue="other").created


async def test_areschedule_does_the_same(async_app):
    job = await async_app.asend_task("t", countdown=60)

    assert await async_app.areschedule(job, start_at=0) is JobState.READY


def test_what_waits_for_others_keeps_waiting(app, connection, worker):
    made = chain(app.signature("a"), app.signature("b", countdown=60, immutable=True))()

    assert app.reschedule(made, start_at=3600, queue="other", priority=3) is JobState.BLOCKED
    worker.run_all()
    job = made.job()
    assert (job.state, job.queue, job.priority) == (JobState.SCHEDULED, "other", 3)
    assert job.start_at is not None
    assert job.start_at > datetime.now(UTC) + timedelta(minutes=30)


def test_a_parked_job_stays_parked_unless_its_time_lies_ahead(app, connection):
    job = app.send_task("t")
    connection.execute("update pgtasks.job set state = 'parked', reason = 'unknown task'")

    assert app.reschedule(job, start_at=None, priority=1) is JobState.PARKED
    assert job.job().reason == "unknown task"
    assert app.reschedule(job, start_at=60) is JobState.SCHEDULED
    assert job.job().reason is None


def test_what_does_not_wait_is_refused(app, connection, worker):
    job = app.send_task("t")
    held = worker.claim_one()

    with pytest.raises(JobStateError, match=r"is running, and only a job that waits"):
        app.reschedule(job, priority=1)
    worker.succeed(held)
    with pytest.raises(JobStateError, match=r"is succeeded, and only .* reset it first"):
        app.reschedule(job, start_at=None)
    with pytest.raises(NotFoundError):
        app.reschedule("00000000-0000-7000-8000-000000000000", priority=1)
    with pytest.raises(ConfigurationError, match="say what is to change"):
        app.reschedule(job)
    with pytest.raises(ConfigurationError, match="start_at is an aware datetime"):
        app.reschedule(job, start_at=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="not a name"):
        app.reschedule(job, queue="no name")


# Retries that do not count


def test_an_uncounted_retry_leaves_no_trace(app, connection, worker):
    job = app.send_task("t", retries=1)
    task = app.task(name="t")(lambda: None)
    for _ in range(3):
        held = worker.claim_one()
        outcome = of_exception(
            Retry(after=0, count=False), job.job(), task.options, datetime.now(UTC)
        )
        assert outcome.error is not None
        worker.finish(held, outcome.kind, error=dict(outcome.error), delay=outcome.delay)

    worker.crash(worker.claim_one())
    held = worker.claim_one()

    assert (held.attempt, held.crashes) == (2, 1)
    assert [one.attempt for one in job.job().attempts] == [1]
    assert job.retries == 0
