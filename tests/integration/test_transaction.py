"""Enqueueing in the caller's transaction: what is rolled back leaves nothing."""

from typing import Any

import psycopg
import pytest

from pgtasks import App, ConfigurationError, DuplicateJobError, group
from pgtasks.db.operations import COPY_FROM
from pgtasks.ids import new_id


@pytest.fixture
def note(app: App) -> Any:
    @app.task(name="note")
    def note(text: Any = None) -> None: ...

    return note


@pytest.fixture
def anote(async_app: App) -> Any:
    @async_app.task(name="note")
    def note(text: Any = None) -> None: ...

    return note


def texts(app: App) -> list[Any]:
    return sorted(job.args[0] for job in app.jobs(limit=1000))


WAYS = {
    "using": lambda app, note, connection: note.using(connection).delay("x"),
    "apply_async": lambda app, note, connection: note.apply_async(["x"], connection=connection),
    "using apply_at": lambda app, note, connection: note.using(connection).apply_async(["x"]),
    "signature": lambda app, note, connection: note.s("x").apply_async(connection=connection),
    "send_task": lambda app, note, connection: app.send_task("any", ["x"], connection=connection),
    "enqueue_many": lambda app, note, connection: app.enqueue_many(
        [note.s("x")], connection=connection
    ),
    "group": lambda app, note, connection: group([note.s("x")]).apply(connection=connection),
    "large group": lambda app, note, connection: group(note.s("x") for _ in range(COPY_FROM)).apply(
        connection=connection
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_job_that_begins_the_callers_transaction_is_rolled_back_with_it(app, note, dsn, way):
    with psycopg.connect(dsn) as connection:
        way(app, note, connection)
        connection.rollback()
        rolled_back = (texts(app), app.bundles())
        way(app, note, connection)
        before = texts(app)
        connection.commit()

    assert rolled_back == ([], [])
    assert before == []
    assert set(texts(app)) <= {"x", None}
    assert texts(app)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_job_written_on_the_callers_connection_commits_and_rolls_back_with_it(
    app, note, connection, way
):
    with connection.transaction(force_rollback=True):
        way(app, note, connection)
        inside = connection.execute("select count(*) from pgtasks.job").fetchone()[0]
        seen = texts(app)
    rolled_back = (texts(app), app.bundles())
    with connection.transaction():
        way(app, note, connection)

    assert inside >= 1
    assert seen == []
    assert rolled_back == ([], [])
    assert len(texts(app)) == inside


def test_a_block_writes_and_reads_everything_on_its_connection(app, note, dsn):
    with psycopg.connect(dsn) as connection:
        with app.connection(connection):
            result = note.delay("x")
            group([note.s("y")]).apply()
            inside = (result.state, len(app.jobs()), app.status().bundles["running"])
        outside = texts(app)
        connection.rollback()

    assert inside == ("PENDING", 2, 1)
    assert outside == []
    assert texts(app) == []


def test_after_the_block_the_app_uses_its_own_connections_again(app, note, dsn):
    with psycopg.connect(dsn) as connection:
        with app.connection(connection):
            note.delay("in")
        note.delay("out")
        connection.rollback()

    assert texts(app) == ["out"]


def test_a_block_of_one_app_leaves_another_app_alone(app, note, dsn):
    other = App("other", dsn)
    with psycopg.connect(dsn) as connection, app.connection(connection):
        other.send_task("other", ["o"])
        note.delay("x")
        connection.rollback()
    other.close()

    assert texts(app) == ["o"]


def test_a_given_connection_goes_before_the_blocks(app, note, dsn):
    with psycopg.connect(dsn) as block, psycopg.connect(dsn) as given:
        with app.connection(block):
            note.using(given).delay("given")
        block.rollback()
        given.commit()

    assert texts(app) == ["given"]


def test_using_does_not_change_the_task_itself(app, note, dsn):
    with psycopg.connect(dsn) as connection:
        bound = note.using(connection)
        bound.delay("bound")
        note.delay("own")
        connection.rollback()

    assert texts(app) == ["own"]


def test_the_callers_row_factory_and_settings_do_not_matter(app, note, dsn):
    from psycopg.rows import dict_row

    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        connection.execute("set search_path to ''")
        connection.execute("set timezone to 'Asia/Kathmandu'")
        with app.connection(connection):
            group([note.s("x")] * COPY_FROM).apply()
            job = note.apply_async(["y"], countdown=60).job()
        connection.commit()

    assert job.start_at is not None
    assert (job.start_at - job.created_at).total_seconds() == 60
    assert len(texts(app)) == COPY_FROM + 1


@pytest.mark.parametrize("count", [1, COPY_FROM])
def test_the_callers_client_encoding_does_not_matter(app, note, dsn, count):
    with psycopg.connect(dsn, client_encoding="latin1") as connection:
        app.enqueue_many([note.s("é") for _ in range(count)], connection=connection)
        connection.commit()

    assert texts(app) == ["é"] * count


def test_a_duplicate_in_a_batch_leaves_the_callers_transaction_usable(app, note, connection):
    id = new_id()
    twice = [note.signature(["x"], task_id=id), note.signature(["y"], task_id=id)]

    with connection.transaction():
        note.using(connection).delay("before")
        with pytest.raises(DuplicateJobError):
            app.enqueue_many(twice, connection=connection)
        note.using(connection).delay("after")

    assert texts(app) == ["after", "before"]


async def test_an_asynchronous_connection_carries_its_own_transaction(async_app, anote, dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await anote.using(connection).adelay("using")
        await anote.aapply_async(["option"], connection=connection)
        await group([anote.s("group")] * COPY_FROM).aapply(connection=connection)
        async with connection.cursor() as cursor:
            await cursor.execute("select count(*) from pgtasks.job")
            inside = await cursor.fetchone()
        await connection.rollback()
        nothing = await async_app.ajobs()
        with async_app.connection(connection):
            await anote.adelay("block")
        await connection.commit()

    assert inside == (COPY_FROM + 2,)
    assert nothing == []
    assert [job.args for job in await async_app.ajobs()] == [["block"]]


async def test_a_synchronous_connection_is_refused_by_the_a_method(async_app, anote, connection):
    with pytest.raises(ConfigurationError, match="expected an asynchronous connection"):
        await anote.using(connection).adelay()
    with async_app.connection(connection), pytest.raises(ConfigurationError):
        await async_app.ajobs()

    assert await async_app.ajobs() == []


async def test_an_asynchronous_connection_is_refused_by_the_method_without_a(anote, dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        with pytest.raises(ConfigurationError, match="expected a synchronous connection"):
            anote.using(connection).delay()
        with pytest.raises(ConfigurationError, match="a-prefixed"):
            group([anote.s()]).apply(connection=connection)
