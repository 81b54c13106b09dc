"""The slate says what a dead child ran and had not reported, and takes the parent's orders to it."""

from __future__ import annotations

import os
import signal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.progress import MAX_PROGRESS
from pgtasks.worker.messages import Order, Report, Running
from pgtasks.worker.slate import PROGRESS_ROOM, ROOM, SKIPS, Slate


@pytest.fixture
def slate():
    slate = Slate(slots=3)
    yield slate
    slate.close()


def test_a_new_slate_is_empty(slate: Slate):
    assert slate.running() == []
    assert [slate.order(slot) for slot in range(3)] == [None, None, None]
    assert not slate.skips(1)
    assert not slate.has_unreported()
    assert orjson.loads(slate.unreported()) == []


def test_what_runs_stands_in_its_slot(slate: Slate):
    slate.begin(7, 1.5)
    slate.begin(2**63, 2.5, slot=2)
    slate.set_session(4711, slot=2)

    assert slate.running() == [Running(7, 1.5, 0), Running(2**63, 2.5, 4711)]

    slate.begin(8, 3.5)
    slate.set_session(0, slot=2)

    assert slate.running() == [Running(8, 3.5, 0), Running(2**63, 2.5, 0)]


def test_an_order_reaches_the_slot_of_its_job_only(slate: Slate):
    slate.begin(7, 0.0, slot=0)
    slate.begin(8, 0.0, slot=2)

    assert slate.interrupt(8, Order.SOFT_LIMIT)

    assert [slate.order(slot) for slot in range(3)] == [None, None, (8, Order.SOFT_LIMIT)]
    assert slate.interrupt(8, Order.CANCEL)
    assert slate.order(2) == (8, Order.CANCEL)


def test_an_order_for_a_job_that_does_not_run_is_refused(slate: Slate):
    slate.begin(7, 0.0)
    slate.begin(8, 0.0)

    assert not slate.interrupt(7, Order.CANCEL)
    assert slate.order() is None


def test_an_order_stays_with_the_job_that_it_was_for(slate: Slate):
    slate.begin(7, 0.0)
    slate.interrupt(7, Order.CANCEL)

    slate.begin(8, 0.0)

    assert slate.order() == (7, Order.CANCEL)


def test_jobs_below_a_serial_are_skipped(slate: Slate):
    slate.skip_below(5)

    assert [slate.skips(serial) for serial in (4, 5)] == [True, False]


def test_named_jobs_are_skipped_until_others_are_named(slate: Slate):
    slate.skip([3, 9])
    assert [serial for serial in range(12) if slate.skips(serial)] == [3, 9]

    slate.skip([4])
    assert [serial for serial in range(12) if slate.skips(serial)] == [4]

    slate.skip([])
    assert not any(slate.skips(serial) for serial in range(12))


def test_as_many_are_skipped_as_there_is_room_for(slate: Slate):
    slate.begin(1, 0.0)

    slate.skip(range(100, 100 + 2 * SKIPS))

    assert [serial for serial in range(300) if slate.skips(serial)] == [*range(100, 100 + SKIPS)]
    assert slate.running() == [Running(1, 0.0, 0)]


def test_outcomes_are_kept_until_they_are_reported(slate: Slate):
    assert slate.add(b'[1,"succeeded"]')
    assert slate.add(b'[2,"failed"]')

    assert slate.has_unreported()
    assert orjson.loads(slate.unreported()) == [[1, "succeeded"], [2, "failed"]]

    slate.clear()
    assert not slate.has_unreported()
    assert orjson.loads(slate.unreported()) == []
    assert slate.add(b"[3]")
    assert orjson.loads(slate.unreported()) == [[3]]


def test_a_record_that_does_not_fit_is_refused_and_changes_nothing(slate: Slate):
    assert slate.add(b"[1]")

    assert not slate.add(b"[" + b"1" * ROOM + b"]")

    assert orjson.loads(slate.unreported()) == [[1]]


def test_a_record_that_fits_exactly_is_taken(slate: Slate):
    exact = b'"' + b"x" * (ROOM - 3) + b'"'

    assert slate.add(exact)

    assert slate.unreported() == b"[" + exact + b"]"
    assert not slate.add(b"")


