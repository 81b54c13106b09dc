"""Progress in the database: fenced by the token, seen while the attempt runs, and no burden to anybody else."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from click.testing import Result

from pgtasks import App, group
from pgtasks.db import operations
from pgtasks.ids import new_id
from tests.fixtures.commands import Command
from tests.fixtures.simulated_worker import Held, SimulatedWorker, count_rows

Record = Callable[..., int]


@pytest.fixture
def echo(app: App) -> Any:
    @app.task(name="echo")
    def echo(n: Any = 0) -> Any:
        return n

    return echo


@pytest.fixture
def record(worker: SimulatedWorker) -> Record:
    return recorder(worker)


def recorder(worker: SimulatedWorker) -> Record:
    def record(held: Held | list[Held], age: float = 0.0, **said: Any) -> int:
        """Write that jobs said so; returns for how many that counted."""
        jobs = [held] if isinstance(held, Held) else held
        [(count,)] = worker.execute(
            "record_progress",
            id=[one.id for one in jobs],
            token=[one.token for one in jobs],
            progress=[json.dumps(said)] * len(jobs),
            age=[age] * len(jobs),
        )
        return int(count)

    return record


# While it runs


def test_progress_of_a_running_job_is_seen_by_all_who_look(app, echo, worker, record):
    result = echo.delay()
    held = worker.claim_one()

    assert record(held, done=12, total=40, message="reading", age=60.0) == 1

    progress = result.job().progress
    assert (progress.done, progress.total, progress.message) == (12, 40, "reading")
    assert progress.job_id == result.id
    ago = datetime.now(UTC) - progress.at
    assert timedelta(seconds=55) < ago < timedelta(seconds=90)
    assert result.info == progress
    assert result.state == "STARTED"
    [listed] = app.jobs()
    assert listed.progress == progress
    [claimed] = app.run(operations.list_claimed_jobs())
    assert claimed.progress == progress


def test_a_word_and_meta_are_celerys_state_and_info(echo, worker, record):
    result = echo.delay()
    held = worker.claim_one()

    record(held, state="READING", meta={"page": 3})

    assert (result.state, result.status, result.info) == ("READING", "READING", {"page": 3})
    assert result.result is None
    assert not result.ready()
    assert not result.failed()


async def test_the_twins_know_the_same(async_app, connection):
    @async_app.task(name="echo")
    def echo(n: Any = 0) -> Any:
        return n

    worker = SimulatedWorker(connection)
    result = await echo.adelay()
    recorder(worker)(worker.claim_one(), state="READING", meta={"page": 3})

    assert await result.astate() == "READING"
    assert await result.ainfo() == {"page": 3}


def test_a_job_that_said_nothing_has_no_progress_and_no_row(app, echo, worker, connection):
    result = echo.delay()
    assert result.info is None
    held = worker.claim_one()

    assert result.info is None
    assert not result.job().progress
    worker.succeed(held, 7)
    assert result.info == 7
    assert count_rows(connection, "job_progress") == 0


def test_the_newest_report_replaces_the_one_before(echo, worker, record, connection):
    result = echo.delay()
    held = worker.claim_one()

    for done in range(5):
        record(held, done=done)

    assert result.job().progress.done == 4
    assert count_rows(connection, "job_progress") == 1


# Fencing


def test_a_stale_token_changes_nothing_and_is_no_error(echo, worker, record, connection):
    echo.delay()
    held = worker.claim_one()
    stale = held._replace(token=new_id())

    assert record(stale, done=1) == 0
    assert count_rows(connection, "job_progress") == 0

    other = echo.delay()
    current = worker.claim_one()
    assert record([stale, current], done=1) == 1
    assert other.job().progress.done == 1


def end(worker: SimulatedWorker, held: Held, how: str) -> None:
    match how:
        case "finish":
            worker.succeed(held)
        case "fail":
            worker.fail(held)
        case "retry":
            worker.retry(held, delay=0.0)
        case "release":
            worker.release(held)
        case "crash":
            worker.crash(held)
        case _:
            assert SimulatedWorker(worker.connection).rescue(worker) == 1


@pytest.mark.parametrize("how", ["finish", "fail", "retry", "release", "crash", "rescue"])
def test_progress_ends_with_its_attempt(echo, worker, record, connection, how):
    result = echo.delay()
    held = worker.claim_one()
    record(held, done=12, total=40, state="READING", meta={"page": 3})

    end(worker, held, how)

    assert not result.job().progress
    assert result.state != "READING"
    assert record(held, done=13) == 0
    worker.execute("forget_progress")
    assert count_rows(connection, "job_progress") == 0


def test_the_next_attempt_starts_without_progress_and_a_late_report_does_not_touch_its_own(
    echo, worker, record
):
    result = echo.delay()
    before = worker.claim_one()
    record(before, done=39, total=40)
    worker.retry(before, delay=0.0)

    now = worker.claim_one()

    assert not result.job().progress
    record(now, done=1, total=40)
    assert record(before, done=40, total=40) == 0
    assert result.job().progress.done == 1


def test_what_was_written_between_the_look_and_a_rescue_is_seen_by_nobody(
    echo, worker, record, connection
):
    result = echo.delay()
    before = worker.claim_one()
    worker.retry(before, delay=0.0)
    now = worker.claim_one()
    record(now, done=1)
    # As record_progress leaves it if the job was taken away after it was looked at.
    connection.execute(
        "insert into pgtasks.job_progress values (%s, 'default', %s, '{\"done\": 40}', now())",
        [result.id, before.token],
    )

    assert result.job().progress.done == 1
    assert result.info.done == 1
    assert worker.execute("forget_progress") == [(1,)]
    assert result.job().progress.done == 1


def test_one_process_forgets_at_a_time(worker, dsn):
    with psycopg.connect(dsn) as other:
        other.execute("select pg_advisory_xact_lock(7236412, 2)")

        assert worker.execute("forget_progress") == [(None,)]


# What it costs


def test_a_further_report_is_a_hot_update_and_touches_no_job(app, echo, worker, connection):
    app.enqueue_many([echo.s("x" * 500)] * 50)
    held = worker.claim(limit=50)
    record = recorder(worker)

    def updates(table: str) -> tuple[int, int]:
        row: tuple[int, int] = connection.execute(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables"
            " where schemaname = 'pgtasks' and relname = %s",
            [table],
        ).fetchone()
        return row

    record(held, done=0, total=100, message="reading")
    # Once: how soon the pages can be pruned for more depends on who else looks at this database.
    with connection.transaction():  # the counters are the session's own, in a transaction
        before, jobs = updates("job_progress"), updates("job")
        assert record(held, done=1, total=100, message="reading") == 50
        after = updates("job_progress")
        assert updates("job") == jobs

    assert (after[0] - before[0], after[1] - before[1]) == (50, 50)


def test_nobody_waits_for_the_disk(echo, worker, connection):
    echo.delay()
    held = worker.claim_one()

    with connection.transaction():
        recorder(worker)(held, done=1)
        inside = connection.execute("show synchronous_commit").fetchone()

    assert inside == ("off",)
    assert connection.execute("show synchronous_commit").fetchone() == ("on",)


@pytest.mark.parametrize("statement", ["record", "forget"])
def test_the_jobs_are_found_by_their_key_also_in_a_table_never_analysed(
    app, echo, worker, connection, statement
):
    if connection.info.server_version < 150000:
        pytest.skip("PostgreSQL 14 cannot be told to count now: pg_stat_force_next_flush()")
    app.enqueue_many([echo.s()] * 3000)
    held = worker.claim(limit=3)
    record = recorder(worker)
    record(held, done=1)

    def seen() -> int:
        connection.execute("select pg_stat_force_next_flush()")
        row = connection.execute(
            "select seq_tup_read from pg_stat_user_tables"
            " where schemaname = 'pgtasks' and relname = 'job'"
        ).fetchone()
        return int(row[0])

    before = seen()
    for done in range(8):  # a generic plan from the sixth on
        if statement == "record":
            record(held, done=done)
        else:
            worker.execute("forget_progress")

    assert seen() == before


# Who may see what


def test_inspectors_see_the_message_and_not_the_meta(dsns, owner):
    owner.execute("select pgtasks.enqueue('t', id => gen_random_uuid())")
    owner.execute("update pgtasks.job set token = gen_random_uuid(), worker_id = 1")
    owner.execute(
        "insert into pgtasks.job_progress select id, queue, token,"
        ' \'{"done": 1, "message": "reading", "meta": {"card": "4242"}}\', now() from pgtasks.job'
    )
    shown = {}
    for role in ("inspector", "producer", "worker", "admin"):
        with psycopg.connect(dsns[role]) as session:
            [(progress,)] = session.execute("select progress from pgtasks.jobs").fetchall()
            del progress["at"]
            shown[role] = progress
    masked = {"done": 1, "message": "reading"}

    assert shown == {
        "inspector": masked,
        "producer": masked,
        "worker": masked,
        "admin": {**masked, "meta": {"card": "4242"}},
    }


def test_the_view_works_before_roles_are_granted_anew(owner, dsns):
    tables = owner.execute(
        "select relname, relowner from pg_class"
        " where relname in ('job_progress', 'jobs') and relnamespace = 'pgtasks'::regnamespace"
    ).fetchall()

    assert len({found for _, found in tables}) == 1


# The command line


@pytest.fixture
def running(app: App, echo: Any, worker: SimulatedWorker, connection: Any) -> Any:
    result = echo.delay()
    held = worker.claim_one()
    connection.execute("update pgtasks.worker set running = %s::uuid[]", [[result.id]])
    recorder(worker)(held, done=12, total=40, message="reading\x1b[1m", meta={"page": 3})
    return result


def test_the_command_line_shows_how_far_a_job_is(command: Command, running: Any):
    def lines(result: Result) -> str:
        assert "\x1b" not in result.stdout
        return result.stdout

    listed = lines(command("jobs", "list"))
    shown = lines(command("jobs", "show", running.id))
    active = lines(command("inspect", "active"))
    document = json.loads(command("jobs", "show", running.id, "--json").stdout)

    assert "12/40 (30 %) reading\\x1b[1m" in listed
    assert "progress  12/40 (30 %) reading\\x1b[1m (20" in shown
    assert 'meta      {"page": 3}' in shown
    assert '"progress": "12/40 (30 %) reading' in active
    assert document["progress"]["done"] == 12
    assert document["progress"]["meta"] == {"page": 3}
    assert "progress_json" not in document


def test_a_job_without_progress_is_shown_without(command: Command, echo: Any):
    id = echo.delay().id

    assert "progress" not in command("jobs", "show", id).stdout
    assert json.loads(command("jobs", "show", id, "--json").stdout)["progress"] is None


# Members of a bundle


def test_the_running_members_of_a_bundle_are_found_with_their_progress(app, echo, worker):
    result = group([echo.s(n) for n in range(4)]).apply()
    echo.delay()
    held = worker.claim(limit=5)
    members = [one for one in held if one.id in {member.id for member in result}]
    recorder(worker)(members[0], done=1, total=2)
    worker.beat(running=[members[1].id])

    found = app.run(operations.list_running_members(result.id))

    assert [job.id for job in found] == sorted([members[0].id, members[1].id])
    assert [job.progress.text() for job in found if job.progress] == ["1/2 (50 %)"]
    assert app.run(operations.list_running_members(result.id, limit=1)) == found[:1]


def test_the_members_of_steps_within_a_bundle_are_its_own(app, echo, worker, connection):
    result = group([echo.s(1), echo.s(2)]).apply()
    step = new_id()
    connection.execute(
        "insert into pgtasks.job_bundle (id, parent_id, depth, total, remaining) values (%s, %s, 1, 1, 1)",
        [step, result.id],
    )
    connection.execute("update pgtasks.job set bundle_id = %s where id = %s", [step, result[0].id])
    recorder(worker)(worker.claim(limit=2), done=1)

    found = app.run(operations.list_running_members(result.id))

    assert {job.id for job in found} == {result[0].id, result[1].id}


def test_who_may_not_see_claims_is_told_of_no_member(dsns, owner):
    bundle = new_id()
    for role in ("producer", "inspector"):
        app = App("tests", dsns[role])
        try:
            assert app.run(operations.list_running_members(bundle)) == []
        finally:
            app.close()
