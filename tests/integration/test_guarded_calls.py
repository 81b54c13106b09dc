"""An interrupt neither cuts a call of ours in half nor leaks its connection."""

from __future__ import annotations

import select
from typing import Any

import psycopg
import pytest

from pgtasks import App
from pgtasks.worker.messages import Order
from tests.fixtures.eventually import eventually
from tests.fixtures.forked_child import Pipes
from tests.fixtures.simulated_worker import blocked_on_a_lock
from tests.unit.worker_fakes import claimed_row


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("enqueue", {}),
        ("enqueue", {"pool": "threads", "concurrency": 2}),
        ("aenqueue", {}),
        ("aenqueue", {"async_concurrency": 3}),
    ],
)
def test_an_interrupt_waits_for_the_end_of_a_call_of_ours(
    app: App,
    fork: Any,
    pipes: Pipes,
    connection: psycopg.Connection[Any],
    dsn: str,
    task: str,
    options: dict[str, Any],
):
    @app.task(name="noop")
    def noop() -> None: ...

    @app.task(name="nothing")
    def nothing() -> None: ...

    @app.task(name="enqueue")
    def enqueue() -> None:
        pipes.say("begun")
        noop.delay()
        while True:
            pipes.say("not interrupted")

    @app.task(name="aenqueue")
    async def aenqueue() -> None:
        import asyncio

        pipes.say("begun")
        await noop.adelay()
        await asyncio.sleep(60)
        pipes.say("not interrupted")

    app.close()
    child = fork(app, **options)
    with psycopg.connect(dsn) as other:
        other.execute("lock table pgtasks.job in exclusive mode")
        # The outcome of the first is reported at once, that of the second when the order is looked at.
        first, second = claimed_row(task="nothing"), claimed_row(task="nothing")
        child.send((3, first), (2, second), (1, claimed_row(task=task)))
        assert child.heard() == "begun"

        def waits() -> None:
            row = connection.execute(
                "select pid from pg_stat_activity where wait_event_type = 'Lock'"
            ).fetchone()
            assert row is not None
            blocked_on_a_lock(connection, row[0])

        eventually(waits)
        child.order(1, Order.CANCEL)
        child.record(2)
        # The interrupt is there; the job would have ended by it.
        assert select.select([child.outbox], [], [], 0.3)[0] == []

    assert child.record(1).kind == "cancelled"
    assert len(app.jobs(task="noop")) == 1
    child.end()
