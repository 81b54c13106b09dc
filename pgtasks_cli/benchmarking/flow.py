"""Flow: what limits cost, and what turns are worth.

The drain is that of `drain`, with a limit on 1,000 keys and beside it, in turns, without. Two jobs of a key may run
at once: few enough that some wait, many enough that all are done in the end. Of the tenants one has a backlog, and a
worker at it; the other enqueues one job. How long that takes to begin is told by the two clocks of one machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks_cli.benchmarking import tasks
from pgtasks_cli.benchmarking.drain import CONCURRENCY, IDLE, drain, wait_until
from pgtasks_cli.benchmarking.figures import Figure, median

if TYPE_CHECKING:
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch

KEYS = 1000
SOME_DONE = "select from pgtasks.job_history limit 1"


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Drain with a limit and without; let a tenant come late."""
    jobs = plan.size(50_000, 500)
    limited: list[float] = []
    ratios: list[float] = []
    for turn in range(plan.times(3)):
        rates = {}
        for task in (tasks.limited, tasks.noop) if turn % 2 == 0 else (tasks.noop, tasks.limited):
            plan.tell(f"flow: {jobs:,} jobs of {task.name}")
            rates[task.name] = drain(scratch, task, jobs).rate
        limited.append(rates[tasks.limited.name])
        ratios.append(rates[tasks.limited.name] / rates[tasks.noop.name])
    yield median("flow.limited_rate", f"drain, a limit on {KEYS:,} keys", limited, "jobs/s")
    yield median("flow.of_plain", "drain, limited, of the plain one", ratios, "×")

    backlog = plan.size(100_000, 500)
    starts = []
    for _ in range(plan.times(3)):
        plan.tell(f"flow: a tenant beside one with {backlog:,} jobs")
        starts.append(come_late(scratch, backlog))
    yield median(
        "flow.tenant_start", f"start of one beside {backlog:,} of another tenant", starts, "s"
    )


def come_late(scratch: Scratch, backlog: int) -> float:
    """Enqueue one job while a worker is busy with another tenant's; return after how many seconds it began."""
    scratch.empty()
    with (
        tasks.app.worker(concurrency=CONCURRENCY),
        scratch.connect() as watch,
        scratch.connect() as writer,
    ):
        wait_until(watch, IDLE)
        rows = [tasks.fair.new_job(("large",), {}) for _ in range(backlog)]
        run(writer, operations.enqueue_jobs(rows))
        wait_until(watch, SOME_DONE)
        enqueued = time.time_ns()
        began = tasks.fair.delay("small").get(timeout=60)
    return (began - enqueued) / 1e9
