"""What queues and tasks are held back by: who does it, which names are known, and how it is said."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from pgtasks import App, Job, JobFilter, JobState
from pgtasks.options import check_queue_name
from pgtasks_cli import output

F = TypeVar("F", bound=Callable[..., Any])

reason_option = click.option("-r", "--reason", metavar="TEXT", help="Why, for people.")


def operator() -> str:
    """Return who runs this, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        user = "somebody"
    return f"{user}@{socket.gethostname()}"[:200]


def known_queues(app: App, names: Sequence[str], *, new: bool = False) -> None:
    """Check names of queues.

    Args:
        app: the app.
        names: what was typed.
        new: a queue need not have been used.

    Raises:
        ConfigurationError: it is no name.
        ClickException: nobody has ever used such a queue.
    """
    from pgtasks.db import operations

    for name in names:
        check_queue_name(name)
    if new:
        return
    found = app.run(operations.list_queue_names())
    for name in names:
        if name not in found and not app.run(operations.list_jobs(JobFilter(queue=name, limit=1))):
            raise click.ClickException(
                f"queue {name!r} has never been used{operations.did_you_mean(name, found)}"
            )


def paused(at: datetime | None, by: str | None, reason: str | None) -> str | None:
    """Return since when, by whom and why something is paused; None: it is not."""
    if at is None:
        return None
    return f"paused {output.when(at)}{f' by {by}' if by else ''}{f': {reason}' if reason else ''}"


def held_back(app: App, job: Job) -> str | None:
    """Return what operators hold a job back by, if it waits for that."""
    from pgtasks.db import operations

    if job.state not in (JobState.READY, JobState.PARKED, JobState.SCHEDULED):
        return None
    gates = app.run(operations.get_gates(job))
    why = []
    queue = paused(gates.queue_paused_at, gates.queue_paused_by, gates.queue_reason)
    task = paused(gates.task_paused_at, gates.task_paused_by, gates.task_reason)
    if queue:
        why.append(f"queue {job.queue} is {queue}")
    if task:
        why.append(f"task {job.task} is {task}")
    if gates.max_running is not None and gates.running >= gates.max_running:
        why.append(f"queue {job.queue} is full: {gates.running} of {gates.max_running} run")
    if gates.tokens is not None and gates.tokens < 1:
        why.append(f"the rate of queue {job.queue} is used up for now")
    if job.state is JobState.PARKED:
        why += _gate(app, job)
    return "; ".join(why) or None


def _gate(app: App, job: Job) -> list[str]:
    """Return which limit or rate a job waits for, or whose turn."""
    from pgtasks.db import operations

    match job.reason:
        case "limit":
            place = app.run(operations.get_place(job))
            taken = (
                "is full"
                if place.jobs is None
                else f"is full: {place.holding} of {place.jobs} places are taken"
            )
            return [f"limit {job.options.get('limit_key')} {taken}"]
        case "rate":
            token_in = app.run(operations.get_place(job)).token_in
            when = (
                "" if token_in is None else f": the next token comes in {max(0.0, token_in):.1f} s"
            )
            return [f"rate {job.options.get('rate_key')} is used up{when}"]
        case "turn":
            key = job.options.get("fair_key")
            return [f"waits for the turn of key {key!r} among the others of queue {job.queue}"]
        case _:
            return []
