"""Latency of an idle worker: from commit to start, and ``delay().get()``.

The job is written in a transaction; the time is from just before COMMIT is sent (so the commit itself is
in it) to the first line of the task, which returns the clock of the same machine. The worker has been
idle for a while before each, so it has to be woken.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pgtasks_cli.benchmarking.drain import CONCURRENCY, IDLE, wait_until
from pgtasks_cli.benchmarking.figures import Figure
from pgtasks_cli.benchmarking.tasks import app, started

if TYPE_CHECKING:
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch

TIMEOUT = 30.0
# So long the worker is left alone before each sample; chance, so that no poll of its keeps step.
PAUSE = (0.05, 0.15)


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Take samples of both."""
    samples = plan.times(300, 10)
    scratch.empty()
    with app.worker(concurrency=CONCURRENCY), scratch.connect() as connection:
        wait_until(connection, IDLE)
        for _ in range(4 * CONCURRENCY):  # every child has run the task once
            started.delay().get(timeout=TIMEOUT)
        plan.tell(f"latency: {samples} jobs from commit to start")
        starts = []
        for _ in range(samples):
            time.sleep(random.uniform(*PAUSE))
            with connection.transaction():
                result = started.using(connection).delay()
                committing = time.time_ns()
            starts.append((result.get(timeout=TIMEOUT) - committing) / 1e6)
        plan.tell(f"latency: {samples} round trips")
        trips = []
        for _ in range(samples):
            time.sleep(random.uniform(*PAUSE))
            began = time.perf_counter()
            started.delay().get(timeout=TIMEOUT)
            trips.append((time.perf_counter() - began) * 1e3)
    app.close()
    yield from percentiles("latency.start", "commit to start", starts)
    yield from percentiles("latency.round_trip", "delay().get()", trips)


def percentiles(key: str, what: str, samples: Sequence[float]) -> Iterator[Figure]:
    """Return the 50th, 95th and 99th percentile of some milliseconds."""
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    for part in (50, 95, 99):
        yield Figure(key=f"{key}_p{part}", what=f"{what}, p{part}", value=cuts[part - 1], unit="ms")
