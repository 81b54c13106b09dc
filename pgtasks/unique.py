"""Unique jobs: what is said of them by a task and by a call, and the key that comes of it. Pure.

A key belongs to one task in one queue. It is held until the job is finished, until it is started (claimed by a
worker; it is not taken again for a retry, nor if the job is given back), or for a time from when it was enqueued,
whatever becomes of the job. While it is held, another call does what ``on_conflict`` says; how it is held is in
schema/migrations/0008. Without a database, where jobs run eagerly or are ignored, keys are made and not held: every
call runs, or is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from pgtasks import codec
from pgtasks.errors import ConfigurationError
from pgtasks.job import NewJob, UniqueKey
from pgtasks.keys import make_key
from pgtasks.options import check_unique

if TYPE_CHECKING:
    from pgtasks.options import TaskOptions

UNIQUE_OPTIONS = frozenset(("unique", "unique_for", "unique_until", "on_conflict"))
STORED = ("unique_key", "unique_for", "unique_until")
"""What a job carries of it in its options."""


def make_unique(
    job: NewJob,
    options: TaskOptions | None,
    said: Mapping[str, Any],
    arguments: Callable[[], Mapping[str, Any]],
) -> None:
    """Give a job its unique key, if its task or its call says that it is unique.

    Args:
        job: change in place.
        options: those of its task; None: the task is not known here.
        said: the options of the call, which go before; of ``unique_for`` and ``unique_until`` either one replaces both.
        arguments: returns them by name.

    Raises:
        ConfigurationError: an option's value is not one, or the key cannot be made.
    """
    key = said.get("unique")
    if key is None:
        key = False if options is None else options.unique
    seconds, until = said.get("unique_for"), said.get("unique_until")
    on_conflict = said.get("on_conflict")
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if not UNIQUE_OPTIONS.isdisjoint(said):  # what the task says was checked at its definition
        check_unique(job.task, key, seconds, until, on_conflict)
    if key is False:
        return
    if options is not None:
        if seconds is None and until is None:
            seconds, until = options.unique_for, options.unique_until
        on_conflict = on_conflict or options.on_conflict
    text = f"{job.task}:{make_key(job.task, key, arguments(), option='unique')}"
    release: Literal["start", "finish"] = "start" if until == "started" else "finish"
    job.unique = UniqueKey(
        key=text,
        seconds=None if seconds is None else float(seconds),
        release=None if seconds is not None else release,
        on_conflict=cast("Any", on_conflict or "skip"),
    )
    stored: dict[str, Any] = {"unique_key": text}
    if seconds is not None:
        stored["unique_for"] = float(seconds)
    elif release == "start":
        stored["unique_until"] = until
    if job.options:
        stored = {**codec.decode(job.options, "options"), **stored}
    job.options = codec.encode(stored, "options")


def without_key(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's options without what they say of its unique key."""
    return {name: value for name, value in options.items() if name not in STORED}


def same_key(jobs: list[NewJob]) -> tuple[dict[str, NewJob], list[tuple[NewJob, NewJob]]]:
    """Split unique jobs of one batch: the first of each key, by its id; and the others, each with that first.

    Raises:
        ConfigurationError: a job has no queue, in which its key would be.
    """
    firsts: dict[tuple[str, str], NewJob] = {}
    others: list[tuple[NewJob, NewJob]] = []
    for job in jobs:
        if job.queue is None or job.unique is None:
            raise ConfigurationError(f"job {job.id} has no queue or no unique key")
        first = firsts.setdefault((job.queue, job.unique.key), job)
        if first is not job:
            others.append((job, first))
    return {job.id: job for job in firsts.values()}, others


__all__ = ["STORED", "UNIQUE_OPTIONS", "make_unique", "same_key", "without_key"]
