"""Schedules say when, within bounds; what can never be one is refused at definition."""

import copy
import math
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.errors import ConfigurationError
from pgtasks.retry import (
    MAX_DELAY,
    RetrySchedule,
    expo,
    fixed,
    linear,
    retry_delay,
    schedule_from_celery,
    validate_schedule,
)

NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)
ERROR = ValueError("no")


@dataclass
class Job:
    attempt: int


def delay(schedule: Any, attempt: int = 1) -> float:
    return retry_delay(schedule, Job(attempt), ERROR, NOW)


def delays(schedule: RetrySchedule, count: int = 5) -> list[float]:
    return [delay(schedule, attempt) for attempt in range(1, count + 1)]


# ---- the built-in ones ----


def test_expo_doubles_up_to_its_cap():
    assert delays(expo(jitter=False, cap=10)) == [1, 2, 4, 8, 10]
    assert delays(expo(base=3, factor=2, jitter=False)) == [2, 6, 18, 54, 162]


def test_linear_grows_evenly_up_to_its_cap():
    assert delays(linear(step=20, cap=70)) == [20, 40, 60, 70, 70]


def test_fixed_stays_the_same():
    assert delays(fixed(7)) == [7] * 5
    assert fixed(7) == fixed(seconds=7)


def test_a_bare_schedule_has_its_defaults():
    assert delay(linear, 3) == 30
    assert delay(fixed) == 180
    assert 0 <= delay(expo, 100) < 600


@given(
    st.floats(1, 1e9),
    st.floats(0, MAX_DELAY),
    st.floats(0, MAX_DELAY),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_expo_stays_between_nothing_and_its_cap(base, cap, factor, jitter, attempt):
    assert 0 <= delay(expo(base=base, cap=cap, factor=factor, jitter=jitter), attempt) <= cap


@given(st.floats(0, MAX_DELAY), st.floats(0, MAX_DELAY), st.integers(0, 10**30))
def test_linear_stays_between_nothing_and_its_cap(step, cap, attempt):
    assert 0 <= delay(linear(step=step, cap=cap), attempt) <= cap


def test_jitter_is_drawn_evenly_between_nothing_and_the_whole_wait(monkeypatch):
    for drawn in (0.0, 0.25, 0.999):
        monkeypatch.setattr("random.random", lambda drawn=drawn: drawn)
        assert delay(expo, 5) == 16 * drawn


def test_a_thousandth_retry_waits_for_the_cap():
    assert delay(expo(jitter=False), 1001) == 600
    assert delay(expo(base=10, jitter=False), 10**400) == 600
    assert delay(expo(factor=0, jitter=False), 5000) == 0


def test_schedules_compare_print_and_travel():
    schedule = expo(cap=60)

    assert schedule == expo(cap=60.0) != expo(cap=61)
    assert hash(schedule) == hash(expo(cap=60.0))
    assert repr(schedule) == "expo(base=2.0, cap=60, jitter=True, factor=1.0)"
    assert eval(repr(schedule)) == schedule
    assert repr(fixed(5)) == "fixed(seconds=5)"
    assert pickle.loads(pickle.dumps(schedule)) == copy.copy(schedule) == schedule
    with pytest.raises(AttributeError):
        schedule.cap = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "make",
    [
        lambda: expo(base=0.5),
        lambda: expo(base=math.nan),
        lambda: expo(cap=-1),
        lambda: expo(cap=math.inf),
        lambda: expo(cap=10**400),
        lambda: expo(factor="1"),  # type: ignore[arg-type]
        lambda: linear(step=-1),
        lambda: linear(cap=None),  # type: ignore[arg-type]
        lambda: fixed(True),
        lambda: fixed(timedelta(1)),  # type: ignore[arg-type]
        lambda: fixed(MAX_DELAY * 1.1),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_name(make):
    with pytest.raises(ConfigurationError, match=r"^expected (expo|linear|fixed)\(\w+=…\) to be"):
        make()


# ---- other schedules ----


def test_the_last_of_a_list_is_repeated():
    assert delays([1, 2.5, timedelta(minutes=1)]) == [1, 2.5, 60, 60, 60]
    assert delays((5,), 2) == [5, 5]


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (3, 3.0),
        (2.5, 2.5),
        (timedelta(minutes=2), 120.0),
        (NOW + timedelta(seconds=9), 9.0),
        ((NOW + timedelta(seconds=9)).astimezone(timezone(timedelta(hours=-7))), 9.0),
        (0, 0.0),
        (-5, 0.0),
        (-(10**400), 0.0),
        (-1e300, 0.0),
        (timedelta(-1), 0.0),
        (NOW - timedelta(1), 0.0),
    ],
)
def test_a_callable_may_answer_in_three_ways_and_never_before_now(answer, seconds):
    assert delay(lambda job, error: answer) == seconds


