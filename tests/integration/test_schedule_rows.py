"""Schedules in the database: each tick one job, whoever is killed, however the clock steps, whatever is edited."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgtasks import App, ConfigurationError, Limit, NotFoundError, ScheduleError
from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks.schedule import next_ticks, parse_spec
from tests.fixtures.beats import Beat, Clock, clock, clock_connection, clock_database
from tests.fixtures.eventually import eventually

__all__ = ["clock", "clock_connection", "clock_database"]

Connection = psycopg.Connection[Any]

START = datetime(2026, 3, 29, 0, 55, 0, 500_000, tzinfo=UTC)  # before a night when the clock is set
SPECS = {"quick": "every 10s", "cron": "*/5 * * * *", "seconds": "* * 1-4 * * */20"}


def ticks_of(connection: Connection, name: str) -> list[datetime]:
    """Return for which ticks a schedule has jobs, each as often as it has."""
    rows = connection.execute(
        "select start_at from pgtasks.job where origin = %s order by start_at", [f"schedule {name}"]
    )
    return [tick for (tick,) in rows]


def expected_ticks(spec: str, after: datetime, until: datetime) -> list[datetime]:
    ticks = next_ticks(parse_spec(spec), "Europe/Vienna", after)
    return list(takewhile(lambda one: one <= until, ticks))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, 2)),
        st.tuples(st.just("step"), st.integers(0, 2)),
        st.tuples(st.just("kill"), st.integers(0, 2)),
        st.tuples(st.just("clock"), st.floats(-3700, 3700) | st.floats(0, 30)),
        st.tuples(st.just("pass"), st.floats(0, 20)),
    ),
    max_size=60,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_three_beats_enqueue_each_tick_once_through_kills_and_steps_of_the_clock(
    clock_connection: Connection, clock: Clock, steps: list[tuple[str, Any]]
) -> None:
    connection = clock_connection
    connection.execute(
        "truncate pgtasks.job, pgtasks.schedule, pgtasks.schedule_tick, pgtasks.schedule_declaration, pgtasks.worker"
    )
    now = latest = START
    clock.set(now)
    for name, spec in SPECS.items():
        connection.execute(
            "insert into pgtasks.schedule (name, task, spec, timezone, catch_up)"
            " values (%s, 't', %s, 'Europe/Vienna', 'all')",
            [name, spec],
        )
    Beat(connection).beat()  # computes the first ticks
    beats = [Beat(connection) for _ in range(3)]
    for what, value in steps:
        match what:
            case "step":
                beats[value].step()
            case "kill":
                beats[value].start()
            case _:
                now += timedelta(seconds=value)
                latest = max(latest, now)
                clock.set(now)
    clock.set(latest)
    for beat in beats:
        beat.beat()

    for name, spec in SPECS.items():
        assert ticks_of(connection, name) == expected_ticks(spec, START, latest)
    assert [beat.refusals for beat in beats] == [[], [], []]
    row = connection.execute("select count(*) from pgtasks.schedule_tick").fetchone()
    jobs = connection.execute("select count(*) from pgtasks.job").fetchone()
    assert row == jobs


def test_beats_at_the_same_moment_enqueue_each_tick_once(dsn: str, connection: Connection) -> None:
    for number in range(20):
        connection.execute(
            "insert into pgtasks.schedule (name, task, spec, catch_up) values (%s, 't', 'every 0.1s', 'all')",
            [f"s{number:02}"],
        )
    until = time.monotonic() + 1.5
    refusals: list[str] = []

    def run_beat(own: Connection) -> None:
        beat = Beat(own)
        while time.monotonic() < until:
            beat.step()
        refusals.extend(beat.refusals)

    with ExitStack() as stack:
        opened = [stack.enter_context(psycopg.connect(dsn, autocommit=True)) for _ in range(4)]
        threads = [threading.Thread(target=run_beat, args=[one]) for one in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    Beat(connection).beat()

    assert refusals == []
    for number in range(20):
        found = ticks_of(connection, f"s{number:02}")
        assert len(found) >= 5
        assert found == [found[0] + n * timedelta(seconds=0.1) for n in range(len(found))]


@pytest.mark.parametrize(
    ("catch_up", "jobs"), [("skip", 3), ("one", 1), ("all", 60)], ids=["skip", "one", "all"]
)
def test_what_was_missed_is_made_up_for_as_said(
    clock_connection: Connection, clock: Clock, catch_up: str, jobs: int
) -> None:
    clock.set(START)
    clock_connection.execute(
        "insert into pgtasks.schedule (name, task, spec, catch_up) values ('s', 't', 'every 10s', %s)",
        [catch_up],
    )
    beat = Beat(clock_connection)
    beat.beat()
    clock.set(START + timedelta(minutes=10))

    beat.beat()

    found = ticks_of(clock_connection, "s")
    assert len(found) == jobs
    first = expected_ticks("every 10s", START, START + timedelta(minutes=10))
    assert found == {"skip": first[-3:], "one": first[:1], "all": first}[catch_up]
    row = clock_connection.execute("select next_at, last_at from pgtasks.schedule").fetchone()
    assert row == (first[-1] + timedelta(seconds=10), found[-1])


def test_a_large_debt_is_paid_in_steps(clock_connection: Connection, clock: Clock) -> None:
    clock.set(START)
    clock_connection.execute(
        "insert into pgtasks.schedule (name, task, spec, catch_up) values ('s', 't', 'every 1s', 'all')"
    )
    beat = Beat(clock_connection)
    beat.beat()
    clock.set(START + timedelta(seconds=1050))

    steps = 0
    while beat.step() != "due_schedules" or beat.under_way:
        steps += 1

    assert steps >= 20  # a look and a write for each hundred
    assert len(ticks_of(clock_connection, "s")) == 1050


def test_a_row_that_cannot_be_read_stops_no_other_and_is_shown(
    app: App, connection: Connection
) -> None:
    connection.execute(
        "insert into pgtasks.schedule (name, task, spec, timezone, next_at) values"
        " ('bad spec', 't', 'whenever', 'UTC', null), ('bad zone', 't', '* * * * *', 'Mars', null),"
        " ('never', 't', '0 0 30 2 *', 'UTC', '2026-01-01 00:00Z'),"
        " ('good', 't', 'every 0.1s', 'UTC', null)"
    )
    beat = Beat(connection)
    beat.beat()

    def ticked() -> None:
        beat.beat()
        assert ticks_of(connection, "good")

    eventually(ticked)
    problems = {one.name: (one.state, one.problem) for one in app.schedules.list()}
    assert problems["good"] == ("active", None)
    assert problems["bad spec"][0] == problems["bad zone"][0] == problems["never"][0] == "error"
    assert "found 1 in 'whenever'" in str(problems["bad spec"][1])
    assert "no time zone 'Mars'" in str(problems["bad zone"][1])
    assert "never comes" in str(problems["never"][1])
    assert ticks_of(connection, "never") == []

    connection.execute("update pgtasks.schedule set spec = 'every 0.1s' where name = 'bad spec'")
    beat.beat()

    repaired = app.schedules.get("bad spec")
    assert (repaired.state, repaired.problem) == ("active", None)
    assert repaired.next_at is not None
    for never in ("infinity", "4713-01-01 00:00Z BC"):
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute("update pgtasks.schedule set next_at = %s", [never])


def test_a_schedule_whose_job_is_refused_stops_no_other(app: App, connection: Connection) -> None:
    """Whoever writes a trigger of his own may refuse a job; the others tick on."""
    connection.execute(
        "create or replace function pgtasks.refuse() returns trigger language plpgsql as"
        " $$ begin if new.task = 'refused' then raise 'not this one'; end if; return new; end $$"
    )
    connection.execute(
        "create trigger refuse before insert on pgtasks.job for each row execute function pgtasks.refuse()"
    )
    try:
        connection.execute(
            "insert into pgtasks.schedule (name, task, spec, next_at)"
            " select n::text, case when n in (3, 5) then 'refused' else 't' end, 'every 1d', now()"
            " from generate_series(1, 8) n"
        )
        beat = Beat(connection)
        beat.beat()

        states = {one.name: one.state for one in app.schedules.list()}
        assert states == {str(n): "error" if n in (3, 5) else "active" for n in range(1, 9)}
        assert "not this one" in str(app.schedules.get("3").problem)
        jobs = connection.execute("select count(*) from pgtasks.job").fetchone()
        assert jobs == (6,)
    finally:
        connection.execute("drop function pgtasks.refuse() cascade")


def test_the_row_says_what_is_enqueued_and_the_published_task_the_rest(
    app: App, connection: Connection
) -> None:
    connection.execute("insert into pgtasks.task (name, queue, priority) values ('t', 'slow', 7)")
    app.schedules.add("plain", "every 1d", "t", args=[1], kwargs={"a": "ä"})
    app.schedules.add(
        "full", "every 1d", "t", queue="q", priority=-2, expires=60, retries=3, origin="me"
    )

    ids = {name: app.schedules.run_now(name).id for name in ("plain", "full")}

    plain, full = app.job(ids["plain"]), app.job(ids["full"])
    assert (plain.queue, plain.priority, plain.origin) == ("slow", 7, "schedule plain")
    assert (plain.args, plain.kwargs, plain.expires_at) == ([1], {"a": "ä"}, None)
    assert (full.queue, full.priority, full.origin) == ("q", -2, "me")
    assert full.options == {"retries": 3}
    assert full.expires_at is not None
    assert full.expires_at - full.created_at == timedelta(seconds=60)


def test_a_tick_whose_unique_key_is_held_enqueues_nothing_and_stops_no_other(
    app: App, dsn: str, connection: Connection
) -> None:
    @app.task(name="import", unique="{shop}", limit=Limit(2, key="{shop}"))
    def import_shop(shop: str) -> None:
        raise NotImplementedError

    app.schedules.add("ours", "every 1d", import_shop, args=["ann"])
    app.schedules.add("other", "every 1d", "t")
    connection.execute("update pgtasks.schedule set next_at = now() - interval '1s'")
    beat = Beat(connection)
    beat.beat()

    [(id,)] = connection.execute(
        "select id::text from pgtasks.job where task = 'import'"
    ).fetchall()
    connection.execute("update pgtasks.schedule set next_at = now() - interval '1s'")
    beat.beat()

    assert app.job(id).options == {"unique_key": "import:ann", "limit_key": "import ann"}
    assert len(ticks_of(connection, "ours")) == 1
    assert len(ticks_of(connection, "other")) == 2
    assert app.schedules.get("ours").last_job_id == id
    assert app.schedules.run_now("ours").id == id
    assert import_shop.delay("ann").id == id

    app.schedules.edit("ours", args=["bob"])
    assert app.schedules.run_now("ours").id != id
    assert app.schedules.get("ours").options == {
        "unique_key": "import:bob",
        "limit_key": "import bob",
    }
    with pytest.raises(ConfigurationError, match="task 'import' makes none here"):
        App("other", dsn=dsn).schedules.edit("ours", args=["eve"])
    app.cancel(id)

    # One that takes the key and does not say whether he keeps it.
    with psycopg.connect(dsn) as other:
        import_shop.using(other).delay("bob")
        app.schedules.edit("ours", args=["ann"])
        import_shop.using(other).delay("ann")
        connection.execute("update pgtasks.schedule set next_at = now() - interval '1s'")
        beat.beat()
        other.rollback()

    problem = app.schedules.get("ours").problem
    assert problem is not None
    assert "open takes the unique key" in problem
    assert len(ticks_of(connection, "other")) == 3


# Declared by workers


class Fleet:
    """Workers as far as they declare."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start(self, app: App, age: float = 0.0) -> int:
        """Register a worker with what stands in an app's code; returns its id."""
        names = sorted(app.tasks)
        description = {
            "name": "w", "host": "h", "boot_id": None, "pid_namespace": None, "pid": 1, "pid_started_at": None,
            "version": "0", "pool": "prefork", "concurrency": 1, "queues": ["default"], "tasks": names,
        }  # fmt: skip
        app.load()
        from pgtasks import codec

        schedules = codec.encode(app.declared_schedules, "schedules")
        operation = operations.register_worker(
            description, [(name, "default", 0) for name in names], {}, app.name, schedules, age
        )
        worker_id, self.by_hand = run(self._connection, operation)
        return worker_id

    def stop(self, worker_id: int) -> None:
        self._connection.execute("select pgtasks.deregister_worker(%s)", [worker_id])

    def keep(self, later: str = "0") -> None:
        """Look after the rows, some time later."""
        self._connection.execute(
            "update pgtasks.schedule set undeclared_at = undeclared_at - %s::interval", [later]
        )
        self._connection.execute("select pgtasks.keep_schedules()")

    def rows(self) -> dict[str, str]:
        rows = self._connection.execute(
            "select name, spec || case when undeclared_at is null then '' else ' undeclared' end"
            " from pgtasks.schedule"
        )
        return dict(rows.fetchall())


