"""The slate says what a dead child had begun and not reported."""

from __future__ import annotations

import os

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.worker.slate import ROOM, Slate


@pytest.fixture
def slate():
    slate = Slate()
    yield slate
    slate.close()


def test_a_new_slate_is_empty(slate: Slate):
    assert slate.begun() == 0
    assert not slate.has_unreported()
    assert orjson.loads(slate.unreported()) == []


def test_jobs_begun_are_counted(slate: Slate):
    for _ in range(70_000):
        slate.begin()

    assert slate.begun() == 70_000


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


@given(st.lists(st.lists(st.integers(-5, 5)), max_size=30), st.integers(0, 30))
def test_any_records_come_back_as_json(records: list[list[int]], cleared_after: int):
    slate = Slate()
    kept: list[list[int]] = []
    for number, record in enumerate(records):
        if number == cleared_after:
            slate.clear()
            kept = []
        assert slate.add(orjson.dumps(record))
        kept.append(record)

    assert orjson.loads(slate.unreported()) == kept
    slate.close()


def test_the_parent_reads_what_a_dead_child_wrote(slate: Slate):
    pid = os.fork()
    if pid == 0:
        slate.begin()
        slate.begin()
        slate.add(b"[1]")
        os._exit(9)
    os.waitpid(pid, 0)

    assert slate.begun() == 2
    assert orjson.loads(slate.unreported()) == [[1]]
