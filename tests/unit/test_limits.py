"""When a job is interrupted, when its child is killed, and when the parent must wake for either."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtasks.worker.limits import CANCEL_GRACE, Limits, Reason, Verdict
from pgtasks.worker.messages import Order, Running

SOFT, HARD, GRACE = 2.0, 5.0, 10.0
NEVER = float("inf")


def make_limits(*, kills: bool = True) -> Limits:
    return Limits(kills=kills, grace=GRACE)


def watching(
    soft: float | None = SOFT,
    hard: float | None = HARD,
    *,
    asynchronous: bool = False,
    kills: bool = True,
    began: float | None = 100.0,
) -> Limits:
    """Return limits that watch the job 7 in the child 1."""
    limits = make_limits(kills=kills)
    limits.watch(7, 1, soft, hard, asynchronous)
    if began is not None:
        limits.seen({1: [Running(7, began, 0)]})
    return limits


def due(limits: Limits, now: float) -> list[Verdict]:
    return list(limits.due(now))


SOFT_ORDER = Verdict(1, 7, Order.SOFT_LIMIT)
HARD_ORDER = Verdict(1, 7, Order.HARD_LIMIT)
CANCEL_ORDER = Verdict(1, 7, Order.CANCEL)
KILL_FOR_LIMIT = Verdict(1, 7, None, Reason.LIMIT)
KILL_FOR_CANCEL = Verdict(1, 7, None, Reason.CANCEL)


def test_nothing_is_watched_at_first():
    limits = make_limits()

    assert not limits.active
    assert due(limits, 0.0) == []
    assert limits.next_wake(0.0) == NEVER


def test_a_job_that_has_not_begun_is_left_alone_however_long_it_lies_there():
    limits = watching(began=None)

    assert due(limits, 1e6) == []
    assert limits.next_wake(1e6) == 1e6 + SOFT


def test_the_soft_limit_comes_first_and_once():
    limits = watching()

    assert due(limits, 101.9) == []
    assert due(limits, 102.0) == [SOFT_ORDER]
    assert due(limits, 103.0) == []


def test_the_hard_limit_kills_the_child_once():
    limits = watching()
    due(limits, 102.0)

    assert due(limits, 104.9) == []
    assert due(limits, 105.0) == [KILL_FOR_LIMIT]
    assert due(limits, 106.0) == []


def test_a_parent_that_wakes_late_goes_straight_to_the_hard_limit():
    assert due(watching(), 120.0) == [KILL_FOR_LIMIT]
    assert due(watching(asynchronous=True), 104.0) == [SOFT_ORDER]
    assert due(watching(asynchronous=True), 106.0) == [HARD_ORDER]


def test_a_coroutine_is_cancelled_first_and_its_child_killed_if_that_does_not_help():
    limits = watching(asynchronous=True)
    due(limits, 102.0)

    assert due(limits, 105.0) == [HARD_ORDER]
    assert due(limits, 105.0 + CANCEL_GRACE - 0.1) == []
    assert due(limits, 105.0 + CANCEL_GRACE) == [KILL_FOR_LIMIT]


def test_a_child_that_cannot_be_killed_knows_the_soft_limit_only():
    limits = watching(kills=False)

    assert due(limits, 105.0) == [SOFT_ORDER]
    assert due(limits, 1e6) == []
    assert limits.next_wake(1e6) == NEVER


def test_a_coroutine_is_cancelled_though_its_child_cannot_be_killed():
    limits = watching(asynchronous=True, kills=False)

    assert due(limits, 105.0) == [HARD_ORDER]
    assert due(limits, 1e6) == []
    assert limits.next_wake(1e6) == NEVER


def test_a_cancelled_job_is_interrupted_at_once_and_killed_after_the_grace():
    limits = watching(None, None)
    limits.cancel(7, 1, asynchronous=False)

    assert due(limits, 110.0) == [CANCEL_ORDER]
    assert due(limits, 110.0 + GRACE - 0.1) == []
    assert due(limits, 110.0 + GRACE) == [KILL_FOR_CANCEL]
    assert due(limits, 1e6) == []


def test_a_job_that_was_not_watched_is_looked_at_at_once_when_it_is_cancelled():
    limits = make_limits()
    limits.cancel(7, 1, asynchronous=False)
    assert limits.active
    assert limits.next_wake(50.0) == 50.0

    limits.seen({1: [Running(7, 40.0, 0)]})

    assert due(limits, 50.0) == [CANCEL_ORDER]


def test_a_cancelled_job_that_has_not_begun_is_not_waited_for_in_a_spin():
    limits = make_limits()
    limits.cancel(7, 1, asynchronous=False)

    limits.seen({1: []})

    assert due(limits, 50.0) == []
    assert limits.next_wake(50.0) == NEVER


def test_a_cancelled_job_that_is_gone_before_anybody_looked_is_not_waited_for():
    limits = make_limits()
    limits.cancel(7, 1, asynchronous=False)

    limits.forget([7])

    assert not limits.active
    assert limits.next_wake(50.0) == NEVER


def test_a_job_that_is_cancelled_twice_is_interrupted_once():
    limits = watching(None, None)
    limits.cancel(7, 1, asynchronous=False)
    due(limits, 110.0)

    limits.cancel(7, 1, asynchronous=False)
    limits.seen({1: [Running(7, 100.0, 0)]})

    assert due(limits, 111.0) == []


def test_a_cancelled_job_gets_no_soft_limit_on_top():
    limits = watching(SOFT, None)
    limits.cancel(7, 1, asynchronous=False)
    limits.seen({1: [Running(7, 100.0, 0)]})
    due(limits, 101.0)

    assert due(limits, 103.0) == []
    assert limits.next_wake(103.0) == 101.0 + GRACE


@pytest.mark.parametrize("asynchronous", [True, False])
def test_after_the_hard_limit_the_parent_does_not_wake_for_the_soft_one(asynchronous: bool):
    limits = watching(asynchronous=asynchronous)
    due(limits, 106.0)

    assert limits.next_wake(106.0) > 106.0


def test_a_job_that_ended_is_forgotten():
    limits = watching()

    limits.forget([7, 99])

    assert not limits.active
    assert due(limits, 1e6) == []


def test_what_a_slate_says_of_others_is_nothing_to_us():
    limits = watching(began=None)

    limits.seen({1: [Running(6, 1.0, 0)], 2: []})

    assert due(limits, 1e6) == []


moments = st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=30)


@settings(deadline=None)  # the machine may be busy
@given(
    st.one_of(st.none(), st.floats(0.1, 4)),
    st.one_of(st.none(), st.floats(4.1, 9)),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 20)),
    moments,
)
def test_waking_when_said_misses_nothing_and_never_spins(
    soft: float | None,
    hard: float | None,
    asynchronous: bool,
    kills: bool,
    cancelled_at: float | None,
    others: list[float],
):
    """A parent that wakes when it was told gives every order at the same moment as one that never sleeps."""
    limits = watching(soft, hard, asynchronous=asynchronous, kills=kills, began=0.0)
    given_at: dict[Verdict, float] = {}
    now, wakes = 0.0, 0
    others = sorted([*others, *([] if cancelled_at is None else [cancelled_at])])
    while now < 60:
        if now == cancelled_at:
            limits.cancel(7, 1, asynchronous)
            limits.seen({1: [Running(7, 0.0, 0)]})
        for verdict in limits.due(now):
            assert verdict not in given_at
            given_at[verdict] = now
        upcoming = [moment for moment in others if moment > now]
        wake = limits.next_wake(now)
        assert wake >= now
        wakes += 1
        now = min([wake, *upcoming[:1], 60.0])

    assert wakes < len(others) + 10
    if cancelled_at is not None:
        assert given_at[CANCEL_ORDER] == cancelled_at
    elif hard is not None and asynchronous:
        assert given_at[HARD_ORDER] == hard
    elif hard is not None and kills:
        assert given_at[KILL_FOR_LIMIT] == hard
    elif soft is not None:
        assert given_at[SOFT_ORDER] == soft
    assert kills or not {KILL_FOR_LIMIT, KILL_FOR_CANCEL} & given_at.keys()
