"""Queues the jobs that the other benchmarks move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks_cli.benchmarking import tasks

if TYPE_CHECKING:
    import psycopg

    from pgtasks import Task
    from pgtasks_cli.benchmarking.scratch import Scratch


def fill(scratch: Scratch, jobs: int) -> None:
    """Queue no-op jobs."""
    with scratch.connect() as connection:
        enqueue(connection, tasks.noop, jobs)


def enqueue(connection: psycopg.Connection[Any], task: Task[..., Any], jobs: int) -> str:
    """Queue jobs of a task on this connection, and return the last one's id."""
    rows = [task.new_job((tasks.ORDER,), {}) for _ in range(jobs)]
    run(connection, operations.enqueue_jobs(rows))
    return rows[-1].id
