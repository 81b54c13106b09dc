"""The raw-SQL limit: what one client reaches on the same tables with nothing but SQL.

One client, prepared statements: claim 100 rows of the live table by HOT update, then move these 100 to
the history; two transactions, and again, until the same number of jobs is through. No claim rows, no
bundles, no fences against lost workers, no functions: what a queue of one's own would be made of.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgtasks_cli.benchmarking.scratch import Scratch

BATCH = 100

# As the schema's own functions are set: so that no plan differs but by what it has to do.
SETTINGS = (
    "enable_seqscan",
    "enable_bitmapscan",
    "enable_hashjoin",
    "enable_mergejoin",
    "enable_sort",
)

CLAIM = """
update pgtasks.job
set token = %(token)s::uuid, worker_id = 1, attempt = attempt + 1, started_at = now()
where queue = 'default'
    and id = any(array(
        select id
        from pgtasks.job
        where queue = 'default' and state = 'ready' and priority = 0 and seq > %(last)s and token is null
        order by priority desc, seq
        limit 100
        for update skip locked
    ))
returning id, seq, task, args, kwargs
"""

MOVE = """
with gone as (
    delete from pgtasks.job
    where queue = 'default' and id = any(%(ids)s) and token = %(token)s::uuid
    returning *
)
insert into pgtasks.job_history (
    id, queue, state, priority, created_at, started_at, stopped_at, task, args, kwargs, crashes, attempt, worker_id
)
select id, queue, 'succeeded', priority, created_at, started_at, now(), task, args, kwargs, crashes, attempt, worker_id
from gone
"""


def drain(scratch: Scratch, jobs: int) -> float:
    """Claim and move until nothing is left, and return the seconds that took."""
    with scratch.connect() as connection, connection.cursor(binary=True) as cursor:
        for name in SETTINGS:
            connection.execute(f"set {name} = off".encode())
        began = time.perf_counter()
        last = done = 0
        while done < jobs:
            token = uuid.uuid4()
            cursor.execute(CLAIM, {"token": token, "last": last}, prepare=True)
            rows = cursor.fetchall()
            if not rows:
                raise RuntimeError(f"only {done} of {jobs} jobs could be claimed")
            last = max(row[1] for row in rows)
            cursor.execute(MOVE, {"ids": [row[0] for row in rows], "token": token}, prepare=True)
            done += cursor.rowcount
        return time.perf_counter() - began
