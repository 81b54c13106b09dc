"""Ids are UUIDv7: unique, in order of time, of one form."""

import os
import threading
import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks import ids
from pgtasks.ids import id_time, new_id, new_ids, parse_id


def test_a_new_id_is_a_uuid_of_version_7():
    for id in [*(new_id() for _ in range(1000)), *new_ids(1000)]:
        parsed = uuid.UUID(id)
        assert (str(parsed), parsed.version, parsed.variant) == (id, 7, uuid.RFC_4122)


def test_ids_do_not_repeat():
    made = [new_id() for _ in range(5000)] + new_ids(5000)

    assert len(set(made)) == 10_000


def test_ids_made_together_are_in_strict_order():
    made = new_ids(5000)

    assert all(one < other for one, other in pairwise(made))
    assert new_ids(0) == []


def test_ids_made_one_after_another_are_in_order_of_time(monkeypatch):
    made = []
    for now in range(1_700_000_000_000_000_000, 1_700_000_000_003_000_000, 1000):
        monkeypatch.setattr("time.time_ns", lambda now=now: now)
        made.append(new_id())

    assert made == sorted(made)


def test_time_and_fraction_stand_where_rfc_9562_says(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_645_557_742_000_500_000)  # half a ms

    id = new_id()

    assert id.startswith("017f22e2-79b0-7800-")  # the RFC's own example, and 0x800 = 4096 / 2
    assert id_time(id) == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)


@given(st.integers(0, 253_402_300_799_999))
def test_an_id_says_when_it_was_made(milliseconds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time_ns", lambda: milliseconds * 1_000_000 + 999_999)

        made = [new_id(), new_ids(1)[0]]

    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    assert [id_time(id) for id in made] == [moment, moment]


@pytest.mark.parametrize(
    "id",
    [
        str(uuid.UUID(int=0)),
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "919108f7-52d1-4320-9bac-f847db4148a8",
        "017f22e2-79b0-7800-c000-000000000000",  # another variant
        "ffffffff-ffff-7800-8000-000000000000",  # the year 10889
    ],
)
def test_an_id_of_another_version_does_not_say_when(id):
    assert id_time(id) is None


@given(st.uuids())
def test_an_id_is_parsed_into_its_one_form(value):
    for text in (str(value), str(value).upper(), value.hex, value):
        assert parse_id(text) == str(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        None,
        7,
        "017f22e2-79b0-7800-8000-00000000000g",
        "017f22e2-79b07800-8000-000000000000",
        "017f22e2-79b0-7800-8000-000000000000 ",
        "017f22e2-79b0-7800-8000-000000000000\n",
        "{017f22e2-79b0-7800-8000-000000000000}",
        "0x17f22e279b078008000000000000_00",
        "٠17f22e2-79b0-7800-8000-000000000000",
        "' or 1=1 --",
    ],
)
def test_what_is_no_uuid_is_refused_and_shown(text):
    with pytest.raises(ValueError, match=r"^expected a UUID, found ") as caught:
        parse_id(text)

    assert repr(text) in str(caught.value)


def test_a_forked_child_makes_ids_of_its_own(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)
    new_id()  # fills the store of random tails
    assert ids._tails
    read, write = os.pipe()

    pid = os.fork()
    if pid == 0:
        os.write(write, "\n".join(new_id() for _ in range(50)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        of_child = pipe.read().split()
    of_parent = [new_id() for _ in range(500)]

    assert len(of_child) == 50
    assert not set(of_child) & set(of_parent)


def test_threads_do_not_share_ids(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)
    made: list[list[str]] = []

    def make() -> None:
        made.append([new_id() for _ in range(3000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id for of_thread in made for id in of_thread}) == 24_000