def test_a_callable_is_given_the_job_and_the_error():
    def schedule(job: Job, error: BaseException) -> float:
        return job.attempt * len(str(error))

    assert delay(schedule, 4) == 8


@given(
    st.floats() | st.integers() | st.timedeltas() | st.datetimes(timezones=st.just(UTC)),
    st.integers(-5, 10**6),
)
def test_any_answer_gives_a_wait_within_bounds_or_a_clear_error(answer, attempt):
    try:
        wait = delay(lambda job, error: answer, attempt)
    except ConfigurationError:
        return

    assert 0 <= wait <= MAX_DELAY


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (datetime(2024, 1, 1), "naive datetime: give it a time zone"),  # noqa: DTZ001
        (None, "expected seconds, a timedelta or an aware datetime .* found None"),
        ("5", "found '5'"),
        (True, "found True"),
        (math.nan, "gave nan seconds: expected at most 100 years"),
        (math.inf, "gave inf seconds"),
        (-math.inf, "gave -inf seconds"),
        (1e300, "expected at most 100 years"),
        (10**400, "expected at most 100 years"),
    ],
)
def test_an_answer_that_is_no_wait_is_a_clear_error(answer, message):
    with pytest.raises(ConfigurationError, match=message):
        delay(lambda job, error: answer)


# ---- at definition ----


class Doubling:
    def __call__(self, job, error):
        return 2**job.attempt


async def soon(job, error):
    return 1


@pytest.mark.parametrize(
    "schedule",
    [
        expo,
        linear,
        fixed,
        expo(cap=5),
        fixed(0),
        [1],
        (0, 2.5, timedelta(1)),
        lambda job, error: 1,
        lambda *args: 1,
        Doubling(),
        max,
    ],
)
def test_what_can_be_a_schedule_is_accepted(schedule):
    validate_schedule(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (5, r"expected a retry_schedule that is expo, .* found 5"),
        (None, "found None"),
        ("expo", "found 'expo'"),
        ({1, 2}, "found {1, 2}"),
        ([], "empty list: use retries=0"),
        ([1, -1], "seconds between 0 and 100 years, found -1"),
        ([math.nan], "found nan"),
        ([math.inf], "found inf"),
        ([True], "found True"),
        ([1, "2"], "found '2'"),
        ([10**400], "between 0 and 100 years"),
        (lambda: 1, r"not callable with \(job, error\): too many"),
        (lambda job: 1, "too many positional"),
        (lambda job, error, now: 1, "missing a required"),
        (soon, "is async: use a plain function"),
        (Doubling, "is a class, Doubling: pass an instance"),
        (timedelta, "is a class, timedelta"),
    ],
)
def test_what_can_never_be_a_schedule_is_refused(schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        validate_schedule(schedule)


# ---- Celery's spelling ----


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({}, fixed(180)),
        ({"default_retry_delay": 30}, fixed(30)),
        ({"default_retry_delay": 30, "retry_backoff": 0}, fixed(30)),
        ({"retry_backoff": True}, expo(factor=1.0, cap=600.0, jitter=True)),
        ({"retry_backoff": 5, "retry_jitter": False}, expo(factor=5.0, jitter=False)),
        ({"retry_backoff": 0.1}, expo(factor=1.0)),
        ({"retry_backoff": True, "retry_backoff_max": 60}, expo(cap=60)),
    ],
)
def test_celerys_options_become_a_schedule(options, schedule):
    assert schedule_from_celery(**options) == schedule


def test_celerys_backoff_starts_with_its_factor():
    assert delays(schedule_from_celery(retry_backoff=3, retry_jitter=False)) == [3, 6, 12, 24, 48]
