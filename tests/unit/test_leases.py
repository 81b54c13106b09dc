"""A verdict needs a whole lease of silence, seen without a gap by one observer; and it comes."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pgtasks.worker.leases import LeaseWatch, OwnLease
from pgtasks.worker.messages import Trust

LEASE, GAP, POLL = 30.0, 11.0, 5.0


def watch() -> LeaseWatch:
    return LeaseWatch(LEASE, GAP)


def polls(leases: LeaseWatch, times: list[float], beat: int = 7) -> list[list[tuple[int, int]]]:
    return [leases.observe({1: beat}, "server", now) for now in times]


def test_a_worker_that_is_silent_for_the_lease_is_dead():
    answers = polls(watch(), [0, 5, 10, 15, 20, 25, 30])

    assert answers == [[], [], [], [], [], [], [(1, 7)]]


def test_a_moved_beat_begins_the_wait_anew():
    leases = watch()
    polls(leases, [0, 5, 10, 15, 20, 25])

    assert leases.observe({1: 8}, "server", 30) == []
    assert polls(leases, [35, 40, 45, 50, 55], beat=8) == [[]] * 5
    assert polls(leases, [60], beat=8) == [[(1, 8)]]


def test_a_beat_that_went_back_is_a_moved_beat():
    leases = watch()
    polls(leases, [0, 5, 10, 15, 20, 25])

    assert leases.observe({1: 3}, "server", 30) == []


def test_a_gap_between_polls_begins_the_wait_anew():
    leases = watch()
    polls(leases, [0, 5, 10])

    assert polls(leases, [40]) == [[]]
    assert polls(leases, [45, 50, 55, 60, 65, 70]) == [[]] * 5 + [[(1, 7)]]


def test_another_server_begins_the_wait_anew():
    leases = watch()
    polls(leases, [0, 5, 10, 15, 20, 25])

    assert leases.observe({1: 7}, "restarted", 30) == []
    assert leases.observe({1: 7}, "restarted", 35) == []


def test_a_missed_poll_begins_the_wait_anew():
    leases = watch()
    polls(leases, [0, 5, 10, 15, 20, 25])

    leases.missed()

    assert polls(leases, [30, 35]) == [[], []]


def test_each_worker_has_a_wait_of_its_own():
    leases = watch()
    for now in range(0, 30, 5):
        beats = {1: 7, 2: now} if now >= 15 else {1: 7}
        assert leases.observe(beats, "server", now) == []

    assert leases.observe({1: 7, 2: 25}, "server", 30) == [(1, 7)]


def test_a_worker_that_went_and_came_back_is_a_new_one():
    leases = watch()
    polls(leases, [0, 5, 10, 15])
    leases.observe({}, "server", 20)

    assert polls(leases, [25, 30, 35]) == [[], [], []]


def test_a_rescued_worker_is_forgotten():
    leases = watch()
    polls(leases, [0, 5, 10, 15, 20, 25, 30])

    leases.forget([1, 99])

    assert polls(leases, [35]) == [[]]


def test_nothing_is_kept_of_workers_that_are_gone():
    leases = watch()
    for now in range(100):
        leases.observe({now: 1}, "server", now)

    assert len(leases._seen) == 1


steps = st.lists(
    st.tuples(
        st.sampled_from([1.0, 3.0, 5.0, 10.0, 10.9, 11.0, 11.1, 40.0]),  # time until the poll
        st.sampled_from(["same", "same", "same", "same", "moved", "restarted", "missed"]),
    ),
    max_size=40,
)


@given(steps)
def test_no_verdict_without_a_whole_lease_of_silence_without_a_gap(
    happened: list[tuple[float, str]],
):
    leases = watch()
    now, beat, server = 0.0, 0, 0
    silent_since: float | None = None
    polled_at: float | None = None

    for pause, what in happened:
        now += pause
        if what == "missed":
            leases.missed()
            polled_at = None
            continue
        beat += what == "moved"
        server += what == "restarted"
        unbroken = polled_at is not None and now - polled_at <= GAP
        if what != "same" or not unbroken or silent_since is None:
            silent_since = now
        polled_at = now

        dead = leases.observe({1: beat}, str(server), now)

        # Both ways: no verdict before its time, and none missed after it.
        assert dead == ([(1, beat)] if now - silent_since >= LEASE else [])


@given(
    st.lists(st.sampled_from([0.5, 2.0, 10.9]), max_size=20),
    st.lists(st.sampled_from([0.5, 2.0, 5.0, 10.9]), max_size=20),
)
def test_a_silent_worker_is_always_found(before: list[float], after: list[float]):
    leases = watch()
    now = 0.0
    for number, pause in enumerate(before):  # it lives
        now += pause
        assert leases.observe({1: number}, "server", now) == []

    died_at = now
    pauses = itertools.chain(after, itertools.repeat(POLL))
    while not leases.observe({1: -1}, "server", now):
        now += next(pauses)

    assert now - died_at <= LEASE + GAP


# One's own


def test_a_lease_is_trusted_less_the_longer_nothing_was_confirmed():
    lease = OwnLease(LEASE, 100.0)

    found = [lease.trust(100.0 + silence) for silence in (0, 14.9, 15, 24.9, 25, 1e6)]

    assert found == [
        Trust.SURE,
        Trust.SURE,
        Trust.UNSURE,
        Trust.UNSURE,
        Trust.LOST,
        Trust.LOST,
    ]


def test_a_beat_counts_from_the_moment_when_it_was_sent():
    lease = OwnLease(LEASE, 100.0)

    lease.confirm(110.0)  # the answer came much later

    assert lease.trust(124.9) is Trust.SURE
    assert lease.trust(125.0) is Trust.UNSURE


def test_a_confirmation_that_comes_late_does_not_shorten_the_trust():
    lease = OwnLease(LEASE, 100.0)
    lease.confirm(120.0)

    lease.confirm(110.0)

    assert lease.trust(134.9) is Trust.SURE


@settings(deadline=None)  # the machine may be busy
@given(st.floats(1, 1000), st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_a_worker_gives_up_before_others_may_take_its_jobs(length: float, sent: list[float]):
    """However late an observer saw the last beat: it waits for a whole lease from then on."""
    lease = OwnLease(length, 0.0)
    for moment in sent:
        lease.confirm(moment)

    assert lease.trust(max(sent) + length * 0.84) is Trust.LOST
