"""A transactional task's success commits with what it wrote, or not at all; driven without a parent."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from pgtasks import App, ConfigurationError, Ignore, Job, Reject, Retry, Task, current_job
from pgtasks.db import fenced
from pgtasks.errors import ConnectError, TaskFailedError
from pgtasks.worker.messages import ClaimedRow, Order
from pgtasks.worker.runners import UNSETTLED_CODE
from pgtasks.worker.wire import Note
from tests.fixtures.eventually import eventually
from tests.fixtures.forked_child import ForkedChild, Pipes, Record
from tests.fixtures.simulated_worker import Held, SimulatedWorker, count_rows

IN_A_THREAD: tuple[str, dict[str, Any]] = ("write", {"pool": "threads", "concurrency": 2})
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("write", {}),
    IN_A_THREAD,
    ("awrite", {}),
    ("awrite", {"pool": "threads", "concurrency": 2}),
    ("awrite", {"async_concurrency": 3}),
]
ways = pytest.mark.parametrize(("task", "options"), WAYS)


class Hooked(Task[..., Any]):
    """Writes into the transaction what its hooks are told."""

    def on_success(self, retval: Any, task_id: Any, args: Any, kwargs: Any) -> None:
        self.app.told.say("on_success")  # type: ignore[attr-defined]

    def on_failure(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        self.app.told.say(f"on_failure {type(exc).__name__}")  # type: ignore[attr-defined]


@pytest.fixture
def table(connection: psycopg.Connection[Any]):
    connection.execute("create table if not exists noted (id int primary key, job uuid)")
    connection.execute("truncate noted")
    yield "noted"
    connection.execute("drop table noted")


@pytest.fixture
def tasks(app: App, table: str, pipes: Pipes) -> App:
    app.told = pipes  # type: ignore[attr-defined]

    @app.task(name="next", queue="other")
    def next_(x: int) -> None: ...

    @app.task(name="write", transactional=True, retries=1, retry_schedule=[5])
    def write(x: int, then: str = "") -> int | None:
        job = current_job()
        job.connection.execute("insert into noted values (%s, %s)", [x, job.id])
        next_.delay(x)
        match then:
            case "raise":
                raise ValueError(then)
            case "retry":
                raise Retry(7)
            case "reject":
                raise Reject("no")
            case "ignore":
                raise Ignore
            case "wait":
                pipes.say("waiting")
                pipes.listen()
            case "commit":
                job.connection.commit()
            case "end":
                job.connection.execute("commit")
            case "break":
                try:
                    job.connection.execute("select 1/0")
                except psycopg.Error:
                    pipes.say("caught")
            case "unreachable":
                app.pools.connect = no_database  # type: ignore[method-assign]
            case "sleep":
                pipes.say("waiting")
                job.connection.execute("select pg_sleep(60)")
            case _:
                pass
        return 10 * x

    @app.task(name="awrite", transactional=True, retries=1, retry_schedule=[5])
    async def awrite(x: int, then: str = "") -> int | None:
        job = current_job()
        await job.connection.execute("insert into noted values (%s, %s)", [x, job.id])
        await next_.adelay(x)
        match then:
            case "raise":
                raise ValueError(then)
            case "retry":
                raise Retry(7)
            case "reject":
                raise Reject("no")
            case "ignore":
                raise Ignore
            case "wait":
                pipes.say("waiting")
                await asyncio.to_thread(pipes.listen)
            case "commit":
                await job.connection.commit()
            case "end":
                await job.connection.execute("commit")
            case "break":
                try:
                    await job.connection.execute("select 1/0")
                except psycopg.Error:
                    pipes.say("caught")
            case "unreachable":
                app.pools.connect = no_database  # type: ignore[method-assign]
            case "sleep":
                pipes.say("waiting")
                await job.connection.execute("select pg_sleep(60)")
            case _:
                pass
        return 10 * x

    return app


def no_database() -> Any:
    raise ConnectError("no database answered")


def row_of(held: Held) -> ClaimedRow:
    return ClaimedRow._make(held[:-1])


def claim(app: App, worker: SimulatedWorker, task: str, *args: Any, **kwargs: Any) -> Held:
    app.tasks[task].delay(*args, **kwargs)
    return worker.claim_one()


def send(child: ForkedChild, serial: int, held: Held) -> None:
    child.send((serial, row_of(held), Note(token=held.token)))


def perform(child: ForkedChild, held: Held) -> Record:
    send(child, 1, held)
    return child.record(1)


def noted(connection: psycopg.Connection[Any]) -> list[int]:
    return [x for (x,) in connection.execute("select id from noted order by id")]


def enqueued(app: App) -> int:
    return len(app.jobs(queue="other"))


@ways
def test_success_commits_with_what_the_task_wrote(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
):
    held = claim(tasks, worker, task, 3)
    child = fork(tasks, **options)

    record = perform(child, held)
    child.end()

    assert (record.kind, record.result, record.error) == ("committed", None, None)
    assert noted(connection) == [3]
    assert enqueued(tasks) == 1
    job = tasks.job(held.id)
    assert (job.state, job.result) == ("succeeded", 30)
    assert job.started_at is not None
    assert job.stopped_at is not None
    assert job.started_at <= job.stopped_at


@ways
@pytest.mark.parametrize(
    ("then", "kind", "delay"),
    [("raise", "retry", 5), ("retry", "retry", 7), ("reject", "failed", None)],
)
def test_anything_else_leaves_nothing_behind(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
    then: str,
    kind: str,
    delay: float | None,
):
    held = claim(tasks, worker, task, 3, then)
    child = fork(tasks, **options)

    record = perform(child, held)

    assert (record.kind, record.delay) == (kind, delay)
    assert noted(connection) == []
    assert enqueued(tasks) == 0
    assert tasks.job(held.id).state == "running"  # the parent writes what became of it
    # And the connection serves the next one.
    send(child, 2, claim(tasks, worker, task, 4))
    assert child.record(2).kind == "committed"


@ways
def test_ignore_commits_without_a_result(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
):
    held = claim(tasks, worker, task, 3, "ignore")

    record = perform(fork(tasks, **options), held)

    assert record.kind == "committed"
    assert noted(connection) == [3]
    assert tasks.job(held.id).state == "succeeded"


@ways
def test_a_job_that_is_no_longer_this_workers_commits_nothing(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
):
    held = claim(tasks, worker, task, 3, "wait")
    child = fork(tasks, **options)
    send(child, 1, held)
    assert child.heard() == "waiting"

    worker.release(held)  # a rescue, say
    again = worker.claim_one()
    child.tell()

    assert child.record(1).kind == "late"
    assert noted(connection) == []
    assert enqueued(tasks) == 0
    assert worker.succeed(again) == [held.id]


@ways
def test_the_session_stands_on_the_slate_while_the_job_runs(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
):
    child = fork(tasks, **options)
    send(child, 1, claim(tasks, worker, task, 3, "wait"))
    assert child.heard() == "waiting"

    (running,) = child.slate.running()
    found = connection.execute(
        "select state, datname = current_database() from pg_stat_activity where pid = %s",
        [running.session],
    ).fetchone()
    child.tell()
    child.record(1)
    child.end()

    assert found == ("idle in transaction", True)
    assert [one.session for one in child.slate.running()] == [0]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        way for way in WAYS if way != IN_A_THREAD
    ],  # one that blocks in a system call is not interrupted
)
@pytest.mark.parametrize("order", [Order.SOFT_LIMIT, Order.CANCEL])
def test_an_interrupt_rolls_back(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
    order: Order,
):
    child = fork(tasks, **options)
    send(child, 1, claim(tasks, worker, task, 3, "wait"))
    assert child.heard() == "waiting"

    child.order(1, order)

    assert child.record(1).kind == ("cancelled" if order is Order.CANCEL else "retry")
    assert noted(connection) == []
    child.tell()  # whoever still listens


@ways
@pytest.mark.parametrize(
    ("then", "type_name"),
    [
        ("commit", "psycopg.ProgrammingError"),
        ("end", "pgtasks.errors.ConfigurationError"),
        ("break", "psycopg.errors.InFailedSqlTransaction"),
    ],
)
def test_a_task_that_ends_or_breaks_its_transaction_fails(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    task: str,
    options: dict[str, Any],
    then: str,
    type_name: str,
):
    held = claim(tasks, worker, task, 3, then)
    child = fork(tasks, **options)

    record = perform(child, held)

    assert record.kind == "retry"
    assert record.error["type"] == type_name
    assert tasks.job(held.id).state == "running"
    send(child, 2, claim(tasks, worker, task, 4))
    assert child.record(2).kind == "committed"


@pytest.mark.parametrize(("task", "options"), [way for way in WAYS if way != IN_A_THREAD])
def test_an_interrupt_cancels_the_query_that_the_task_waits_for(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
):
    child = fork(tasks, **options)
    send(child, 1, claim(tasks, worker, task, 3, "sleep"))
    assert child.heard() == "waiting"
    (running,) = child.slate.running()
    eventually(lambda: asleep(connection, running.session))

    child.order(1, Order.SOFT_LIMIT)

    record = child.record(1)
    assert record.error["type"] == "pgtasks.errors.SoftTimeLimitExceeded"
    eventually(lambda: at_rest(connection, running.session))
    send(child, 2, claim(tasks, worker, task, 4))
    assert child.record(2).kind == "committed"


def at_rest(connection: psycopg.Connection[Any], pid: int) -> None:
    found = connection.execute(
        "select state from pg_stat_activity where pid = %s", [pid]
    ).fetchone()
    assert found in (None, ("idle",))


def asleep(connection: psycopg.Connection[Any], pid: int) -> None:
    found = connection.execute(
        "select wait_event from pg_stat_activity where pid = %s", [pid]
    ).fetchone()
    assert found == ("PgSleep",)


def refuse_at_commit(connection: psycopg.Connection[Any], what: str) -> None:
    connection.execute(
        "create or replace function pg_temp_refuse() returns trigger language plpgsql as"
        f" $$ begin {what}; return null; end $$"
    )
    connection.execute(
        "create constraint trigger refuse after insert on noted initially deferred"
        " for each row execute function pg_temp_refuse()"
    )


@ways
def test_a_commit_that_the_server_refuses_is_the_jobs_failure(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
):
    refuse_at_commit(connection, "raise check_violation using message = 'not today'")
    held = claim(tasks, worker, task, 3)

    record = perform(fork(tasks, **options), held)

    assert (record.kind, record.delay) == ("retry", 5)
    assert "not today" in record.error["message"]
    assert tasks.job(held.id).state == "running"
    assert noted(connection) == []


@ways
def test_a_session_that_dies_in_the_commit_is_a_failure_if_the_job_is_still_there(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    task: str,
    options: dict[str, Any],
):
    refuse_at_commit(connection, "perform pg_terminate_backend(pg_backend_pid())")
    held = claim(tasks, worker, task, 3)
    child = fork(tasks, **options)

    record = perform(child, held)

    assert record.kind == "retry"
    assert record.error["type"] == "pgtasks.db.fenced.CommitLostError"
    assert noted(connection) == []
    connection.execute("drop trigger refuse on noted")
    send(child, 2, claim(tasks, worker, task, 4))
    assert child.record(2).kind == "committed"


@ways
def test_a_commit_whose_answer_is_lost_counts_if_the_job_is_gone(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    connection: psycopg.Connection[Any],
    monkeypatch: Any,
    task: str,
    options: dict[str, Any],
):
    def lost(connection: object) -> None:
        raise fenced.CommitLostError("the answer was lost")

    monkeypatch.setattr(fenced, "check_committed", lost)
    held = claim(tasks, worker, task, 3)

    record = perform(fork(tasks, **options), held)

    assert record.kind == "committed"
    assert noted(connection) == [3]
    assert tasks.job(held.id).state == "succeeded"


@ways
def test_a_child_ends_if_it_cannot_find_out_what_became_of_a_commit(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    monkeypatch: Any,
    task: str,
    options: dict[str, Any],
):
    def lost(connection: object) -> None:
        raise fenced.CommitLostError("the answer was lost")

    @tasks.task(name="noop")
    def noop() -> None: ...

    noop.delay()
    before = worker.claim_one()
    held = claim(tasks, worker, task, 3, "unreachable")
    monkeypatch.setattr(fenced, "check_committed", lost)
    child = fork(tasks, **options)

    child.send((1, row_of(before), None))
    child.record(1)
    child.send((2, row_of(held), Note(token=held.token)))

    assert child.wait() == UNSETTLED_CODE
    assert [one.serial for one in child.records] == [1]
    (running,) = [one for one in child.slate.running() if one.serial == 2]
    assert running.session > 0


@ways
def test_without_a_database_the_job_fails_by_its_policy(
    tasks: App,
    fork: Any,
    worker: SimulatedWorker,
    task: str,
    options: dict[str, Any],
):
    held = claim(tasks, worker, task, 3)
    tasks.dsn = "postgresql://localhost:1/nowhere"

    record = perform(fork(tasks, **options), held)

    assert (record.kind, record.error["type"]) == ("retry", "pgtasks.errors.ConnectError")


def test_a_raw_task_and_a_bound_one_find_the_connection(
    tasks: App, fork: Any, worker: SimulatedWorker, connection: psycopg.Connection[Any]
):
    @tasks.task(name="raw", raw=True, transactional=True)
    def raw(job: Job) -> None:
        job.connection.execute("insert into noted values (1)")

    @tasks.task(name="bound", bind=True, transactional=True)
    def bound(self: Any) -> None:
        assert self.request.connection is current_job().connection
        self.request.connection.execute("insert into noted values (2)")

    child = fork(tasks)
    for serial, task in enumerate(("raw", "bound"), 1):
        send(child, serial, claim(tasks, worker, task))
        assert child.record(serial).kind == "committed"

    assert noted(connection) == [1, 2]


@pytest.mark.parametrize("then", ["", "raise"])
def test_hooks_are_called_before_the_success_commits(
    tasks: App, fork: Any, worker: SimulatedWorker, then: str
):
    @tasks.task(name="hooked", transactional=True, base=Hooked)
    def hooked(then: str) -> None:
        if then:
            raise KeyError(then)

    child = fork(tasks)
    send(child, 1, claim(tasks, worker, "hooked", then))

    assert child.record(1).kind == ("failed" if then else "committed")
    assert child.heard() == ("on_failure KeyError" if then else "on_success")


def test_a_job_whose_history_is_not_kept_leaves_none(
    tasks: App, fork: Any, worker: SimulatedWorker, connection: psycopg.Connection[Any]
):
    @tasks.task(name="unkept", transactional=True, keep_history=False)
    def unkept() -> int:
        return 1

    record = perform(fork(tasks), claim(tasks, worker, "unkept"))

    assert record.kind == "committed"
    assert count_rows(connection, "job_history") == 0


def test_many_coroutines_each_have_a_connection_of_their_own(
    tasks: App, fork: Any, worker: SimulatedWorker, connection: psycopg.Connection[Any]
):
    child = fork(tasks, async_concurrency=15)
    for serial in range(1, 16):
        send(child, serial, claim(tasks, worker, "awrite", serial, "wait"))
    for _ in range(15):
        assert child.heard() == "waiting"

    assert len({one.session for one in child.slate.running()}) == 15
    child.tell("x" * 15)
    child.end()
    assert noted(connection) == list(range(1, 16))


def test_an_eager_run_uses_the_connection_of_the_block(
    tasks: App, connection: psycopg.Connection[Any]
):
    tasks.tasks.pop("next")
    eager = App("eager", eager=True)

    @eager.task(name="noting", transactional=True)
    def noting(x: int) -> None:
        current_job().connection.execute("insert into noted values (%s)", [x])

    with eager.connection(connection):
        assert noting.delay(5).successful()
    assert noted(connection) == [5]

    with pytest.raises(TaskFailedError, match=r"ConfigurationError.*app\.connection"):
        noting.delay(6).get()


def test_job_connection_is_refused_outside_of_the_job(tasks: App, worker: SimulatedWorker):
    held = claim(tasks, worker, "write", 3)

    with pytest.raises(ConfigurationError, match="does not run here"):
        _ = tasks.job(held.id).connection