@pytest.fixture
def fleet(connection: Connection) -> Fleet:
    return Fleet(connection)


def code(name: str = "shop", tasks: str = "ab", **specs: str) -> App:
    """An app with tasks, and schedules of the first of them."""
    app = App(name)
    for letter in tasks:
        app.task(name=letter)(lambda: None)
    for schedule, spec in specs.items():
        app.schedule(spec, name=schedule)(app.tasks[tasks[0]])
    return app


def test_the_newest_code_says_what_a_schedule_is_and_the_last_worker_keeps_it(fleet: Fleet) -> None:
    old = fleet.start(code(one="every 1s", gone="every 9s"), age=60)
    new = fleet.start(code(one="every 2s", more="every 3s"))
    assert fleet.rows() == {"one": "every 2s", "gone": "every 9s", "more": "every 3s"}

    again = fleet.start(
        code(one="every 1s", gone="every 9s"), age=50
    )  # registers anew, with older code
    fleet.keep()
    assert fleet.rows() == {"one": "every 2s", "gone": "every 9s", "more": "every 3s"}

    fleet.stop(old)
    fleet.keep()
    assert fleet.rows()["gone"] == "every 9s"
    fleet.stop(again)
    fleet.keep()
    assert fleet.rows() == {"one": "every 2s", "more": "every 3s"}

    fleet.start(code(one="every 1s"), age=50)  # the new code is taken back
    fleet.stop(new)
    fleet.keep()
    assert fleet.rows() == {"one": "every 1s"}


