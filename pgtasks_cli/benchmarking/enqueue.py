"""Enqueue: one by one, many, and in the caller's transaction, against the bare statements.

"Bare" is what a program would write itself with plain psycopg, its values ready made: a single-row insert
of the columns that matter (id, queue, task, args, kwargs) into `pgtasks.job`, in autocommit; a COPY of
the very rows. Both on the same table, with its indexes and its trigger. What these cost is told by the
same insert into a copy of the table that has no trigger.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgtasks import group
from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks.db.statements import sql_of
from pgtasks.ids import new_id
from pgtasks_cli.benchmarking.figures import Figure, median
from pgtasks_cli.benchmarking.tasks import ORDER, app, noop

if TYPE_CHECKING:
    import psycopg

    from pgtasks.job import NewJob
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch

INSERT = "insert into {} (id, queue, task, args, kwargs) values (%s, %s, %s, %s, %s)"
SIZES = (2, 5, 10, 20, 50, 100, 200, 500, 1000)


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Enqueue in every way there is."""
    with scratch.connect() as connection:
        connection.execute(b"create table if not exists bare (like pgtasks.job including all)")
        scratch.empty()
        yield from one_by_one(connection, plan)
        scratch.empty()
        yield from in_transaction(connection, plan)
        yield from many(scratch, connection, plan)
        scratch.empty()
        yield from crossover(connection, plan)
    app.close()


# One by one


def one_by_one(connection: psycopg.Connection[Any], plan: Plan) -> Iterator[Figure]:
    """``delay()`` on the app's own connection, against a bare insert on a plain one, in turns."""
    count = plan.size(300, 20)
    plan.tell(f"enqueue: {count} jobs one by one, in turns with bare inserts")
    bare, untriggered = INSERT.format("pgtasks.job"), INSERT.format("bare")
    ways: dict[str, Callable[[], None]] = {
        "delay": lambda: delay_each(count),
        "bare": lambda: insert_each(connection, bare, count),
        "untriggered": lambda: insert_each(connection, untriggered, count),
    }
    took = in_turns(ways, plan.times(15, 2))
    yield median("enqueue.delay_rate", "delay(), one by one", rates(took["delay"], count), "jobs/s")
    yield median("enqueue.bare_rate", "bare insert", rates(took["bare"], count), "jobs/s")
    yield median(
        "enqueue.untriggered_rate",
        "bare insert, no trigger",
        rates(took["untriggered"], count),
        "jobs/s",
    )
    yield median(
        "enqueue.delay_of_bare",
        "delay(), of the bare insert",
        ratios(took["bare"], took["delay"]),
        "×",
    )
    yield median(
        "enqueue.delay_of_untriggered",
        "delay(), of the bare insert without trigger",
        ratios(took["untriggered"], took["delay"]),
        "×",
    )


def delay_each(count: int) -> None:
    """Write jobs one by one, each committed."""
    for _ in range(count):
        noop.delay(ORDER)


def insert_each(connection: psycopg.Connection[Any], statement: str, count: int) -> None:
    """Insert rows one by one; psycopg prepares the statement at its sixth run, as for anybody."""
    text = statement.encode()
    for _ in range(count):
        connection.execute(text, (new_id(), "default", "bench.noop", ARGS, "{}"))


ARGS = '[{"id":4711,"to":"ann@example.com"}]'


# In the caller's transaction


def in_transaction(connection: psycopg.Connection[Any], plan: Plan) -> Iterator[Figure]:
    """``using(connection).delay()``, against the bare insert, many in one transaction."""
    count = plan.size(1_000, 50)
    plan.tell(f"enqueue: {count} jobs in the caller's transaction, in turns with bare inserts")
    bare = INSERT.format("pgtasks.job")
    task = noop.using(connection)

    def ours() -> None:
        with connection.transaction():
            for _ in range(count):
                task.delay(ORDER)

    def theirs() -> None:
        with connection.transaction():
            insert_each(connection, bare, count)

    took = in_turns({"delay": ours, "bare": theirs}, plan.times(7, 2))
    rate = rates(took["delay"], count)
    yield median("enqueue.transaction_rate", "delay() in the caller's transaction", rate, "jobs/s")
    yield median(
        "enqueue.transaction_of_bare",
        "delay() in a transaction, of the bare insert in one",
        ratios(took["bare"], took["delay"]),
        "×",
    )


# Many


