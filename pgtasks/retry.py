"""When a failed job runs again: `expo`, `linear`, `fixed`, a list, or any callable.

A retry schedule is asked after attempt k for the wait before attempt k + 1, the k-th retry. It
may answer in seconds, as a timedelta, or with an aware datetime. How many retries there are is
not its business.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, Protocol

import msgspec

from pgtasks.errors import ConfigurationError

__all__ = [
    "MAX_DELAY",
    "Delay",
    "RetrySchedule",
    "expo",
    "fixed",
    "linear",
    "retry_delay",
    "schedule_from_celery",
    "validate_schedule",
]

MAX_DELAY = 3_155_760_000.0
"""A hundred years, in seconds: a longer wait is a mistake, and its date may not exist."""

CELERY_RETRY_DELAY = 180.0
"""Celery's `default_retry_delay`; the wait of a bare `fixed`, too."""


class HasAttempt(Protocol):
    """All that a built-in schedule wants to know of a job."""

    @property
    def attempt(self) -> int: ...


Delay = float | timedelta | datetime


class expo(msgspec.Struct, frozen=True, kw_only=True):  # noqa: N801 (used like a function, bare or called)
    """Wait exponentially longer: the k-th retry after `min(cap, factor * base**(k - 1))` s.

    Args:
        base: what the wait is multiplied by at each retry.
        cap: the longest wait, in seconds.
        jitter: draw the wait evenly between 0 and that value, so that jobs that failed together
            do not come back together ("full jitter": AWS Architecture Blog, Exponential Backoff
            And Jitter).
        factor: the first wait, in seconds.
    """

    base: float = 2.0
    cap: float = 600.0
    jitter: bool = True
    factor: float = 1.0

    def __post_init__(self) -> None:
        _require_number("expo", "base", self.base, least=1)
        _require_number("expo", "cap", self.cap)
        _require_number("expo", "factor", self.factor)

    def __call__(self, job: HasAttempt, error: BaseException) -> float:
        """Return the wait before the next attempt, in seconds."""
        try:
            wait = min(self.cap, self.factor * float(self.base) ** (_retry_number(job) - 1))
        except OverflowError:
            wait = self.cap if self.factor else 0.0
        return wait * random.random() if self.jitter else float(wait)


class linear(msgspec.Struct, frozen=True, kw_only=True):  # noqa: N801
    """Wait evenly longer: the k-th retry after `min(cap, step * k)` seconds.

    Args:
        step: how much each wait is longer than the one before, in seconds.
        cap: the longest wait, in seconds.
    """

    step: float = 10.0
    cap: float = 600.0

    def __post_init__(self) -> None:
        _require_number("linear", "step", self.step)
        _require_number("linear", "cap", self.cap)

    def __call__(self, job: HasAttempt, error: BaseException) -> float:
        """Return the wait before the next attempt, in seconds."""
        return float(min(self.cap, self.step * _retry_number(job)))


class fixed(msgspec.Struct, frozen=True):  # noqa: N801
    """Wait equally long before each retry.

    Args:
        seconds: the wait.
    """

    seconds: float = CELERY_RETRY_DELAY

    def __post_init__(self) -> None:
        _require_number("fixed", "seconds", self.seconds)

    def __call__(self, job: HasAttempt, error: BaseException) -> float:
        """Return the wait before the next attempt, in seconds."""
        return float(self.seconds)


# Any: a user's callable may annotate its job as Job, which is narrower than HasAttempt.
RetrySchedule = (
    Callable[[Any, Any], Delay]
    | Sequence[float | timedelta]
    | type[expo]
    | type[linear]
    | type[fixed]
)


def retry_delay(
    schedule: RetrySchedule, job: HasAttempt, error: BaseException, now: datetime
) -> float:
    """Return how many seconds from now the job shall run again, never less than 0.

    Args:
        schedule: the task's retry schedule; of a list the k-th element counts, beyond its end the
            last.
        job: the job that failed; its attempt says which retry this is.
        error: what it raised.
        now: the present, aware; needed if the schedule answers with a datetime.

    Raises:
        ConfigurationError: the schedule's answer is no moment that a job could wait for.
    """
    if isinstance(schedule, (list, tuple)):
        answer = schedule[min(_retry_number(job), len(schedule)) - 1]
    elif isinstance(schedule, type):
        answer = schedule()(job, error)  # bare: retry_schedule=expo
    else:
        answer = schedule(job, error)  # type: ignore[operator]
    return _seconds(answer, schedule, now)


