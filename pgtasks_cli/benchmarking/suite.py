"""All benchmarks by name, and the run of some of them on one server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pgtasks_cli.benchmarking import (
    canvas,
    claim,
    drain,
    enqueue,
    flow,
    latency,
    schedules,
    startup,
    unique,
)
from pgtasks_cli.benchmarking.figures import Figure, Report
from pgtasks_cli.benchmarking.scratch import Scratch, scratch_database
from pgtasks_cli.benchmarking.tasks import app

if TYPE_CHECKING:
    from pgtasks_cli.benchmarking.plan import Plan

MEASURES: dict[str, Callable[[Scratch, Plan], Iterator[Figure]]] = {
    "canvas": canvas.measure,
    "claim": claim.measure,
    "drain": drain.measure,
    "enqueue": enqueue.measure,
    "flow": flow.measure,
    "latency": latency.measure,
    "schedules": schedules.measure,
    "startup": startup.measure,
    "unique": unique.measure,
}


def run_benchmarks(dsn: str, names: Sequence[str], plan: Plan) -> Report:
    """Run benchmarks in a database of their own, and report.

    Args:
        dsn: a server, and a role that may create databases there.
        names: which; see `MEASURES`.
        plan: how much.
    """
    figures: list[Figure] = []
    with scratch_database(dsn) as scratch:
        app.dsn = scratch.dsn
        try:
            for name in names:
                figures += MEASURES[name](scratch, plan)
        finally:
            app.close()
        return Report(server=scratch.server(), tiny=plan.tiny, figures=figures)