def many(scratch: Scratch, connection: psycopg.Connection[Any], plan: Plan) -> Iterator[Figure]:
    """A group and `enqueue_many`, from the calls' descriptions to the commit, against a bare COPY."""
    count = plan.size(50_000, 500)
    plan.tell(f"enqueue: {count:,} jobs at once, in turns with COPY")
    copy = sql_of("copy_jobs")

    def grouped() -> None:
        group(noop.s(ORDER) for _ in range(count)).apply()

    def listed() -> None:
        app.enqueue_many(noop.s(ORDER) for _ in range(count))

    def copied() -> None:
        with connection.transaction(), connection.cursor() as cursor, cursor.copy(copy) as stream:
            stream.write(lines.pop())

    turns = plan.times(5)
    lines = [operations.copy_lines(new_jobs(count), operations.EPOCH) for _ in range(turns)]
    ways = {"group": grouped, "many": listed, "copy": copied}
    took = in_turns(ways, turns, before=scratch.empty)
    yield median("enqueue.group_rate", "group of 50,000", rates(took["group"], count), "jobs/s")
    yield median("enqueue.many_rate", "enqueue_many", rates(took["many"], count), "jobs/s")
    yield median("enqueue.copy_rate", "bare COPY", rates(took["copy"], count), "jobs/s")
    of_copy = ratios(took["copy"], took["group"])
    yield median("enqueue.group_of_copy", "group, of the bare COPY", of_copy, "×")


def new_jobs(count: int) -> list[NewJob]:
    """Build rows."""
    return [noop.new_job((ORDER,), {}) for _ in range(count)]


# COPY or arrays


def crossover(connection: psycopg.Connection[Any], plan: Plan) -> Iterator[Figure]:
    """COPY against one insert from arrays: from how many jobs on is COPY the faster one."""
    taken: dict[int, tuple[float, float]] = {}
    for size in SIZES[:3] if plan.tiny else SIZES:
        plan.tell(f"enqueue: {size} jobs by COPY, and from arrays")

        def by_copy(size: int = size) -> None:
            enqueue_from(0, connection, size)

        def by_arrays(size: int = size) -> None:
            enqueue_from(size + 1, connection, size)

        took = in_turns(
            {"copy": by_copy, "arrays": by_arrays}, plan.times(max(25, min(200, 4000 // size)), 2)
        )
        copy, arrays = (statistics.median(took[way]) for way in ("copy", "arrays"))
        taken[size] = copy, arrays
        for key, seconds in (("copy", copy), ("arrays", arrays)):
            yield Figure(
                key=f"enqueue.{key}_{size}",
                what=f"{size} jobs, {'COPY' if key == 'copy' else 'insert from arrays'}",
                value=seconds / size * 1e6,
                unit="µs/job",
            )
    yield Figure(
        key="enqueue.copy_from",
        what="COPY is faster from",
        value=faster_from(taken),
        unit="jobs",
    )


def enqueue_from(threshold: int, connection: psycopg.Connection[Any], size: int) -> None:
    """Write jobs as the library does, with COPY from another number of jobs on."""
    ours, operations.COPY_FROM = operations.COPY_FROM, threshold
    try:
        run(connection, operations.enqueue_jobs(new_jobs(size)))
    finally:
        operations.COPY_FROM = ours


def faster_from(taken: Mapping[int, tuple[float, float]]) -> float | None:
    """Return the least size from which on the first way is faster at every size; None: at none."""
    least = None
    for size in sorted(taken, reverse=True):
        copy, arrays = taken[size]
        if copy > arrays:
            break
        least = size
    return least


# Timing


def in_turns(
    ways: Mapping[str, Callable[[], None]], turns: int, before: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Run several ways in turns, after one run of each that does not count; returns the seconds of each.

    Args:
        ways: what to time, by name.
        turns: how often.
        before: called before each, untimed; then nothing is run for warming up.
    """
    took: dict[str, list[float]] = {name: [] for name in ways}
    if before is None:
        for way in ways.values():
            way()
    for turn in range(turns):
        for name in ways if turn % 2 == 0 else reversed(list(ways)):
            if before is not None:
                before()
            began = time.perf_counter()
            ways[name]()
            took[name].append(time.perf_counter() - began)
    return took


def rates(seconds: Sequence[float], count: int) -> list[float]:
    """Return jobs a second."""
    return [count / one for one in seconds]


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how fast ours is as a part of theirs, turn by turn."""
    return [their / our for their, our in zip(theirs, ours, strict=True)]