def test_an_app_that_is_stopped_keeps_its_schedules_and_they_wait(
    fleet: Fleet, connection: Connection
) -> None:
    worker = fleet.start(code(one="every 0.1s"))
    fleet.start(code("other"))
    Beat(connection).beat()
    fleet.stop(worker)
    fleet.keep()

    assert fleet.rows() == {"one": "every 0.1s undeclared"}
    row = "select next_at from pgtasks.schedule"
    before = connection.execute(row).fetchone()
    eventually(lambda: Beat(connection).beat())
    assert connection.execute(row).fetchone() == before
    fleet.keep("6 days")
    assert fleet.rows() == {"one": "every 0.1s undeclared"}

    worker = fleet.start(code(one="every 0.1s"))
    assert fleet.rows() == {"one": "every 0.1s"}
    assert connection.execute(row).fetchone() == before  # so that what was missed can be caught up

    fleet.stop(worker)
    fleet.keep()
    fleet.keep("8 days")
    assert fleet.rows() == {}


def test_a_schedule_whose_task_is_gone_too_goes_after_a_minute(fleet: Fleet) -> None:
    worker = fleet.start(code(one="every 1s"))
    fleet.start(code(tasks="b"))
    fleet.stop(worker)
    fleet.keep()
    assert fleet.rows() == {"one": "every 1s undeclared"}

    fleet.keep("61 s")

    assert fleet.rows() == {}