@given(st.lists(st.lists(st.integers(-5, 5)), max_size=30), st.integers(0, 30), st.integers(1, 40))
def test_any_records_come_back_as_json(records: list[list[int]], cleared_after: int, slots: int):
    slate = Slate(slots)
    kept: list[list[int]] = []
    for number, record in enumerate(records):
        if number == cleared_after:
            slate.clear()
            kept = []
        slate.begin(number + 1, float(number), slot=number % slots)
        assert slate.add(orjson.dumps(record))
        kept.append(record)

    assert orjson.loads(slate.unreported()) == kept
    assert len(slate.running()) == min(slots, len(records))
    slate.close()


def test_the_parent_reads_what_a_dead_child_wrote(slate: Slate):
    pid = os.fork()
    if pid == 0:
        slate.begin(1, 0.5)
        slate.add(b"[1]")
        slate.begin(2, 1.0)
        os._exit(9)
    os.waitpid(pid, 0)

    assert slate.running() == [Running(2, 1.0, 0)]
    assert orjson.loads(slate.unreported()) == [[1]]


def test_a_child_reads_what_the_parent_wrote_after_the_fork(slate: Slate):
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        seen = slate.skips(1) and slate.skips(9) and slate.order(1) == (12, Order.CANCEL)
        os._exit(0 if seen else 1)
    slate.begin(12, 0.0, slot=1)
    slate.skip_below(2)
    slate.skip([9])
    slate.interrupt(12, Order.CANCEL)
    os.write(go, b"!")

    assert os.waitpid(pid, 0)[1] == 0
    os.close(ready)
    os.close(go)


# Progress


def test_of_each_slot_the_newest_progress_stands(slate: Slate):
    assert slate.progress() == []

    slate.note_progress(7, b'{"done":1}', 1.5)
    slate.note_progress(8, b'{"done":2}', 2.5, slot=2)
    slate.note_progress(7, b"{}", 3.5)

    assert slate.progress() == [Report(7, 3.5, b"{}"), Report(8, 2.5, b'{"done":2}')]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(1, 2**64 - 1),
            st.floats(0, 1e9),
            st.binary(max_size=MAX_PROGRESS),
        )
    )
)
def test_progress_comes_back_as_it_was_noted(noted: list[tuple[int, int, float, bytes]]):
    slate = Slate(slots=3)
    newest: dict[int, Report] = {}
    for slot, serial, now, data in noted:
        slate.note_progress(serial, data, now, slot)
        newest[slot] = Report(serial, now, data)

    assert slate.progress() == [newest[slot] for slot in sorted(newest)]
    slate.close()


def test_progress_touches_neither_outcomes_nor_slots(slate: Slate):
    slate.begin(7, 1.5)
    assert slate.add(b"x" * (ROOM - 2))

    for slot in range(3):
        slate.note_progress(7, b"y" * MAX_PROGRESS, 2.5, slot)

    assert slate.running() == [Running(7, 1.5, 0)]
    assert slate.unreported() == b"[" + b"x" * (ROOM - 2) + b"]"


def test_half_of_a_report_is_not_read(slate: Slate):
    slate.note_progress(7, b'{"done":1}', 1.5)
    slate.note_progress(8, b'{"done":2}', 2.5, slot=1)
    first = slate._progress
    slate._page[first + PROGRESS_ROOM - MAX_PROGRESS] ^= 1  # the first byte of its JSON

    assert slate.progress() == [Report(8, 2.5, b'{"done":2}')]


def test_a_report_is_whole_or_not_seen_while_it_is_written_all_the_time(slate: Slate):
    child = os.fork()
    if child == 0:
        number = 0
        while True:
            number = number % 7 + 1
            slate.note_progress(number, str(number).encode() * 5_000, 1.5)
    seen: set[int] = set()
    try:
        for _ in range(100_000):
            for one in slate.progress():
                assert one.progress == str(one.serial).encode() * 5_000
                seen.add(one.serial)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    assert seen == set(range(1, 8))
