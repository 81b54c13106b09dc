"""What an exception means for the job, and that whatever it is can be stored."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtasks.errors import (
    Cancelled,
    EncodingError,
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
)
from pgtasks.job import Job, JobState
from pgtasks.options import MANUAL_RETRIES, TaskOptions
from pgtasks.retry import MAX_DELAY, fixed
from pgtasks.worker.outcome import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    Outcome,
    control_flow,
    describe,
    of_exception,
    over_limit,
    type_name,
)

NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)
NAIVE = NOW.replace(tzinfo=None)


def job(attempt: int = 1, crashes: int = 0, **said: Any) -> Job:
    return Job(
        id="01890000-0000-7000-8000-000000000000",
        task="task",
        queue="default",
        state=JobState.RUNNING,
        created_at=NOW,
        attempt=attempt,
        crashes=crashes,
        options=said,
    )


def outcome(error: BaseException, of: Job | None = None, **options: Any) -> Outcome:
    return of_exception(error, of or job(), TaskOptions(name="task", **options), NOW)


def caught(error: BaseException) -> BaseException:
    """Return the exception with a traceback, as it comes out of a task."""
    try:
        raise error
    except BaseException as raised:
        return raised


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


# An exception


def test_an_exception_fails_a_task_without_retries():
    result = outcome(caught(ValueError("no", 7)))

    assert (result.kind, result.delay, result.result) == ("failed", None, None)
    assert result.error is not None
    assert result.error["type"] == "ValueError"
    assert result.error["message"] == "('no', 7)"
    assert result.error["args"] == ["no", 7]
    assert "raise error" in result.error["traceback"]


def test_an_exception_is_retried_while_a_retry_is_left():
    kinds = [outcome(ValueError(), job(attempt), retries=2).kind for attempt in (1, 2, 3, 4)]

    assert kinds == ["retry", "retry", "failed", "failed"]


def test_a_retry_waits_as_the_schedule_says():
    delays = [
        outcome(ValueError(), job(attempt), retries=5, retry_schedule=[1, 10, 100]).delay
        for attempt in (1, 2, 3, 4)
    ]

    assert delays == [1, 10, 100, 100]


def test_crashes_use_up_no_retries():
    kinds = [
        outcome(ValueError(), job(attempt, crashes=2), retries=1).kind for attempt in (1, 3, 4)
    ]

    assert kinds == ["retry", "retry", "failed"]


def test_the_retries_of_the_call_count_more_than_the_tasks():
    assert outcome(ValueError(), job(1, retries=1)).kind == "retry"
    assert outcome(ValueError(), job(1, retries=0), retries=5).kind == "failed"
    assert outcome(ValueError(), job(3, retries=1), retries=5).kind == "failed"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(), "retry"),
        (ConnectionError(), "retry"),
        (FileNotFoundError(), "failed"),
        (ValueError(), "failed"),
    ],
)
def test_only_what_is_in_retry_for_and_not_in_no_retry_for_is_retried(error: Exception, kind: str):
    result = outcome(error, retries=3, retry_for=(OSError,), no_retry_for=(FileNotFoundError,))

    assert result.kind == kind


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_exit_raised_by_a_task_fails_it_and_is_not_retried(error: BaseException):
    result = outcome(caught(error), retries=3)

    assert result.kind == "failed"
    assert result.error is not None
    assert result.error["type"] == type(error).__name__


def test_an_exit_is_retried_if_the_task_says_so():
    assert outcome(SystemExit(), retries=3, retry_for=(SystemExit,)).kind == "retry"


# Ignore, Reject


def test_ignore_succeeds_without_a_result():
    assert outcome(Ignore(), retries=3) == Outcome("succeeded")


def test_reject_fails_whatever_retries_are_left():
    result = outcome(caught(Reject("bad order")), retries=3, retry_for=(BaseException,))

    assert result.kind == "failed"
    assert result.error is not None
    assert result.error["type"] == "pgtasks.errors.Reject"
    assert result.error["message"] == "bad order"


def test_reject_takes_an_exception_as_its_reason_as_in_celery():
    result = outcome(Reject(ValueError("bad order")))

    assert result.kind == "failed"
    assert result.error is not None
    assert "bad order" in result.error["message"]


# Retry


def test_retry_waits_as_the_task_says():
    result = outcome(Retry(), retries=3, retry_schedule=fixed(7))

    assert (result.kind, result.delay) == ("retry", 7)


@pytest.mark.parametrize(
    ("after", "delay"),
    [
        (5, 5.0),
        (0, 0.0),
        (-5, 0.0),
        (timedelta(minutes=1), 60.0),
        (NOW + timedelta(hours=1), 3600.0),
        (NOW - timedelta(hours=1), 0.0),
    ],
)
def test_retry_waits_as_it_says_itself(after: Any, delay: float):
    assert outcome(Retry(after), retries=3, retry_schedule=fixed(7)).delay == delay


def test_retry_in_a_task_without_a_number_works_three_times_every_three_minutes():
    results = [outcome(Retry(), job(attempt)) for attempt in (1, 2, 3, 4)]

    assert [one.kind for one in results] == ["retry"] * MANUAL_RETRIES + ["failed"]
    assert results[0].delay == 180.0


def test_the_maximum_of_a_retry_counts_more_than_the_tasks():
    assert outcome(Retry(retries=5), job(4), retries=1).kind == "retry"
    assert outcome(Retry(retries=0), job(1), retries=5).kind == "failed"


def test_a_retry_that_does_not_count_has_no_maximum():
    result = outcome(Retry(after=5, count=False), job(4), retries=0)

    assert (result.kind, result.delay, result.is_uncounted) == ("retry", 5, True)
    assert not outcome(Retry(after=5), job(1), retries=3).is_uncounted
    assert not outcome(ValueError(), job(4), retries=0).is_uncounted
    assert outcome(Retry(retries=1), job(1, retries=0)).kind == "retry"


def test_a_retry_stores_its_reason_with_the_reasons_traceback():
    reason = caught(ValueError("the reason"))
    assert isinstance(reason, Exception)

    results = [outcome(caught(Retry(error=reason)), job(attempt), retries=1) for attempt in (1, 2)]

    assert [one.kind for one in results] == ["retry", "failed"]
    for one in results:
        assert one.error is not None
        assert one.error["type"] == "ValueError"
        assert "the reason" in one.error["traceback"]


@pytest.mark.parametrize("after", [NAIVE, "soon", float("nan"), 1e30, True])
def test_a_retry_at_no_moment_fails_and_says_why(after: Any):
    result = outcome(Retry(after), retries=3)

    assert result.kind == "failed"
    assert result.error is not None
    assert result.error["type"] == "pgtasks.errors.ConfigurationError"


def test_no_retry_left_is_an_error_of_its_own():
    result = outcome(caught(MaxRetriesExceededError("task was retried 3 times")))

    assert result.kind == "failed"


# Schedules of users


def test_a_schedule_that_raises_fails_the_job_and_says_so():
    def broken(job: Job, error: Exception) -> float:
        raise ZeroDivisionError("in my schedule")

    result = outcome(ValueError(), retries=3, retry_schedule=broken)

    assert result.kind == "failed"
    assert result.error is not None
    assert result.error["type"] == "ZeroDivisionError"
    assert "retry_schedule raised: in my schedule" in result.error["message"]


def test_a_schedule_that_raises_something_unprintable_fails_the_job():
    def broken(job: Job, error: Exception) -> float:
        raise UnprintableError

    result = outcome(ValueError(), retries=3, retry_schedule=broken)

    assert result.kind == "failed"


@pytest.mark.parametrize("answer", [None, "10", float("inf"), NAIVE])
def test_a_schedule_that_answers_nonsense_fails_the_job(answer: Any):
    result = outcome(ValueError(), retries=3, retry_schedule=lambda job, error: answer)

    assert result.kind == "failed"


def test_a_schedule_sees_the_job_and_the_reason():
    seen: list[Any] = []
    reason = ValueError()

    def schedule(job: Job, error: Exception) -> float:
        seen.append((job.attempt, error))
        return 1.0

    outcome(Retry(error=reason), job(2), retries=3, retry_schedule=schedule)

    assert seen == [(2, reason)]


# Groups


@pytest.mark.parametrize("signal", [Retry(5), Reject("no"), Ignore()])
def test_control_flow_is_found_in_groups_at_any_depth(signal: BaseException):
    group = BaseExceptionGroup(
        "tasks", [ValueError(), BaseExceptionGroup("inner", [OSError(), signal])]
    )

    assert control_flow(group) is signal
    assert outcome(group, retries=3).kind == outcome(signal, retries=3).kind


def test_a_group_of_errors_is_an_error():
    group = ExceptionGroup("tasks", [ValueError("one"), OSError("two")])

    assert outcome(group, retries=1).kind == "retry"
    result = outcome(caught(group))
    assert result.error is not None
    assert result.error["type"] == "ExceptionGroup"
    assert "one" in result.error["traceback"]


# What is stored


def test_a_built_in_exception_is_named_without_module_others_with_it():
    assert type_name(ValueError) == "ValueError"
    assert type_name(EncodingError) == "pgtasks.errors.EncodingError"


def test_an_exception_whose_text_cannot_be_made_is_stored():
    result = outcome(caught(UnprintableError()))

    assert result.error is not None
    assert "UnprintableError" in result.error["message"]
    assert "raise error" in result.error["traceback"]


def test_huge_messages_and_tracebacks_are_cut():
    result = outcome(caught(ValueError("x" * 1_000_000)))

    assert result.error is not None
    assert len(result.error["message"]) == MAX_MESSAGE
    assert len(result.error["traceback"]) <= MAX_TRACEBACK
    assert result.error["args"] is None


def test_deep_recursion_is_stored_with_its_end():
    def dive(depth: int) -> None:
        dive(depth + 1)

    try:
        dive(0)
    except RecursionError as error:
        result = outcome(error)

    assert result.error is not None
    assert result.error["type"] == "RecursionError"
    assert "dive" in result.error["traceback"]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\0", "\udfff"])
def test_what_postgresql_cannot_store_is_replaced(text: str):
    result = outcome(caught(ValueError(text)))

    assert_storable(result)
    assert result.error is not None
    assert result.error["args"] is None


@pytest.mark.parametrize(
    "arg",
    [object(), {1, 2}, float("nan"), 2**70, {1: 2}, b"bytes", (1, 2), NAIVE, "\0"],
)
def test_arguments_that_json_does_not_carry_exactly_are_not_stored(arg: Any):
    assert describe(ValueError(arg))["args"] is None


@pytest.mark.parametrize("args", [(), ("a",), (1, None, [1.5, {"k": True}])])
def test_arguments_that_json_carries_are_stored(args: tuple[Any, ...]):
    assert describe(ValueError(*args))["args"] == list(args)


def test_causes_in_a_circle_are_stored():
    first, second = ValueError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first

    result = outcome(caught(first))

    assert_storable(result)
    assert result.error is not None
    assert "second" in result.error["traceback"]


def test_a_traceback_shows_no_local_values():
    secret = "hunter" + "2"
    result = outcome(caught(ValueError("no")))

    assert result.error is not None
    assert secret not in json.dumps(result.error)


# Whatever it is

texts = st.text(max_size=50) | st.text(st.sampled_from('\0\ud800\udfff\\"aé'), max_size=5)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.binary()
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(texts | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def odd_class(module: str, qualname: str) -> type[Exception]:
    return type("Odd", (Exception,), {"__module__": module, "__qualname__": qualname})


classes = st.sampled_from(
    [ValueError, KeyError, OSError, UnicodeError, SystemExit, KeyboardInterrupt, UnprintableError]
) | st.builds(odd_class, texts, texts)
plain = st.builds(lambda cls, args: cls(*args), classes, st.lists(anything, max_size=4))
signals = (
    st.builds(Retry, st.none() | st.integers() | st.floats(), st.builds(ValueError, texts))
    | st.builds(Reject, texts)
    | st.builds(Ignore)
)


def with_cause(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error


errors = st.recursive(
    plain | signals,
    lambda inner: (
        st.builds(BaseExceptionGroup, texts, st.lists(inner, min_size=1, max_size=3))
        | st.builds(with_cause, plain, inner)
    ),
    max_leaves=6,
)
schedules = st.sampled_from([[0], [5, timedelta(seconds=1)], fixed(3)]) | st.builds(
    lambda answer: lambda job, error: answer, anything
)


def assert_storable(result: Outcome) -> None:
    assert result.kind in ("succeeded", "failed", "retry")
    assert (result.delay is not None) == (result.kind == "retry")
    assert result.delay is None or 0 <= result.delay <= MAX_DELAY
    text = orjson.dumps(result.error).decode()
    if result.error is None:
        return
    assert json.loads(text) == result.error
    for value in (result.error["type"], result.error["message"], result.error["traceback"]):
        assert isinstance(value, str)
        assert "\0" not in value
        value.encode()
    assert "\\u0000" not in json.dumps(result.error["args"])
    assert len(text) < 12 * (MAX_MESSAGE + MAX_TRACEBACK) + MAX_MESSAGE + 10_000


@given(errors, schedules, st.integers(0, 5), st.integers(0, 3), st.none() | st.integers(0, 3))
def test_every_outcome_can_be_stored(
    error: BaseException, schedule: Any, attempt: int, crashes: int, retries: int | None
):
    result = outcome(caught(error), job(attempt, crashes), retries=retries, retry_schedule=schedule)

    assert_storable(result)


# Interrupts


@pytest.mark.parametrize(
    "error", [Cancelled(), BaseExceptionGroup("of a TaskGroup", [ValueError(), Cancelled("x")])]
)
def test_a_cancelled_job_ends_so_without_an_error_whatever_is_left(error: BaseException):
    result = outcome(caught(error), retries=5, retry_for=(BaseException,))

    assert result == Outcome("cancelled")


def test_a_soft_limit_that_is_let_go_is_retried_as_any_exception():
    error = caught(SoftTimeLimitExceeded("over"))

    assert outcome(error, retries=1, retry_schedule=[4]).delay == 4
    assert outcome(error).kind == "failed"
    assert outcome(error, retries=1, retry_for=(ValueError,)).kind == "failed"


def test_a_hard_limit_is_decided_by_the_policy_too():
    error = over_limit(2.5)

    assert isinstance(error, TimeLimitExceeded)
    assert str(error) == "ran longer than its time limit of 2.5 s"
    assert outcome(error, retries=1).kind == "retry"
    assert outcome(error, retries=1, no_retry_for=(TimeLimitExceeded,)).kind == "failed"


def test_a_hard_limit_shows_where_the_job_was():
    error = over_limit(None, caught(ValueError()))

    result = outcome(error)

    assert result.error is not None
    assert "raise error" in result.error["traceback"]
    assert result.error["message"] == "ran longer than its time limit"