def test_what_was_edited_or_paused_or_added_stays(app: App, fleet: Fleet) -> None:
    worker = fleet.start(code(edited="every 1h", paused="every 1h", plain="every 1h"))
    app.schedules.edit("edited", spec="every 2h", priority=3)
    app.schedules.pause("paused", by="ann")
    app.schedules.add("added", "every 5h", "a")

    newer = fleet.start(
        code(edited="0 0 * * *", paused="every 2h", plain="every 2h", added="every 1s")
    )

    assert fleet.by_hand == ["added"]
    assert fleet.rows() == {
        "edited": "every 7200s", "paused": "every 2h", "plain": "every 2h", "added": "every 18000s"
    } | {"paused": "every 7200s", "plain": "every 7200s"}  # fmt: skip
    edited, paused = app.schedules.get("edited"), app.schedules.get("paused")
    assert (edited.priority, edited.overrides) == (3, {"spec": "every 7200s", "priority": 3})
    assert (paused.state, paused.paused_by, paused.next_at) == ("paused", "ann", None)

    app.schedules.edit("edited", forget=True)
    assert (app.schedules.get("edited").spec, app.schedules.get("edited").priority) == (
        "0 0 * * *",
        0,
    )
    app.schedules.edit("edited", queue="q")
    with pytest.raises(ScheduleError, match="a live worker has schedule 'edited' in its code"):
        app.schedules.remove("edited", "added")
    fleet.stop(worker)
    fleet.stop(newer)
    fleet.start(code())
    fleet.keep()

    states = {one.name: one.state for one in app.schedules.list()}
    assert states == {"edited": "undeclared", "paused": "paused", "added": "active"}
    app.schedules.remove("edited", "paused", "added")
    assert fleet.rows() == {}


