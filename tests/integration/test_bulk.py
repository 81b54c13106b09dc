"""Enqueueing many jobs: from arrays or by COPY, with a bundle or without, always the same rows."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgtasks import App, ConfigurationError, DuplicateJobError, GroupResult, JobState, chain, group
from pgtasks.db import operations
from pgtasks.db.operations import COPY_FROM
from pgtasks.db.run import run
from pgtasks.db.statements import sql_of
from pgtasks.ids import new_id, new_ids
from pgtasks.job import NewJob
from tests.fixtures.simulated_worker import SimulatedWorker

SIZES = [2, COPY_FROM, COPY_FROM + 1]

# What COPY's text format, arrays and JSON each treat in their own way.
NASTY = st.lists(
    st.sampled_from(["\t", "\n", "\r", "\\", "\\N", "\\.", "\\t", "N", "{", "}", ",", '"', "'"])
    | st.sampled_from(["NULL", "null", "é", "\N{PILE OF POO}", "\x01", "\x7f", "\u2028", " ", ""])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    max_size=6,
).map("".join)

COLUMNS = (
    "queue, priority, state, start_at, expires_at, task, args, kwargs, options, origin,"
    " parent_id, root_id, bundle_id, bundle_index"
)


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(*args: Any, **kwargs: Any) -> None: ...

    return echo


def written(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return connection.execute(
        f"select {COLUMNS}, created_at from pgtasks.job order by id"
    ).fetchall()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("waiting", [False, True], ids=["group", "chain"])
def test_tasks_known_by_name_only_go_where_workers_say(
    app: App,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    count: int,
    waiting: bool,
):
    """A canvas of such tasks was refused: no queue was written for them."""
    worker.execute("publish_tasks", name=["known"], queue=["mail"], priority=[7])
    tasks = [app.signature(name) for name in ["known", "unknown"] * count][:count]

    (chain(*tasks) if waiting else group(tasks)).delay()

    places = connection.execute(
        "select task, queue, priority, count(*)::integer from pgtasks.job group by 1, 2, 3 order by 1"
    ).fetchall()
    assert places == [
        ("known", "mail", 7, count - count // 2),
        ("unknown", "default", 0, count // 2),
    ]


def test_a_named_task_keeps_what_its_call_says(app: App, connection: psycopg.Connection[Any]):
    group(app.signature("unknown", queue="mail") for _ in range(COPY_FROM)).delay()
    group(app.signature("unknown", priority=3) for _ in range(COPY_FROM)).delay()

    places = connection.execute("select distinct queue, priority from pgtasks.job order by 1")
    assert places.fetchall() == [("default", 3), ("mail", 0)]


@pytest.mark.parametrize("count", SIZES)
def test_enqueue_many_writes_every_signature_with_its_options(app, echo, count):
    signatures = [echo.s(n).set(priority=n % 3, queue=f"q{n % 2}") for n in range(count)]

    results = app.enqueue_many(signatures)

    assert len(results) == count
    jobs = {job.id: job for job in app.jobs(limit=1000)}
    assert len(jobs) == count
    for n, result in enumerate(results):
        job = jobs[result.id]
        assert (job.args, job.priority, job.queue) == ([n], n % 3, f"q{n % 2}")
        assert (job.bundle_id, job.bundle_index) == (None, None)
    assert app.bundles() == []


async def test_aenqueue_many_writes_the_same(async_app):
    @async_app.task(name="echo")
    def echo(n: int) -> None: ...

    small = await async_app.aenqueue_many([echo.s(1), echo.s(2)])
    large = await async_app.aenqueue_many([echo.s(n) for n in range(COPY_FROM)])

    stored = {job.id: job.args for job in await async_app.ajobs(limit=1000)}
    assert [stored[one.id] for one in small] == [[1], [2]]
    assert [stored[one.id] for one in large] == [[n] for n in range(COPY_FROM)]


def test_nothing_to_enqueue_is_no_error(app):
    assert app.enqueue_many([]) == []
    assert app.jobs() == []


@pytest.mark.parametrize("count", SIZES)
def test_jobs_of_one_batch_stand_in_line_in_the_order_in_which_they_were_given(
    app, echo, worker, count
):
    results = app.enqueue_many([echo.s(n) for n in range(count)])

    assert [one.id for one in worker.claim()] == [one.id for one in results]


@pytest.mark.parametrize("count", SIZES)
def test_a_group_is_one_bundle_of_members_in_order(app, echo, count):
    result = group(echo.s(n) for n in range(count)).apply(type="import", origin="shop")

    bundle = result.bundle()
    assert (bundle.type, bundle.origin) == ("import", "shop")
    assert (bundle.total, bundle.remaining, bundle.failed) == (count, count, 0)
    assert bundle.stopped_at is None
    members = {job.id: job for job in app.jobs(bundle_id=result.id, limit=1000)}
    assert [members[one.id].args for one in result] == [[n] for n in range(count)]
    assert [members[one.id].bundle_index for one in result] == list(range(count))
    assert {job.origin for job in members.values()} == {"shop"}
    assert [one.id for one in app.group_result(result.id)] == [one.id for one in result]


async def test_a_group_is_applied_asynchronously_too(async_app):
    @async_app.task(name="echo")
    def echo(*args: Any) -> None: ...

    one = await group([echo.s(1), echo.s(2)]).aapply(type="t")
    two = await group([echo.s(1)]).aapply_async((0,), priority=4)
    three = await group([echo.s(1)]).adelay(9)

    assert (await one.abundle()).total == 2
    assert (await async_app.ajob(two[0])).args == [0, 1]
    assert (await async_app.ajob(two[0])).priority == 4
    assert (await async_app.ajob(three[0])).args == [9, 1]


def test_arguments_and_options_of_the_call_go_to_every_member(app, echo):
    result = group(echo.s(1), echo.si(2)).apply_async((0,), {"k": "v"}, priority=4, countdown=60)

    first, second = (one.job() for one in result)
    assert (first.args, first.kwargs, first.priority) == ([0, 1], {"k": "v"}, 4)
    assert (second.args, second.kwargs, second.priority) == ([2], {}, 4)
    assert {first.state, second.state} == {JobState.SCHEDULED}


def test_an_empty_group_has_stopped_already(app):
    with app.current():
        result: GroupResult[Any] = group().apply(type="nothing")

    bundle = result.bundle()
    assert (bundle.total, bundle.remaining, bundle.state) == (0, 0, "succeeded")
    assert bundle.stopped_at is not None
    assert result.get(timeout=5) == []
    assert result.successful()


def test_a_group_is_made_of_signatures(echo):
    with pytest.raises(ConfigurationError, match=r"found 1: write task\.s"):
        group([1])  # type: ignore[arg-type]


def test_a_member_that_cannot_be_written_leaves_no_bundle_behind(app, echo):
    id = new_id()

    for members in ([echo.signature(task_id=id)] * 2, [echo.signature(task_id=id)] * COPY_FROM):
        with pytest.raises(DuplicateJobError):
            group(members).apply()

    assert app.jobs() == []
    assert app.bundles() == []


@pytest.mark.parametrize(
    "options",
    [
        {"countdown": 60},
        {"countdown": 0},
        {"countdown": 0.25},
        {"expires": 60},
        {"countdown": 60, "expires": timedelta(hours=1)},
        {"eta": datetime(2999, 1, 1, 1, 1, 1, 123456, tzinfo=UTC)},
        {"eta": datetime(2001, 1, 1, tzinfo=UTC), "expires": datetime(2999, 1, 1, tzinfo=UTC)},
        {"retries": 3, "ignore_result": True},
    ],
    ids=str,
)
def test_copy_and_arrays_mean_the_same_by_every_option(app, echo, connection, options):
    # In one transaction, so that `now` is the same for both.
    with connection.transaction():
        app.enqueue_many([echo.s().set(**options)] * 2, connection=connection)
        from_arrays = written(connection)
        connection.execute("delete from pgtasks.job")
        app.enqueue_many([echo.s().set(**options)] * COPY_FROM, connection=connection)
        copied = written(connection)

    assert from_arrays[0] == from_arrays[1]
    assert copied == from_arrays[:1] * COPY_FROM


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_copy_and_arrays_write_identical_rows_whatever_the_text(connection, data):
    texts = data.draw(st.lists(st.tuples(NASTY, NASTY, st.none() | NASTY), min_size=1, max_size=20))
    ids = new_ids(len(texts))
    jobs = [
        NewJob(
            id=id,
            task="echo",
            queue="default",
            args=json.dumps([arg], ensure_ascii=False),
            kwargs=json.dumps({"k": [kwarg]}, ensure_ascii=False),
            options=json.dumps({"note": arg}),
            origin=origin,
            parent_id=id if origin else None,
            bundle_index=None if origin else 0,
        )
        for id, (arg, kwarg, origin) in zip(ids, texts, strict=True)
    ]

    with connection.transaction(force_rollback=True):
        run(connection, operations.enqueue_jobs(jobs))
        from_arrays = written(connection)
        connection.execute("delete from pgtasks.job")
        with connection.cursor().copy(sql_of("copy_jobs")) as copy:
            copy.write(operations.copy_lines(jobs, operations.EPOCH))
        copied = written(connection)

    assert copied == from_arrays
    assert [json.loads(row[6]) for row in copied] == [[arg] for arg, _, _ in texts]
    assert [row[9] for row in copied] == [origin for _, _, origin in texts]
