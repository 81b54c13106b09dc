"""Drain throughput: a real worker with four children, a no-op task, jobs queued before.

The jobs are written in one transaction, which is committed when the worker is up and idle, so that they
are all there at once and the worker's start-up is out of every figure. The time is the database's clock,
from the first job's ``started_at`` (the beginning of the transaction that claimed it) until another
session saw no job left. One job of a task that keeps history goes first, so that its time is known also
when the others leave nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

from pgtasks_cli.benchmarking import raw, tasks
from pgtasks_cli.benchmarking.figures import Figure, median
from pgtasks_cli.benchmarking.fill import enqueue, fill
from pgtasks_cli.benchmarking.meters import (
    cpu_between,
    cpu_seconds,
    family,
    read_counters,
    server_processes,
)

if TYPE_CHECKING:
    import psycopg

    from pgtasks import Task
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch

CONCURRENCY = 4
# How often another session looks whether the jobs are gone: cheap, and one part in a hundred of a run.
LOOK_EVERY = 0.01
STUCK_AFTER = 120.0

IDLE = "select from pgtasks.worker where idle"
# Of one job first, by its key: a look at the whole table reads past all that is dead in it.
GONE = "select where not exists (select from pgtasks.job where id = %s)"
ALL_GONE = "select where not exists (select from pgtasks.job)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What one run took."""

    jobs: int
    seconds: float
    worker_cpu: float
    server_cpu: float | None
    wal: int
    commits: int
    hot_ratio: float | None

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Drain jobs with history kept and without; against the raw-SQL limit, in turns, if asked."""
    jobs = plan.size(50_000, 500)
    kept: list[Drained] = []
    raw_rates: list[float] = []
    for turn in range(plan.times(3)):
        sides = [False, True] if plan.against_raw else [False]
        for is_raw in sides if turn % 2 == 0 else reversed(sides):
            if is_raw:
                plan.tell(f"drain: {jobs:,} jobs by raw SQL")
                raw_rates.append(drain_raw(scratch, jobs))
            else:
                plan.tell(f"drain: {jobs:,} jobs, history kept")
                kept.append(drain(scratch, tasks.noop, jobs))
    yield from figures("drain", "history kept", kept)
    if raw_rates:
        ratios = [run.rate / rate for run, rate in zip(kept, raw_rates, strict=True)]
        yield median("drain.raw_rate", "raw-SQL limit", raw_rates, "jobs/s")
        yield median("drain.of_raw", "drain, history kept, of the raw-SQL limit", ratios, "×")
    forgotten = []
    for _ in range(plan.times(3)):
        plan.tell(f"drain: {jobs:,} jobs, no history")
        forgotten.append(drain(scratch, tasks.forgotten, jobs))
    yield from figures("drain_forgotten", "no history", forgotten)


def figures(key: str, what: str, runs: list[Drained]) -> Iterator[Figure]:
    """Return what some runs of one kind took."""
    yield median(f"{key}.rate", f"drain, {what}", [run.rate for run in runs], "jobs/s")
    worker = [run.worker_cpu / run.jobs * 1e6 for run in runs]
    yield median(f"{key}.worker_cpu", f"CPU of the worker's tree, {what}", worker, "µs/job")
    server = [None if run.server_cpu is None else run.server_cpu / run.jobs * 1e6 for run in runs]
    yield median(f"{key}.server_cpu", f"CPU of the server, {what}", server, "µs/job")
    yield median(f"{key}.wal", f"WAL, {what}", [run.wal / run.jobs for run in runs], "B/job")
    commits = [run.commits / run.jobs for run in runs]
    yield median(f"{key}.commits", f"transactions, {what}", commits, "per job")
    hot = [run.hot_ratio for run in runs]
    yield median(f"{key}.hot_ratio", f"HOT ratio of claims, {what}", hot, "")


def drain_raw(scratch: Scratch, jobs: int) -> float:
    """Drain the same jobs by raw SQL, and return jobs a second."""
    scratch.empty()
    fill(scratch, jobs)
    return jobs / raw.drain(scratch, jobs)


def drain(scratch: Scratch, task: Task[..., Any], jobs: int, *, distinct: bool = False) -> Drained:
    """Drain jobs of a task by a worker beside this process; distinct: each with another argument."""
    scratch.empty()
    with (
        tasks.app.worker(concurrency=CONCURRENCY) as worker,
        scratch.connect() as watch,
        scratch.connect() as writer,
    ):
        wait_until(watch, IDLE)
        with writer.transaction():
            first = enqueue(writer, tasks.noop, 1)
            last = enqueue(writer, task, jobs - 1, distinct=distinct)
            before = read_counters(scratch)
            server = server_processes(watch)
            server_before = None if server is None else cpu_seconds(server)
            worker_before = cpu_seconds(family(worker.pid))
        looks = wait_until(watch, GONE, last)
        looks += wait_until(watch, ALL_GONE)
        began, ended = read_times(watch, first)
        worker_cpu = cpu_between(worker_before, cpu_seconds(family(worker.pid)))
        server_cpu = None
        if server_before is not None:
            server_cpu = cpu_between(server_before, cpu_seconds(server_processes(watch) or ()))
    counted = read_counters(scratch).since(before)
    return Drained(
        jobs=jobs,
        seconds=ended - began,
        worker_cpu=worker_cpu,
        server_cpu=server_cpu,
        wal=counted.wal,
        commits=counted.commits - looks,
        hot_ratio=counted.hot_ratio,
    )


def wait_until(connection: psycopg.Connection[Any], statement: LiteralString, *values: str) -> int:
    """Wait until a statement returns a row, and return how often it was run."""
    looks = 0
    until = time.monotonic() + STUCK_AFTER
    while True:
        looks += 1
        if connection.execute(statement, values).fetchone() is not None:
            return looks
        if time.monotonic() > until:
            raise RuntimeError(f"waited {STUCK_AFTER:g} s in vain for: {statement}")
        time.sleep(LOOK_EVERY)


def read_times(connection: psycopg.Connection[Any], first: str) -> tuple[float, float]:
    """Return when the first job began and what time it is, by the database's clock."""
    row = connection.execute(
        "select extract(epoch from started_at)::float8, extract(epoch from clock_timestamp())::float8"
        " from pgtasks.job_history where id = %s",
        (first,),
    ).fetchone()
    assert row is not None, "the first job left no trace"
    return row[0], row[1]