def test_one_in_code_comes_when_the_one_by_hand_goes(app: App, fleet: Fleet) -> None:
    app.schedules.add("one", "every 5h", "a")
    fleet.start(code(one="every 1h"), age=9)
    fleet.start(code(one="every 2h"))
    assert fleet.rows() == {"one": "every 18000s"}

    app.schedules.remove("one")

    assert fleet.rows() == {"one": "every 7200s"}
    assert app.schedules.get("one").declared_by == "code"


def test_a_row_that_somebody_locks_holds_up_no_other(dsn: str, connection: Connection) -> None:
    connection.execute(
        "insert into pgtasks.schedule (name, task, spec, next_at)"
        " select n::text, 't', 'every 1d', now() from generate_series(1, 3) n"
    )
    connection.execute(
        "update pgtasks.schedule set declared_by = 'code', worker_id = 7 where name = '2'"
    )
    with psycopg.connect(dsn) as other:
        other.execute("select from pgtasks.schedule where name = '2' for update")
        beat = Beat(connection)
        for _ in range(4):
            beat.step()
        connection.execute("set lock_timeout = '1s'")
        connection.execute("select pgtasks.keep_schedules()")

        assert [len(ticks_of(connection, str(n))) for n in (1, 2, 3)] == [1, 0, 1]
        assert beat.refusals == []
        assert beat.wake_at > time.monotonic() - 1  # not at once, again and again
    beat.beat()

    assert len(ticks_of(connection, "2")) == 1


