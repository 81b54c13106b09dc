"""What a result or an exception means for the job: succeed, retry, or fail. Pure.

The rules, in order: ``Replaced`` goes on as another graph; ``Ignore`` succeeds without a result;
``Cancelled`` cancels; ``Reject`` fails whatever is left; ``Retry`` retries while its own maximum allows, or
uncounted; any
other exception, the time limits' among them, retries if it is of a class in ``retry_for`` and of none in
``no_retry_for``, and a retry is left; else the job fails.

A crash is no failure of the task: it uses up no retry.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import orjson

from pgtasks.errors import (
    Cancelled,
    ConfigurationError,
    Ignore,
    Reject,
    Replaced,
    Retry,
    TimeLimitExceeded,
)
from pgtasks.options import MANUAL_RETRIES, MANUAL_SCHEDULE, TaskOptions
from pgtasks.retry import retry_delay

if TYPE_CHECKING:
    from pgtasks.job import Job

MAX_MESSAGE = 10_000  # characters; a longer one is cut
MAX_TRACEBACK = 50_000  # characters; the innermost frames stay

_CONTROL_FLOW = (Retry, Reject, Ignore, Cancelled, Replaced)

# From "skipped" on, children say them to their parent only (see `pgtasks.worker.wire`); "unsettled" ends
# the child, since only its parent can find out.
Kind = Literal[
    "succeeded",
    "failed",
    "retry",
    "replace",
    "expired",
    "quarantined",
    "cancelled",
    "skipped",
    "committed",
    "late",
    "unsettled",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The decision after an attempt.

    Attributes:
        kind: what becomes of the job.
        result: JSON text, if it succeeded and the result is kept; of a replacement: the graph.
        error: what is stored of the exception.
        delay: for a retry: in how many seconds.
    """

    kind: Kind
    result: str | None = None
    error: Mapping[str, Any] | None = None
    delay: float | None = None

    @property
    def is_uncounted(self) -> bool:
        """Whether the job waits again as if this attempt had not been: ``Retry(count=False)``."""
        return (
            self.kind == "retry" and self.error is not None and self.error.get("counted") is False
        )


def of_exception(error: BaseException, job: Job, options: TaskOptions, now: datetime) -> Outcome:
    """Decide what an exception means for the job that raised it.

    Args:
        error: what the attempt ended with.
        job: the job as it ran; its attempt, crashes and own options count.
        options: the task's options.
        now: the present, aware.
    """
    signal = control_flow(error)
    retries_before = max(0, job.attempt - 1 - job.crashes)
    allowed = job.options.get("retries", options.retries)
    if isinstance(signal, Replaced):
        return Outcome("replace", signal.graph)
    if isinstance(signal, Ignore):
        return Outcome("succeeded")
    if isinstance(signal, Cancelled):
        return Outcome("cancelled")
    if isinstance(signal, Reject):
        return Outcome("failed", error=describe(signal, message=_text(signal.reason), tb=error))
    if isinstance(signal, Retry):
        maximum = (
            signal.retries
            if signal.retries is not None
            else MANUAL_RETRIES
            if allowed is None
            else allowed
        )
        reason = signal.error or signal
        if signal.count and retries_before >= maximum:
            return Outcome("failed", error=describe(reason, tb=signal.error or error))
        schedule = MANUAL_SCHEDULE if options.retry_schedule is None else options.retry_schedule
        if signal.after is not None:
            after = signal.after
            schedule = lambda job, error: after  # noqa: E731
        return _retry(schedule, reason, job, now, counted=signal.count)
    retried = (
        isinstance(error, options.retry_for)
        and not isinstance(error, options.no_retry_for)
        and retries_before < (allowed or 0)
    )
    if not retried:
        described = describe(error)
        if isinstance(error, options.throws):
            described["expected"] = True  # the log says so in one quiet line
        return Outcome("failed", error=described)
    return _retry(options.schedule, error, job, now)


def _retry(
    schedule: Any, error: BaseException, job: Job, now: datetime, *, counted: bool = True
) -> Outcome:
    try:
        delay = retry_delay(schedule, job, error, now)
    except BaseException as broken:  # noqa: BLE001 (a user's schedule is part of the user's task)
        if isinstance(broken, ConfigurationError):
            return Outcome("failed", error=describe(broken))
        return Outcome(
            "failed", error=describe(broken, message=f"retry_schedule raised: {_text(broken)}")
        )
    described = describe(error)
    if not counted:
        described["counted"] = False  # finish_queue takes the attempt back, and keeps nothing of it
    return Outcome("retry", error=described, delay=delay)


def over_limit(limit: float | None, raised: BaseException | None = None) -> TimeLimitExceeded:
    """Return what a job ends with that ran longer than so many seconds; ``raised`` says where it was then."""
    said = "its time limit" if limit is None else f"its time limit of {limit:g} s"
    error = TimeLimitExceeded(f"ran longer than {said}")
    return error if raised is None else error.with_traceback(raised.__traceback__)


def control_flow(
    error: BaseException,
) -> Retry | Reject | Ignore | Cancelled | Replaced | None:
    """Return the Retry, Reject, Ignore, Cancelled or Replaced in an exception; a TaskGroup puts them in a group."""
    if isinstance(error, _CONTROL_FLOW):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(
            (found for one in error.exceptions if (found := control_flow(one)) is not None), None
        )
    return None


def describe(
    error: BaseException, *, message: str | None = None, tb: BaseException | None = None
) -> dict[str, Any]:
    """Return what is stored of an exception: type, message, traceback (no locals), arguments if JSON.

    Args:
        error: the exception.
        message: instead of its own text.
        tb: the exception whose traceback to store, if it is another.
    """
    return {
        "type": type_name(type(error)),
        "message": storable(_text(error) if message is None else message)[:MAX_MESSAGE],
        "traceback": "".join(_traceback(tb or error))[-MAX_TRACEBACK:],
        "args": _arguments(error),
    }


def type_name(cls: type) -> str:
    """Return the name under which an exception's class is stored: built-in ones without module."""
    name = cls.__qualname__
    return storable(name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}")[
        :MAX_MESSAGE
    ]


def storable(text: str) -> str:
    """Return text that PostgreSQL can store: without NUL, lone surrogates replaced."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _text(error: object) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (a user's __str__)
        return f"<{type(error).__name__}: its text could not be made>"


def _traceback(error: BaseException) -> Iterator[str]:
    try:
        for line in traceback.format_exception(error):
            yield storable(line)
    except Exception:  # noqa: BLE001 (a user's __str__, called for the last line)
        for line in traceback.format_tb(error.__traceback__):
            yield storable(line)


def _arguments(error: BaseException) -> list[Any] | None:
    try:
        text = orjson.dumps(list(error.args))
        if len(text) > MAX_MESSAGE or b"\\u0000" in text:
            return None
        args: list[Any] = orjson.loads(text)
    except (TypeError, ValueError):
        return None
    return args if args == list(error.args) else None
