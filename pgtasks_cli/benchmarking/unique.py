"""Unique jobs: what a key on every job costs, against plain jobs with the same arguments, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgtasks_cli.benchmarking import tasks
from pgtasks_cli.benchmarking.drain import Drained, drain
from pgtasks_cli.benchmarking.enqueue import in_turns, rates, ratios
from pgtasks_cli.benchmarking.figures import Figure, median
from pgtasks_cli.benchmarking.fill import orders

if TYPE_CHECKING:
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Drain and enqueue, each with a key and without."""
    jobs = plan.size(50_000, 500)
    plain: list[Drained] = []
    unique: list[Drained] = []
    for turn in range(plan.times(5)):
        for is_unique in (False, True) if turn % 2 == 0 else (True, False):
            plan.tell(f"unique: drain of {jobs:,} {'unique' if is_unique else 'plain'} jobs")
            task, runs = (tasks.single, unique) if is_unique else (tasks.noop, plain)
            runs.append(drain(scratch, task, jobs, distinct=True))
    of_plain = [one.rate / other.rate for one, other in zip(unique, plain, strict=True)]
    wal = [
        one.wal / one.jobs - other.wal / other.jobs
        for one, other in zip(unique, plain, strict=True)
    ]
    yield median(
        "unique.drain_rate", "drain, a unique key each", [run.rate for run in unique], "jobs/s"
    )
    yield median("unique.drain_of_plain", "drain, a unique key each, of plain", of_plain, "×")
    yield median("unique.wal", "WAL of a unique key, in its drain", wal, "B/job")
    yield from enqueue(scratch, plan)
    tasks.app.close()


def enqueue(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """``delay()`` and `enqueue_many`, with a key and without."""
    count = plan.size(300, 20)
    plan.tell(f"unique: {count} jobs one by one, in turns with plain ones")
    few = list(orders(count))

    def delay_plain() -> None:
        for order in few:
            tasks.noop.delay(order)

    def delay_unique() -> None:
        for order in few:
            tasks.single.delay(order)

    ways = {"plain": delay_plain, "unique": delay_unique}
    took = in_turns(ways, plan.times(15, 2), before=scratch.empty)
    yield median(
        "unique.delay_rate", "delay(), a unique key each", rates(took["unique"], count), "jobs/s"
    )
    yield median(
        "unique.delay_of_plain", "delay(), of plain", ratios(took["plain"], took["unique"]), "×"
    )

    many = list(orders(plan.size(50_000, 500)))
    plan.tell(f"unique: {len(many):,} jobs at once, in turns with plain ones")

    def many_plain() -> None:
        tasks.app.enqueue_many(tasks.noop.s(order) for order in many)

    def many_unique() -> None:
        tasks.app.enqueue_many(tasks.single.s(order) for order in many)

    ways = {"plain": many_plain, "unique": many_unique}
    took = in_turns(ways, plan.times(5), before=scratch.empty)
    yield median(
        "unique.many_rate",
        "enqueue_many, a unique key each",
        rates(took["unique"], len(many)),
        "jobs/s",
    )
    yield median(
        "unique.many_of_plain", "enqueue_many, of plain", ratios(took["plain"], took["unique"]), "×"
    )
