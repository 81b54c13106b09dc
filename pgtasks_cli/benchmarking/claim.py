"""Claim throughput: the statements that a worker sends, by one connection, without children."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pgtasks.db.statements import sql_of
from pgtasks.worker.link import plain_array
from pgtasks_cli.benchmarking.figures import Figure, median
from pgtasks_cli.benchmarking.fill import fill
from pgtasks_cli.benchmarking.meters import read_counters

if TYPE_CHECKING:
    import psycopg

    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch

BATCHES = (100, 500)


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Claim and finish jobs in batches of 100, and of 500."""
    jobs = plan.size(50_000, 1_000)
    rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    wal: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    commits: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    hot: list[float | None] = []
    for turn in range(plan.times(3)):
        for batch in BATCHES if turn % 2 == 0 else reversed(BATCHES):
            plan.tell(f"claim: {jobs:,} jobs in batches of {batch}")
            scratch.empty()
            fill(scratch, jobs)
            before = read_counters(scratch)
            seconds = drain(scratch, jobs, batch)
            counted = read_counters(scratch).since(before)
            rates[batch].append(jobs / seconds)
            wal[batch].append(counted.wal / jobs)
            commits[batch].append(counted.commits / jobs)
            hot.append(counted.hot_ratio)
    for batch in BATCHES:
        of = f"batches of {batch}"
        yield median(f"claim.rate_{batch}", f"claim and finish, {of}", rates[batch], "jobs/s")
        yield median(f"claim.wal_{batch}", f"WAL, {of}", wal[batch], "B/job")
        yield median(f"claim.commits_{batch}", f"transactions, {of}", commits[batch], "per job")
    yield median("claim.hot_ratio", "HOT ratio of claims", hot, "")


def drain(scratch: Scratch, jobs: int, batch: int) -> float:
    """Claim and finish until nothing is left, and return the seconds that took."""
    with scratch.connect() as connection, connection.cursor() as cursor:
        began = time.perf_counter()
        last: int | None = None
        done = 0
        while done < jobs:
            token = str(uuid.uuid4())
            rows = claim(cursor, batch, token, last)
            if not rows:
                raise RuntimeError(f"only {done} of {jobs} jobs could be claimed")
            last = rows[-1][1]
            done += finish(cursor, rows, token)
        return time.perf_counter() - began


def claim(
    cursor: psycopg.Cursor[Any], batch: int, token: str, last: int | None
) -> list[tuple[Any, ...]]:
    """Claim a batch, from the cursor on where one is known, as the ledger does."""
    cursor.execute(
        sql_of("claim_jobs"),
        {
            "queue": "default",
            "tasks": ["bench.noop"],
            "high": [0],
            "low": [0],
            "after": [last],
            "limit": batch,
            "token": token,
            "worker_id": 1,
            "at_most_once": False,
        },
        prepare=True,
    )
    return sorted(cursor.fetchall(), key=lambda row: row[1])


def finish(cursor: psycopg.Cursor[Any], rows: list[tuple[Any, ...]], token: str) -> int:
    """Write the success of a batch, with arrays as the worker's connection sends them."""
    ids = sorted(row[0] for row in rows)
    count = len(ids)
    arrays = {
        "id": plain_array(ids),
        "token": plain_array([token] * count),
        "result": plain_array(["NULL"] * count),
        "age": plain_array(["0.001"] * count),
        "claims": plain_array([token]),
    }
    cursor.execute(
        sql_of("finish_succeeded"),
        {"queue": "default", "keep": True}
        | {name: array.decode() for name, array in arrays.items()},
        prepare=True,
    )
    return count - len(cursor.fetchall())
