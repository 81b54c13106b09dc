"""Enqueueing one job: every way to call a task, every option of a call, and what is refused."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from pgtasks import App, ConfigurationError, DuplicateJobError, JobState, SchemaError
from pgtasks.ids import id_time, new_id
from tests.fixtures.simulated_worker import SimulatedWorker, heard

SOON = timedelta(seconds=5)  # allowed between this clock and the moment a test looks


@pytest.fixture
def add(app: App) -> Any:
    @app.task(name="add")
    def add(a: int, b: int = 0) -> int:
        return a + b

    return add


def stored_count(app: App) -> int:
    return sum(app.status().jobs.values())


def test_delay_writes_a_ready_job_with_the_arguments_as_given(app, add):
    result = add.delay(1, b=2)

    job = result.job()
    assert job.id == result.id
    assert job.task == "add"
    assert job.queue == "default"
    assert job.state is JobState.READY
    assert job.args == [1]
    assert job.kwargs == {"b": 2}
    assert (job.priority, job.attempt, job.crashes, job.attempts) == (0, 0, 0, ())
    assert job.start_at is None
    assert job.expires_at is None
    assert abs(datetime.now(UTC) - job.created_at) < SOON


async def test_adelay_writes_the_same_job_as_delay(async_app):
    @async_app.task(name="add")
    def add(a: int, b: int = 0) -> int:
        return a + b

    results = [await add.adelay(1, b=2), add.delay(1, b=2)]

    one, other = [await result.ajob() for result in results]
    assert (one.task, one.queue, one.args, one.kwargs, one.state) == (
        other.task,
        other.queue,
        other.args,
        other.kwargs,
        other.state,
    )


def test_ids_are_ordered_by_time_and_say_when_they_were_made(app, add):
    ids = [add.delay(n).id for n in range(5)]

    assert ids == sorted(ids)
    made = id_time(ids[0])
    assert made is not None
    assert abs(datetime.now(UTC) - made) < SOON


def test_apply_async_stores_every_option_of_the_call(app, add):
    id = new_id()

    result = add.apply_async(
        (1,),
        {"b": 2},
        task_id=id.upper(),
        countdown=60,
        expires=3600,
        queue="mail",
        priority=7,
        retries=4,
        ignore_result=True,
        origin="checkout",
    )

    job = result.job()
    assert job.id == id
    assert job.queue == "mail"
    assert job.priority == 7
    assert job.origin == "checkout"
    assert job.options == {"retries": 4, "ignore_result": True}
    assert job.state is JobState.SCHEDULED
    assert job.start_at is not None
    assert job.start_at - job.created_at == timedelta(seconds=60)
    assert job.expires_at is not None
    assert job.expires_at - job.created_at == timedelta(seconds=3600)


async def test_aapply_async_stores_the_options_too(async_app):
    @async_app.task(name="nothing")
    def nothing() -> None: ...

    result = await nothing.aapply_async(queue="mail", priority=-3, countdown=timedelta(hours=1))

    job = await result.ajob()
    assert (job.queue, job.priority, job.state) == ("mail", -3, JobState.SCHEDULED)
    assert job.start_at == job.created_at + timedelta(hours=1)


def test_the_tasks_own_options_hold_where_the_call_says_nothing(app):
    @app.task(name="mail", queue="mail", priority=5, expires=60, origin="shop", retries=3)
    def mail() -> None: ...

    job = mail.delay().job()

    assert (job.queue, job.priority, job.origin) == ("mail", 5, "shop")
    assert job.expires_at == job.created_at + timedelta(seconds=60)
    # Retries come from the worker's registry unless the call says otherwise.
    assert job.options == {}


def test_celerys_transport_options_change_nothing(app, add):
    job = add.apply_async((1,), serializer="json", routing_key="x", retry=False, shadow="y").job()

    assert (job.queue, job.options, job.state) == ("default", {}, JobState.READY)


@pytest.mark.parametrize(
    "when",
    [
        datetime(2999, 1, 1, 12, 30, tzinfo=UTC),
        datetime(2999, 1, 1, 12, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ],
)
def test_apply_at_an_aware_datetime_keeps_the_very_moment(app, add, when):
    job = add.apply_at(when, 1, b=2).job()

    assert job.state is JobState.SCHEDULED
    assert job.start_at == when
    assert (job.args, job.kwargs) == ([1], {"b": 2})


def test_apply_at_a_timedelta_counts_from_now(app, add):
    job = add.apply_at(timedelta(minutes=5), 1).job()

    assert job.state is JobState.SCHEDULED
    assert job.start_at == job.created_at + timedelta(minutes=5)


async def test_aapply_at_is_scheduled_like_apply_at(async_app):
    @async_app.task(name="nothing")
    def nothing() -> None: ...

    job = await (await nothing.aapply_at(timedelta(minutes=5))).ajob()

    assert job.state is JobState.SCHEDULED
    assert job.start_at == job.created_at + timedelta(minutes=5)


@pytest.mark.parametrize("when", [timedelta(minutes=-5), datetime(2020, 1, 1, tzinfo=UTC)])
def test_a_moment_in_the_past_is_ready_at_once(app, add, when):
    job = add.apply_at(when, 1).job()

    assert job.state is JobState.READY


def test_a_naive_datetime_is_refused_with_the_way_out(app, add):
    with pytest.raises(ConfigurationError, match="without a time zone"):
        add.apply_at(datetime(2999, 1, 1), 1)  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="without a time zone"):
        add.apply_async((1,), expires=datetime(2999, 1, 1))  # noqa: DTZ001

    assert stored_count(app) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"countdown": 1, "eta": datetime(2999, 1, 1, tzinfo=UTC)}, ConfigurationError, "both"),
        ({"eta": "tomorrow"}, ConfigurationError, "eta is an aware datetime"),
        ({"countdown": "soon"}, ConfigurationError, "countdown is a number of seconds"),
        ({"countdown": float("nan")}, ConfigurationError, "countdown"),
        ({"expires": True}, ConfigurationError, "expires"),
        ({"queue": "no spaces"}, ConfigurationError, "queue 'no spaces' is not a name"),
        ({"queue": "q" * 64}, ConfigurationError, "not a name"),
        ({"priority": 2**31}, ConfigurationError, "priority"),
        ({"priority": 1.5}, ConfigurationError, "priority"),
        ({"retries": -1}, ConfigurationError, "retries"),
        ({"task_id": "seven"}, ValueError, "expected a UUID"),
        ({"serializer": "pickle"}, TypeError, "serializer"),
        ({"prioritty": 1}, TypeError, "no option 'prioritty'"),
    ],
)
def test_a_call_option_that_is_none_is_refused_in_the_caller(app, add, options, error, message):
    with pytest.raises(error, match=message):
        add.apply_async((1,), **options)

    assert stored_count(app) == 0


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing 1 required positional argument: 'a'"),
        ((1, 2, 3), {}, "takes from 1 to 2 positional arguments but 3 were given"),
        ((1,), {"c": 1}, "unexpected keyword argument 'c'"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
    ],
)
def test_wrong_arguments_are_a_type_error_in_the_caller(app, add, args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        add.delay(*args, **kwargs)
    with pytest.raises(TypeError, match=message):
        add.apply_async(args, kwargs)

    assert stored_count(app) == 0


def test_a_bound_task_does_not_ask_the_caller_for_itself(app):
    @app.task(name="bound", bind=True)
    def bound(self: Any, a: int) -> int:
        return a

    assert bound.delay(1).job().args == [1]
    with pytest.raises(TypeError):
        bound.delay(1, 2)


def test_a_task_id_that_exists_is_refused(app, add):
    id = add.delay(1).id

    with pytest.raises(DuplicateJobError, match=id):
        add.apply_async((2,), task_id=id)

    assert [job.args for job in app.jobs()] == [[1]]


async def test_a_task_id_that_exists_is_refused_asynchronously(async_app):
    @async_app.task(name="nothing")
    def nothing() -> None: ...

    id = (await nothing.adelay()).id

    with pytest.raises(DuplicateJobError, match=id):
        await nothing.aapply_async(task_id=id)


def test_a_job_made_inside_of_a_job_knows_its_parent_and_root(app, add, worker):
    from pgtasks.context import Request, having, request_var

    outer = add.delay(1)
    root = new_id()

    def request(root_id: str | None) -> Request:
        return Request(app, outer.id, "add", "default", 1, 0, None, root_id, "test", {}, outer.job)

    with having(request_var, request(None)):
        of_a_root = add.delay(2).job()
    with having(request_var, request(root)):
        below = add.delay(3).job()
    outside = add.delay(4).job()

    assert (of_a_root.parent_id, of_a_root.root_id) == (outer.id, outer.id)
    assert (below.parent_id, below.root_id) == (outer.id, root)
    assert (outside.parent_id, outside.root_id) == (None, None)
    held = {one.id: one for one in worker.claim()}
    assert (held[below.id].parent_id, held[below.id].root_id) == (outer.id, root)


def test_the_schema_that_is_missing_is_named_with_the_command(fresh_dsn):
    app = App("empty", fresh_dsn)

    @app.task(name="nothing")
    def nothing() -> None: ...

    try:
        with pytest.raises(SchemaError, match="run 'pgtasks migrate'"):
            nothing.delay()
    finally:
        app.close()


def test_an_insert_wakes_the_idle_workers_of_its_queue_only(app, add, connection):
    worker = SimulatedWorker(connection, queues=["default"])
    channel = connection.execute("select pgtasks.wake_channel('default')").fetchone()[0]
    other = connection.execute("select pgtasks.wake_channel('mail')").fetchone()[0]
    connection.execute(f'listen "{channel}"')
    connection.execute(f'listen "{other}"')

    add.delay(1)
    while_busy = heard(connection)
    worker.execute("set_idle", idle=True, worker_id=worker.id)
    add.apply_async((1,), queue="mail")
    of_another_queue = heard(connection)
    add.delay(1)
    add.apply_async((1,), countdown=60)
    add.using(connection).delay(2)

    assert while_busy == []
    assert of_another_queue == []
    assert heard(connection) == [(channel, "")] * 3
