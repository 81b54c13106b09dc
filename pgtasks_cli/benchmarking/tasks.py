"""The tasks that the benchmarks run, and the app that has them: ``-A pgtasks_cli.benchmarking.tasks``."""

from __future__ import annotations

import itertools
import time
from typing import Any

from pgtasks import App, Limit

app = App("bench")

# One small argument object, as in the comparisons with other systems.
ORDER = {"id": 4711, "to": "ann@example.com"}


@app.task(name="bench.noop")
def noop(order: dict[str, Any]) -> None:
    """Do nothing."""


@app.task(name="bench.single", unique=lambda order: order["id"])
def single(order: dict[str, Any]) -> None:
    """Do nothing, once for each order."""


@app.task(name="bench.count")
def count(results: list[Any]) -> int:
    """Return how many results there are."""
    return len(results)


@app.task(name="bench.forgotten", keep_history=False)
def forgotten(order: dict[str, Any]) -> None:
    """Do nothing, and leave nothing behind."""


# In the process that enqueues, each key in its turn.
_turn = itertools.cycle(range(1000))


@app.task(name="bench.limited", limit=Limit(2, key=lambda order: next(_turn)))
def limited(order: dict[str, Any]) -> None:
    """Do nothing, two of a key at once."""


@app.task(name="bench.fair", fair_by="{tenant}")
def fair(tenant: str) -> int:
    """Return when it began, in nanoseconds since 1970."""
    return time.time_ns()


@app.task(name="bench.started")
def started() -> int:
    """Return when it began, in nanoseconds since 1970."""
    return time.time_ns()
