"""What 1,000 schedules cost that tick every minute: the CPU of a worker that does nothing else, and of the server.

They all tick at the same moment, every few seconds, so that no minutes have to be waited for; what the same worker
used without any schedule is taken off, and the rest counted for one such moment in a minute. No job is run: the
worker serves no queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pgtasks_cli.benchmarking.drain import wait_until
from pgtasks_cli.benchmarking.figures import Figure, median
from pgtasks_cli.benchmarking.meters import cpu_between, cpu_seconds, family, server_processes
from pgtasks_cli.benchmarking.tasks import app

if TYPE_CHECKING:
    import psycopg

    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch

SCHEDULES = 1000
# Seconds between two ticks of all.
PERIOD = 5
REGISTERED = "select from pgtasks.worker where beat > 0"
ADD = """
    insert into pgtasks.schedule (name, task, spec, timezone, args)
    select 'schedule ' || n, 'bench.noop', %s, 'Europe/Vienna', '[{"id":4711,"to":"ann@example.com"}]'
    from generate_series(1, %s) n
"""
TICKED = "select from (select count(*) as ticks from pgtasks.schedule_tick) t where t.ticks >= %s::bigint"
LATE = "select extract(epoch from max(created_at - start_at))::float8 * 1000 from pgtasks.job"


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Let a worker without jobs tick, and without schedules before."""
    schedules, period = (100, 1) if plan.tiny else (SCHEDULES, PERIOD)
    workers, servers, late = [], [], []
    for _ in range(plan.times(5)):
        ticks = plan.times(4)
        scratch.empty()
        with app.worker(pool="beat") as process, scratch.connect() as connection:
            wait_until(connection, REGISTERED)
            time.sleep(0.2 if plan.tiny else 2.0)
            plan.tell("schedules: a worker without any")
            idle = use_of(connection, process.pid, ticks * period)
            plan.tell(f"schedules: {ticks} ticks of {schedules} at once")
            connection.execute(ADD, (f"* * * * * */{period}", schedules))
            wait_until(connection, TICKED, str(schedules))
            time.sleep(period / 2)  # in the middle between two ticks
            busy = use_of(connection, process.pid, ticks * period)
            late.append(one(connection, LATE))
        # Of a core, in a minute with one tick of all.
        share = [
            None if b is None or i is None else max(0.0, b - i) / ticks / 60 * 100
            for b, i in zip(busy, idle, strict=True)
        ]
        workers.append(share[0])
        servers.append(share[1])
    app.close()
    both = [
        None if w is None or s is None else w + s for w, s in zip(workers, servers, strict=True)
    ]
    yield median(
        "schedules.worker_cpu", f"{SCHEDULES:,} schedules a minute, of a core: worker", workers, "%"
    )
    yield median(
        "schedules.server_cpu", f"{SCHEDULES:,} schedules a minute, of a core: server", servers, "%"
    )
    yield median("schedules.cpu", f"{SCHEDULES:,} schedules a minute, of a core: both", both, "%")
    yield median("schedules.late", "tick to its job, the last of all at once", late, "ms")


def use_of(
    connection: psycopg.Connection[Any], pid: int, seconds: float
) -> tuple[float | None, float | None]:
    """Return what a worker and the server use of the CPU in so many seconds; None: it cannot be seen."""
    server = server_processes(connection)
    before = cpu_seconds(family(pid)), cpu_seconds(server or ())
    time.sleep(seconds)
    after = cpu_seconds(family(pid)), cpu_seconds(server_processes(connection) or ())
    used = [cpu_between(*pair) for pair in zip(before, after, strict=True)]
    return used[0], None if server is None else used[1]


def one(connection: psycopg.Connection[Any], statement: str) -> float:
    """Return the only value of a statement."""
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return float(row[0])