def test_a_pause_drops_what_it_covers_and_an_edit_counts_from_now(
    clock_connection: Connection, clock: Clock
) -> None:
    connection = clock_connection
    clock.set(START)
    connection.execute(
        "insert into pgtasks.schedule (name, task, spec, catch_up) values ('s', 't', 'every 10s', 'all')"
    )
    beat = Beat(connection)
    beat.beat()
    connection.execute("select pgtasks.pause_schedules('{s}', 'ann')")
    clock.set(START + timedelta(seconds=60))
    beat.beat()
    assert ticks_of(connection, "s") == []

    connection.execute("select pgtasks.resume_schedules('{s}')")
    beat.beat()
    clock.set(START + timedelta(seconds=70))
    beat.beat()
    assert len(ticks_of(connection, "s")) == 1

    connection.execute("select pgtasks.edit_schedule('s', '{\"spec\": \"every 3600s\"}', false)")
    beat.beat()
    row = connection.execute("select next_at from pgtasks.schedule").fetchone()
    assert row == (datetime(2026, 3, 29, 1, 0, tzinfo=UTC),)
    beat.step()
    beat.step()
    clock.set(START + timedelta(hours=1))
    beat.step()
    assert beat.under_way
    connection.execute("select pgtasks.edit_schedule('s', '{\"spec\": \"every 60s\"}', false)")
    beat.step()  # was computed from what the row said before

    assert len(ticks_of(connection, "s")) == 1


async def test_the_async_twins_do_the_same(async_app: App) -> None:
    schedules = async_app.schedules

    await schedules.aadd("s", "*/5 * * * *", "t", timezone="Europe/Vienna")
    await schedules.aedit("s", catch_up="skip", expires=None)
    await schedules.apause("s")
    paused = await schedules.aget("s")
    await schedules.aresume("s")
    result = await schedules.arun_now("s")
    listed = await schedules.alist()
    await schedules.aremove("s")

    assert paused.state == "paused"
    assert (await async_app.ajob(result.id)).task == "t"
    assert [(one.name, one.catch_up, one.state) for one in listed] == [("s", "skip", "active")]
    assert await schedules.alist() == []


def test_mistakes_of_operators_are_refused_and_change_nothing(app: App) -> None:
    app.schedules.add("s", "every 1h", "t", args=[1])
    before = app.schedules.get("s")
    for change, message in (
        ({"spec": "* *"}, "found 2"),
        ({"timezone": "Mars"}, "no time zone 'Mars'"),
        ({"catch_up": "most"}, "catch_up is"),
        ({"catch_up": None}, "of schedule 's' one can change"),
        ({"colour": "red"}, "of schedule 's' one can change .* found colour='red'"),
        ({"queue": "no queue"}, "is not a name"),
        ({"priority": 1.5}, "priority is a whole number"),
        ({"expires": -1}, "expires is a number of seconds, at least 0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            app.schedules.edit("s", **change)
    for call in (
        lambda: app.schedules.get("x"),
        lambda: app.schedules.edit("x", priority=1),
        lambda: app.schedules.pause("s", "x"),
        lambda: app.schedules.resume("x"),
        lambda: app.schedules.run_now("x"),
        lambda: app.schedules.remove("s", "x"),
    ):
        with pytest.raises(NotFoundError, match="there is no schedule 'x'"):
            call()
    with pytest.raises(ScheduleError, match="there is a schedule 's' already"):
        app.schedules.add("s", "every 1h", "t")

    after = app.schedules.get("s")
    assert {**{f: getattr(after, f) for f in after.__struct_fields__}, "now": before.now} == {
        f: getattr(before, f) for f in before.__struct_fields__
    }


@pytest.fixture
def heard(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("listen pgtasks_schedule")
        yield listener


def test_who_sleeps_is_told_of_what_comes_earlier_and_of_nothing_else(
    app: App, connection: Connection, heard: Connection
) -> None:
    def told() -> bool:
        return bool(list(heard.notifies(timeout=0.05)))

    app.schedules.add("s", "every 1h", "t")
    assert told()
    connection.execute("update pgtasks.schedule set next_at = now()")
    Beat(connection).beat()
    told()
    connection.execute("update pgtasks.schedule set next_at = now()")
    assert told()
    Beat(connection).beat()  # a tick
    app.schedules.pause("s")
    app.schedules.run_now("s")
    assert not told()
    app.schedules.resume("s")
    assert told()
    Beat(connection).beat()
    told()
    app.schedules.edit("s", spec="every 2h")
    assert told()
    app.schedules.edit("s", priority=2)
    assert not told()
