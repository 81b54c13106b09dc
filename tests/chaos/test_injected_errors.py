"""The server refuses statements at random: time-outs, lock time-outs, deadlocks, serialization failures."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest

from pgtasks import PgTasksError
from pgtasks.db.embedded import TemporaryServer
from pgtasks.ids import new_id
from tests.chaos.conftest import Look, Scale
from tests.fixtures import sample_app
from tests.fixtures.checker import check
from tests.fixtures.eventually import eventually
from tests.fixtures.figures import Measured
from tests.fixtures.producer import Producer
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Workers, until, wait_until_finished

pytestmark = pytest.mark.chaos

# SQLSTATE -> what it stands for
PASSING = {
    "57014": "statement_timeout",
    "55P03": "lock_timeout",
    "40001": "serialization failure",
    "40P01": "deadlock",
    "53200": "out of memory",
    "53100": "disk full",
    "53300": "too many connections",
}

# One write in so many is refused, before or after its rows were written.
INJECT = """
create function public.refuse() returns trigger language plpgsql as $$
begin
    if random() < {share} then
        raise exception using
            errcode = (array[{codes}])[1 + floor(random() * {number})::integer],
            message = 'injected';
    end if;
    return null;
end
$$;
"""
TABLES = ("job", "claim", "job_history", "worker")


@contextmanager
def injected(connection: psycopg.Connection[Any], share: float) -> Iterator[None]:
    """Let statements that write to our tables fail now and then."""
    codes = ", ".join(f"'{code}'" for code in PASSING)
    connection.execute(INJECT.format(share=share, codes=codes, number=len(PASSING)))
    triggers = [
        (f"refuse_{moment}_{table}", moment, table)
        for moment in ("before", "after")
        for table in TABLES
    ]
    for name, moment, table in triggers:
        connection.execute(
            f"create trigger {name} {moment} insert or update or delete on pgtasks.{table}"
            " for each statement execute function public.refuse()"
        )
    try:
        yield
    finally:
        for name, _, table in triggers:
            connection.execute(f"drop trigger {name} on pgtasks.{table}")
        connection.execute("drop function public.refuse()")


def test_errors_at_random_statements_are_surfaced_or_tried_again(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    scale: Scale,
) -> None:
    both = [workers.start(concurrency=2, beat=0.2, lease=20.0, name=f"w{n}") for n in range(2)]
    producer = Producer(server.dsn, runs.path)
    with injected(look.open(), 0.05):
        producer.start()
        until(time.monotonic() + scale.seconds(3.0, most=60.0))
        producer.stop()
    wait_until_finished(look.open())

    refused = "".join(worker.log() for worker in both).count("injected")
    assert refused > 20
    assert len(producer.errors) > 5
    verdict = check(look.open(), runs, producer.committed)
    verdict.assert_sound()  # what was refused left nothing behind: unexpected would say so
    verdict.assert_all_succeeded()
    assert [worker.stop() for worker in both] == [0, 0]


def test_batches_are_stored_whole_or_not_at_all(
    server: TemporaryServer, look: Look, runs: Runs, rng: random.Random, scale: Scale
) -> None:
    """By COPY and by insert, with errors in between."""
    connection = look.open()
    stored, refused = set(), 0
    with injected(connection, 0.1):
        for _ in range(scale(60, most=2000)):
            ids = [new_id() for _ in range(rng.choice([1, 3, 30]))]
            try:
                sample_app.app.enqueue_many(
                    sample_app.step.s(runs.path).set(task_id=id) for id in ids
                )
                stored.update(ids)
            except (psycopg.Error, PgTasksError):
                refused += 1

    assert refused
    found = connection.execute("select id::text from pgtasks.job").fetchall()
    assert {id for (id,) in found} == stored


SQLSTATES = {"statement_timeout": "57014", "lock_timeout": "55P03"}
MODES = ("share", "exclusive", "access exclusive")
OURS = "application_name = 'producer' or application_name like 'pgtasks %'"


@pytest.mark.parametrize("setting", SQLSTATES)
def test_time_outs_of_milliseconds_lose_nothing(
    server: TemporaryServer,
    workers: Workers,
    runs: Runs,
    look: Look,
    rng: random.Random,
    scale: Scale,
    measured: Measured,
    setting: str,
) -> None:
    """1 to 50 ms, while somebody locks the tables now and then.

    A worker's statement_timeout is its own, so its statements are cancelled from outside after that time.
    """
    connection = look.open()
    worker = workers.start(concurrency=2)
    producer = Producer(server.dsn, runs.path)
    producer.start()
    with time_limit(connection, "lock_timeout" if setting == "lock_timeout" else None) as limit:
        end = time.monotonic() + scale.seconds(2.0, most=40.0)
        while time.monotonic() < end:
            milliseconds = rng.randint(1, 50)
            limit(milliseconds)
            connection.execute(f"alter role postgres set {setting} = {milliseconds}")
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'producer'"
            )
            # The end of its session is one error; what comes then is under the limit.
            eventually(partial(_has_tried, producer, tries(producer) + 2))
            with psycopg.connect(server.dsn) as locker:
                locker.execute("set statement_timeout = 0; set lock_timeout = 0")
                locker.execute(f"lock table pgtasks.job in {rng.choice(MODES)} mode")
                until(time.monotonic() + milliseconds / 1000)
                if setting == "statement_timeout":
                    connection.execute(
                        f"select pg_cancel_backend(pid) from pg_stat_activity where {OURS}"
                    )
                until(time.monotonic() + rng.uniform(0.05, 0.1))
    connection.execute(f"alter role postgres reset {setting}")
    connection.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}")
    freed_at = time.monotonic()
    eventually(partial(_commits_more, producer, len(producer.committed) + 50))
    producer.stop()
    wait_until_finished(look.open())
    measured(f"{setting} of 1-50 ms and locks: caught up after", time.monotonic() - freed_at)

    assert SQLSTATES[setting] in worker.log()
    told = [getattr(error.__cause__ or error, "sqlstate", None) for error in producer.errors]
    assert SQLSTATES[setting] in told, producer.errors
    verdict = check(look.open(), runs, producer.committed, producer.perhaps)
    verdict.assert_sound()
    verdict.assert_all_succeeded()
    assert worker.stop() == 0


def tries(producer: Producer) -> int:
    return len(producer.committed) + len(producer.errors)


def _has_tried(producer: Producer, times: int) -> None:
    assert tries(producer) >= times


def _commits_more(producer: Producer, than: int) -> None:
    assert len(producer.committed) > than


@contextmanager
def time_limit(
    connection: psycopg.Connection[Any], setting: str | None
) -> Iterator[Callable[[int], None]]:
    """Set a time limit in our functions, which workers call; a setting of the role is not theirs."""
    signatures = connection.execute(
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace = 'pgtasks'::regnamespace and prokind = 'f'"
    ).fetchall()

    def limit(milliseconds: int) -> None:
        for (signature,) in signatures:
            connection.execute(f"alter function {signature} set {setting} = {milliseconds}")

    def nothing(milliseconds: int) -> None:
        """Leave the functions alone."""

    try:
        yield limit if setting else nothing
    finally:
        for (signature,) in signatures if setting else ():
            connection.execute(f"alter function {signature} reset {setting}")


def test_deadlocks_with_a_stranger_are_survived(
    server: TemporaryServer, workers: Workers, runs: Runs, look: Look, scale: Scale
) -> None:
    """Somebody locks our rows in the order of chance, for a while: real deadlocks, not injected ones."""
    worker = workers.start(concurrency=2)
    producer = Producer(server.dsn, runs.path, pause=0.001)
    stop = threading.Event()
    deadlocks = 0

    def disturb() -> None:
        nonlocal deadlocks
        with psycopg.connect(server.dsn, autocommit=True) as stranger:
            stranger.execute("set deadlock_timeout = '20ms'")
            while not stop.is_set():
                try:
                    with stranger.transaction():
                        stranger.execute("select from pgtasks.claim order by random() for update")
                        stranger.execute(
                            "select from pgtasks.job order by random() limit 200 for update"
                        )
                        stranger.execute("select from pgtasks.worker for update")
                except psycopg.errors.DeadlockDetected:
                    deadlocks += 1

    strangers = [threading.Thread(target=disturb) for _ in range(3)]
    producer.start()
    for stranger in strangers:
        stranger.start()
    until(time.monotonic() + scale.seconds(3.0, most=60.0))
    stop.set()
    for stranger in strangers:
        stranger.join(20)
    producer.stop()
    wait_until_finished(look.open())

    assert deadlocks + worker.log().count("40P01") > 0
    verdict = check(look.open(), runs, producer.committed)
    verdict.assert_sound()
    assert not verdict.excess
    assert worker.stop() == 0
