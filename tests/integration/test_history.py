"""Upkeep of the history: partitions ahead, expired ones dropped, nothing of an open bundle lost."""

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgtasks import App, DatabaseError
from pgtasks.db import migrations
from pgtasks.ids import new_id
from tests.fixtures.bundles import insert_bundle
from tests.fixtures.simulated_worker import count_rows, execute

WEEK = 7 * 86400.0


@pytest.fixture
def history(fresh_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A database of its own, since partitions outlive the emptying of tables."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        migrations.migrate(connection)
        yield connection


def maintain(connection: psycopg.Connection[Any], keep: float = WEEK) -> list[str] | None:
    [(done,)] = execute(connection, "maintain_history", keep=keep)
    return done


def today(connection: psycopg.Connection[Any]) -> date:
    [(day,)] = connection.execute("select (now() at time zone 'UTC')::date").fetchall()
    return day


def partitions(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'pgtasks.job_history'::regclass order by 1"
    ).fetchall()
    return [name for (name,) in rows if name != "job_history_default"]


def partition(day: date) -> str:
    return f"job_history_{day:%Y%m%d}"


def add_partition(connection: psycopg.Connection[Any], day: date) -> str:
    connection.execute(
        f"create table pgtasks.{partition(day)} partition of pgtasks.job_history"
        f" for values from ('{day} 00:00+00') to ('{day + timedelta(days=1)} 00:00+00')"
    )
    return partition(day)


def insert_finished(
    connection: psycopg.Connection[Any], stopped_at: datetime, bundle: str | None = None
) -> str:
    id = new_id()
    connection.execute(
        "insert into pgtasks.job_history (id, queue, state, priority, created_at, stopped_at, task,"
        " args, kwargs, crashes, attempt, bundle_id)"
        " values (%s, 'default', 'succeeded', 0, %s, %s, 't', '[]', '{}', 0, 1, %s)",
        [id, stopped_at, stopped_at, bundle],
    )
    return id


def where_is(connection: psycopg.Connection[Any], id: str) -> str | None:
    row = connection.execute(
        "select tableoid::regclass::text from pgtasks.job_history where id = %s", [id]
    ).fetchone()
    return row[0].removeprefix("pgtasks.") if row else None


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def test_a_new_schema_has_partitions_for_today_and_three_days_ahead(history):
    day = today(history)

    assert partitions(history) == [partition(day + timedelta(days=n)) for n in range(4)]
    assert maintain(history) == []


def test_missing_partitions_are_created_ahead(history):
    day = today(history)
    for n in (0, 3):
        history.execute(f"drop table pgtasks.{partition(day + timedelta(days=n))}")

    assert maintain(history) == [f"created {partition(day + timedelta(days=n))}" for n in (0, 3)]
    assert len(partitions(history)) == 4


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago", "UTC"])
def test_days_are_those_of_utc_whatever_the_session_says(history, zone):
    history.execute(f"set timezone to '{zone}'")
    day = today(history)
    history.execute(f"drop table pgtasks.{partition(day)}")

    maintain(history)

    first, last = midnight(day), midnight(day + timedelta(days=1)) - timedelta(microseconds=1)
    ids = [insert_finished(history, moment) for moment in (first, last)]
    assert [where_is(history, id) for id in ids] == [partition(day)] * 2


def test_rows_that_fell_into_the_default_partition_move_to_their_day(history):
    day = today(history)
    history.execute(f"drop table pgtasks.{partition(day)}")
    noon = midnight(day) + timedelta(hours=12)
    strays = [insert_finished(history, noon) for _ in range(3)]
    yesterdays = insert_finished(history, noon - timedelta(days=1))
    fell = {where_is(history, id) for id in strays}

    assert maintain(history) == [f"created {partition(day)}"]

    assert fell == {"job_history_default"}
    assert {where_is(history, id) for id in strays} == {partition(day)}
    assert where_is(history, yesterdays) == "job_history_default"


def test_a_partition_goes_when_its_last_row_is_older_than_is_kept(history):
    day = today(history)
    expired = add_partition(history, day - timedelta(days=9))
    kept = add_partition(history, day - timedelta(days=7))
    old = insert_finished(history, midnight(day - timedelta(days=9)))
    young = insert_finished(history, midnight(day - timedelta(days=7)))

    assert maintain(history) == [f"dropped {expired}"]

    assert where_is(history, old) is None
    assert where_is(history, young) == kept


def test_a_shorter_retention_drops_more(history):
    day = today(history)
    names = [add_partition(history, day - timedelta(days=n)) for n in (1, 2, 3)]

    assert sorted(maintain(history, keep=86400.0) or []) == sorted(
        f"dropped {one}" for one in names[1:]
    )
    assert names[0] in partitions(history)


def test_members_of_an_open_bundle_survive_the_drop_of_their_day(history):
    day = today(history)
    long_ago = midnight(day - timedelta(days=9))
    expired = add_partition(history, day - timedelta(days=9))
    bundle = insert_bundle(history, total=2)
    member = insert_finished(history, long_ago, bundle)
    stopped = insert_bundle(history, total=0)
    others = [insert_finished(history, long_ago, one) for one in (None, stopped, new_id())]

    assert maintain(history) == [f"dropped {expired}"]
    assert maintain(history) == []

    assert where_is(history, member) == "job_history_default"
    assert [where_is(history, id) for id in others] == [None] * 3


def test_expired_rows_of_the_default_partition_go_and_those_of_younger_bundles_stay(history):
    long_ago = datetime.now(UTC) - timedelta(days=8)
    bundle = insert_bundle(history, total=2)
    member = insert_finished(history, long_ago, bundle)
    other = insert_finished(history, long_ago)
    recent = insert_finished(history, datetime.now(UTC) - timedelta(days=6))

    maintain(history)
    before = [where_is(history, id) for id in (member, other, recent)]
    history.execute("update pgtasks.job_bundle set stopped_at = now() - interval '6 days'")
    maintain(history)
    stopped = where_is(history, member)
    history.execute("update pgtasks.job_bundle set stopped_at = now() - interval '8 days'")
    maintain(history)

    assert before == ["job_history_default", None, "job_history_default"]
    assert stopped == "job_history_default"
    assert where_is(history, member) is None


def test_members_of_a_bundle_that_stopped_since_survive_the_drop_of_their_day(history):
    day = today(history)
    long_ago = midnight(day - timedelta(days=9))
    expired = add_partition(history, day - timedelta(days=9))
    bundle = insert_bundle(history, total=2)
    step = insert_bundle(history, total=1, parent=bundle)
    members = [insert_finished(history, long_ago, one) for one in (bundle, step)]
    history.execute(
        "update pgtasks.job_bundle set created_at = %(then)s,"
        " stopped_at = case id when %(step)s then %(then)s else now() end",
        {"then": long_ago, "step": step},
    )

    assert maintain(history) == [f"dropped {expired}"]
    assert maintain(history) == []

    assert [where_is(history, id) for id in members] == ["job_history_default"] * 2
    assert count_rows(history, "job_bundle") == 2


def test_stopped_bundles_go_by_the_same_retention(history):
    old, recent, still_open = (insert_bundle(history, total=1) for _ in range(3))
    history.execute(
        "update pgtasks.job_bundle set created_at = now() - interval '9 days',"
        " stopped_at = case when id = %(old)s then now() - interval '8 days'"
        " when id = %(recent)s then now() - interval '6 days' end",
        {"old": old, "recent": recent},
    )

    maintain(history)

    left = history.execute("select id::text from pgtasks.job_bundle").fetchall()
    assert {id for (id,) in left} == {recent, still_open}


def test_of_two_at_once_one_does_nothing(history, fresh_dsn):
    history.execute(f"drop table pgtasks.{partition(today(history))}")

    with psycopg.connect(fresh_dsn) as first:
        done = maintain(first)
        meanwhile = maintain(history)
        first.commit()

    assert done == [f"created {partition(today(history))}"]
    assert meanwhile is None
    assert maintain(history) == []


def test_upkeep_gives_up_instead_of_waiting_for_a_lock(history, fresh_dsn):
    expired = add_partition(history, today(history) - timedelta(days=9))

    with psycopg.connect(fresh_dsn) as reader:
        reader.execute("select count(*) from pgtasks.job_history")
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="lock timeout"):
            maintain(history)
        waited = time.monotonic() - began
        # And whoever came after would not have had to wait behind it either.
        history.execute("set lock_timeout = '1s'")
        insert_finished(history, datetime.now(UTC))
    history.execute("reset lock_timeout")

    assert waited < 2  # 50 ms, and what a busy machine adds
    assert maintain(history) == [f"dropped {expired}"]


def test_the_lock_timeout_of_the_session_is_left_as_it_was(history):
    history.execute("set lock_timeout = '7s'")

    maintain(history)

    assert history.execute("show lock_timeout").fetchone() == ("7s",)


def test_a_new_partition_has_the_keys_and_indexes_of_the_others(history):
    def shape(name: str) -> list[Any]:
        rows = history.execute(
            "select replace(pg_get_indexdef(indexrelid), %s, 'it') from pg_index"
            " where indrelid = ('pgtasks.' || %s)::regclass",
            [name, name],
        ).fetchall()
        return sorted(row[0].split(" ON ")[1] for row in rows)

    default = shape("job_history_default")
    names = partitions(history)

    assert len(default) == 5
    assert [shape(name) for name in names] == [default] * len(names)


def test_a_job_that_stops_when_no_day_was_prepared_is_not_lost(fresh_dsn, history):
    for name in partitions(history):
        history.execute(f"drop table pgtasks.{name}")
    app = App("late", fresh_dsn)
    result = app.send_task("t")

    app.cancel(result.id)

    try:
        assert result.state == "REVOKED"
        assert where_is(history, result.id) == "job_history_default"
    finally:
        app.close()
