"""A large chord: how long it takes to write, and what its counting costs, against a group of the same size.

Group and chord are drained in turns, each written in one transaction while the worker is up and idle. The time is
the database's clock, from the first member's ``started_at`` until another session saw no job left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from pgtasks import chord, group
from pgtasks_cli.benchmarking import tasks
from pgtasks_cli.benchmarking.drain import ALL_GONE, CONCURRENCY, IDLE, read_times, wait_until
from pgtasks_cli.benchmarking.figures import Figure, median

if TYPE_CHECKING:
    from pgtasks import GroupResult
    from pgtasks_cli.benchmarking.plan import Plan
    from pgtasks_cli.benchmarking.scratch import Scratch


def measure(scratch: Scratch, plan: Plan) -> Iterator[Figure]:
    """Write and drain chords and groups in turns."""
    members = plan.size(100_000, 500)
    taken: list[float] = []
    rates: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(plan.times(3)):
        for is_chord in (False, True) if turn % 2 == 0 else (True, False):
            plan.tell(f"canvas: a {'chord' if is_chord else 'group'} of {members:,}")
            seconds, rate = drain(scratch, members, is_chord)
            rates[is_chord].append(rate)
            if is_chord:
                taken.append(seconds)
    yield median("canvas.chord_written", f"a chord of {members:,} written", taken, "s")
    yield median("canvas.group_rate", "drain of a group", rates[False], "jobs/s")
    yield median("canvas.chord_rate", "drain of a chord", rates[True], "jobs/s")
    ratios = [ours / theirs for theirs, ours in zip(rates[False], rates[True], strict=True)]
    yield median("canvas.chord_of_group", "drain of a chord, of that of a group", ratios, "×")


def drain(scratch: Scratch, members: int, is_chord: bool) -> tuple[float, float]:
    """Write a group or chord and drain it; returns seconds to write it, and jobs a second."""
    scratch.empty()
    header = group(tasks.noop.s(tasks.ORDER) for _ in range(members))
    with (
        tasks.app.worker(concurrency=CONCURRENCY),
        scratch.connect() as watch,
        scratch.connect() as writer,
    ):
        wait_until(watch, IDLE)
        began_writing = time.perf_counter()
        with writer.transaction():
            if is_chord:
                body = chord(header, tasks.count.s()).apply(connection=writer)
                members_of = cast("GroupResult[None]", body.parent)
            else:
                members_of = header.apply(connection=writer)
        seconds = time.perf_counter() - began_writing
        first = members_of[0].id
        wait_until(watch, ALL_GONE)
        began, ended = read_times(watch, first)
    return seconds, members / (ended - began)