def validate_schedule(schedule: object) -> None:
    """Raise ConfigurationError for what can never be a retry schedule."""
    if isinstance(schedule, (list, tuple)):
        _validate_list(schedule)
    elif isinstance(schedule, type):
        if schedule not in (expo, linear, fixed):
            raise ConfigurationError(
                f"retry_schedule is a class, {schedule.__name__}: pass an instance that is "
                "callable with (job, error)"
            )
    elif callable(schedule):
        _validate_callable(schedule)
    else:
        raise ConfigurationError(
            "expected a retry_schedule that is expo, linear, fixed(seconds), a list of seconds "
            f"or a callable (job, error) -> seconds, found {schedule!r}"
        )


def schedule_from_celery(
    *,
    default_retry_delay: float | None = None,
    retry_backoff: bool | float = False,
    retry_backoff_max: float = 600.0,
    retry_jitter: bool = True,
) -> expo | fixed:
    """Return the schedule that Celery's task options describe.

    Args:
        default_retry_delay: the wait without backoff, in seconds; None is Celery's 180.
        retry_backoff: True, or the first wait in seconds, which then doubles at each retry.
        retry_backoff_max: the longest wait with backoff, in seconds.
        retry_jitter: draw the wait with backoff evenly between 0 and its value.
    """
    if retry_backoff:
        # Celery raises a factor below 1 to 1, too.
        factor = max(1.0, float(retry_backoff))
        return expo(factor=factor, cap=retry_backoff_max, jitter=retry_jitter)
    return fixed(CELERY_RETRY_DELAY if default_retry_delay is None else default_retry_delay)


def _retry_number(job: HasAttempt) -> int:
    return max(1, job.attempt)


def _seconds(answer: object, schedule: object, now: datetime) -> float:
    if isinstance(answer, datetime):
        if answer.utcoffset() is None:
            raise ConfigurationError(
                f"retry schedule {schedule!r} gave a naive datetime: give it a time zone, "
                "as in datetime.now(UTC)"
            )
        answer = answer - now
    if isinstance(answer, timedelta):
        answer = answer.total_seconds()
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        raise ConfigurationError(
            f"expected seconds, a timedelta or an aware datetime from retry schedule {schedule!r}, "
            f"found {answer!r}"
        )
    if not answer <= MAX_DELAY or answer == float("-inf"):  # NaN is not <= anything
        raise ConfigurationError(
            f"retry schedule {schedule!r} gave {answer!r} seconds: expected at most 100 years"
        )
    return float(max(answer, 0))  # before float(): a huge negative int would overflow


def _validate_list(schedule: Sequence[object]) -> None:
    if not schedule:
        raise ConfigurationError("retry_schedule is an empty list: use retries=0 for no retries")
    for item in schedule:
        if isinstance(item, timedelta):
            item = item.total_seconds()
        if not _is_number(item) or not 0 <= item <= MAX_DELAY:  # type: ignore[operator]
            raise ConfigurationError(
                f"expected a retry_schedule of seconds between 0 and 100 years, found {item!r}"
            )


def _validate_callable(schedule: Callable[..., object]) -> None:
    if inspect.iscoroutinefunction(schedule):
        raise ConfigurationError(f"retry_schedule {schedule!r} is async: use a plain function")
    try:
        signature = inspect.signature(schedule)
    except ValueError:  # some built-ins have none
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigurationError(
            f"retry_schedule {schedule!r} is not callable with (job, error): {error}"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def _require_number(schedule: str, name: str, value: object, least: float = 0) -> None:
    if not _is_number(value) or not least <= value <= MAX_DELAY:  # type: ignore[operator]
        raise ConfigurationError(
            f"expected {schedule}({name}=…) to be a number from {least} to 100 years in seconds, "
            f"found {value!r}"
        )
