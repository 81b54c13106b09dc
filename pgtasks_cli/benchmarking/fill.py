"""Queues the jobs that the other benchmarks move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks_cli.benchmarking import tasks

if TYPE_CHECKING:
    import psycopg

    from pgtasks import Task
    from pgtasks_cli.benchmarking.scratch import Scratch


def orders(count: int) -> Iterator[dict[str, Any]]:
    """Yield so many different orders."""
    for number in range(count):
        yield {**tasks.ORDER, "id": number}


def fill(scratch: Scratch, jobs: int) -> None:
    """Queue no-op jobs."""
    with scratch.connect() as connection:
        enqueue(connection, tasks.noop, jobs)


def enqueue(
    connection: psycopg.Connection[Any], task: Task[..., Any], jobs: int, *, distinct: bool = False
) -> str:
    """Queue jobs of a task on this connection, and return the last one's id; distinct: each with another order."""
    given = orders(jobs) if distinct else (tasks.ORDER for _ in range(jobs))
    rows = [task.new_job((order,), {}) for order in given]
    run(connection, operations.enqueue_jobs(rows))
    return rows[-1].id
