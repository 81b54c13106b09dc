"""Frames survive any cut of the stream, and nothing else is made of them."""

from __future__ import annotations

import os
import threading
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.worker.messages import ClaimedRow
from pgtasks.worker.wire import (
    HEADER,
    FrameReader,
    Note,
    WireJob,
    frame,
    pack_jobs,
    read_jobs,
    write_all,
)
from tests.unit.worker_fakes import claimed_row

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)
bodies = st.lists(values, max_size=6)
claimed_rows = st.builds(
    claimed_row,
    seq=st.integers(1, 2**63 - 1),
    priority=st.integers(-(2**31), 2**31 - 1),
    task=texts,
    args=texts,
    kwargs=texts,
    input=st.none() | texts,
    options=st.none() | texts,
    attempts=st.none() | texts,
    bundle_index=st.none() | st.integers(0, 2**31 - 1),
    created_at=st.floats(allow_nan=False, allow_infinity=False),
    start_at=st.none() | st.floats(0, 1e12),
    expired=st.booleans(),
)


@given(bodies, st.lists(st.integers(0, 400)))
def test_frames_come_out_whole_wherever_the_stream_is_cut(frames: list[Any], cuts: list[int]):
    stream = b"".join(frame(orjson.dumps(one)) for one in frames)
    ends = [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader()

    found: list[Any] = []
    start = 0
    for end in ends:
        found += reader.feed(stream[start:end])
        start = end

    assert found == frames


@given(bodies)
def test_frames_come_out_whole_byte_by_byte_and_each_as_soon_as_it_is_complete(frames: list[Any]):
    reader = FrameReader()

    for one in frames:
        data = frame(orjson.dumps(one))
        for position in range(len(data) - 1):
            assert list(reader.feed(data[position : position + 1])) == []
        assert list(reader.feed(data[-1:])) == [one]


def test_an_incomplete_frame_waits():
    reader = FrameReader()

    assert list(reader.feed(frame(b"[1]") + b"\0\0")) == [[1]]
    assert list(reader.feed(b"\0\x03[2")) == []
    assert list(reader.feed(b"]")) == [[2]]


def test_nothing_is_kept_of_frames_that_came_out():
    reader = FrameReader()
    for _ in range(1000):
        list(reader.feed(frame(b"[1, 2, 3]")))

    assert len(reader._buffer) == 0


notes = st.builds(
    Note,
    token=st.none() | texts,
    over_limit=st.none() | st.floats(0.001, 1e9),
)


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), claimed_rows, st.none() | notes), max_size=5))
def test_jobs_arrive_as_they_were_sent(jobs: list[WireJob]):
    read, write = os.pipe()
    try:
        sender = threading.Thread(target=write_all, args=(write, pack_jobs(jobs)))
        sender.start()
        arrived = read_jobs(read)
        sender.join()
    finally:
        os.close(read)
        os.close(write)

    assert arrived == jobs
    assert all(type(row) is ClaimedRow for _, row, _ in arrived or ())


def test_a_frame_larger_than_the_pipe_arrives():
    jobs: list[WireJob] = [(number, claimed_row(args="x" * 100_000), None) for number in range(20)]
    read, write = os.pipe()
    sender = threading.Thread(target=write_all, args=(write, pack_jobs(jobs)))

    sender.start()
    arrived = read_jobs(read)
    sender.join()
    os.close(write)
    end = read_jobs(read)
    os.close(read)

    assert arrived == jobs
    assert end is None


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 10])
def test_a_stream_that_ends_within_a_frame_is_an_end(kept: int):
    read, write = os.pipe()
    os.write(write, pack_jobs([(1, claimed_row(), None)])[:kept])
    os.close(write)

    assert read_jobs(read) is None
    os.close(read)


def test_the_length_is_four_bytes_big_endian():
    assert frame(b"[]") == b"\0\0\0\x02[]"
    assert HEADER.size == 4
