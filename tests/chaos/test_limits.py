"""Limits under kills, by a ledger that the tasks write on connections of their own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

from tests.chaos.conftest import Look, Scale
from tests.fixtures import gated_app
from tests.fixtures.eventually import eventually
from tests.fixtures.workers import RunningWorker, Workers, kill_and_wait, wait_until_finished

pytestmark = pytest.mark.chaos

MODULE = "tests.fixtures.gated_app"
KEYS = ("a", "b", "c")


@pytest.fixture
def ledger(look: Look) -> Iterator[psycopg.Connection]:
    connection = look.open()
    connection.execute("drop table if exists public.ledger")
    connection.execute(gated_app.TABLE)
    gated_app.app.dsn = look._dsn
    try:
        yield connection
    finally:
        gated_app.app.close()


def most_at_once(connection: psycopg.Connection) -> dict[str, int]:
    """Return how many of each key ran at the same time, at most."""
    steps: list[tuple[object, int, str]] = []
    for key, began, ended in connection.execute(
        "select key, began_at, coalesce(ended_at, 'infinity') from public.ledger"
    ).fetchall():
        steps += [(began, 1, key), (ended, -1, key)]
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for _, step, key in sorted(steps, key=lambda one: (one[0], one[1])):
        now[key] += step
        most[key] = max(most[key], now[key])
    return dict(most)


def has_begun(connection: psycopg.Connection, pids: list[int], number: int) -> None:
    row = connection.execute(
        "select count(*) from public.ledger where pid = any(%s)", [pids]
    ).fetchone()
    assert row is not None
    assert row[0] >= number


def kill(worker: RunningWorker, connection: psycopg.Connection) -> None:
    """Kill a worker with all its children, and write down that what they ran has ended."""
    children = worker.children()
    worker.kill()
    for pid in children:
        kill_and_wait(pid)
    connection.execute(
        "update public.ledger set ended_at = clock_timestamp() where pid = any(%s) and ended_at is null",
        [children],
    )


def test_two_workers_and_one_killed_never_run_more_than_the_limit_of_a_key(
    workers: Workers, look: Look, ledger: psycopg.Connection, scale: Scale, rng: random.Random
) -> None:
    jobs = scale(150, most=3000)
    options: dict[str, Any] = {"concurrency": 4, "beat": 0.5, "lease": 1.5}
    first, second = workers.start(MODULE, **options), workers.start(MODULE, **options)
    gated_app.app.enqueue_many(
        [
            gated_app.enter.s(rng.choice(KEYS), rng.choice([0.0, 0.01, 0.05]), rng.random() < 0.1)
            for _ in range(jobs)
        ]
    )

    pids = second.has_children(4)
    eventually(partial(has_begun, ledger, pids, 10), 30.0)
    kill(second, ledger)
    third = workers.start(MODULE, **options)
    kill_and_wait(
        first.has_children(4)[0]
    )  # a child alone: its job is charged, and keeps its place
    ledger.execute(
        "update public.ledger set ended_at = clock_timestamp()"
        " where ended_at is null and not pid = any(%s)",
        [first.children() + third.children()],
    )
    wait_until_finished(look.open(), timeout=90.0)

    most = most_at_once(ledger)
    assert set(most) == set(KEYS)
    assert max(most.values()) == gated_app.EACH
    assert look.one("select count(*) from pgtasks.job_history") >= jobs


def test_rate_limit_holds_in_each_worker(
    workers: Workers, look: Look, ledger: psycopg.Connection
) -> None:
    """As Celery has it: so many in each worker; those that wait stay in the queue, for others."""
    workers.start(MODULE, concurrency=2)
    gated_app.app.enqueue_many([gated_app.slowly.s("slow") for _ in range(12)])

    wait_until_finished(look.open(), timeout=30.0)

    times = [
        at
        for (at,) in ledger.execute(
            "select extract(epoch from began_at)::float8 from public.ledger order by 1"
        ).fetchall()
    ]
    assert len(times) == 12
    assert times[-1] - times[0] >= 11 / 5 - 0.3
