"""Which jobs and bundles are meant: ids and their unique prefixes, or a filter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar

import click
import msgspec

from pgtasks import App, Bundle, Job, JobFilter, JobState
from pgtasks.errors import NotFoundError
from pgtasks.ids import parse_id
from pgtasks_cli.output import plural
from pgtasks_cli.params import Ago

T = TypeVar("T")

STATES = "In this state; may be said again: " + ", ".join(JobState) + "."
# Rows come whole, with arguments of up to 1 MiB each.
PAGE = 200
# How many of those that fit an ambiguous id are listed.
SHOWN = 5

UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.QUARANTINED)
UNFINISHED = tuple(state for state in JobState if not state.finished)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the options of `job_filters` said."""

    states: tuple[JobState, ...] = ()
    task: str | None = None
    queue: str | None = None
    origin: str | None = None
    error: str | None = None
    bundle: str | None = None
    since: datetime | None = None
    before: datetime | None = None

    def are_empty(self) -> bool:
        """Whether nothing was said, so that every job would fit."""
        return self == Filters()

    def job_filter(self, app: App, **more: Any) -> JobFilter:
        """Return the filter for one page."""
        return JobFilter(
            states=self.states or None,
            task=self.task,
            queue=self.queue,
            origin=self.origin,
            error=self.error,
            bundle_id=find_bundle(app, self.bundle).id if self.bundle else None,
            created_after=self.since,
            created_before=self.before,
            **more,
        )


def job_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose jobs; it receives them as ``filters``."""

    @wraps(command)
    def with_filters(*args: Any, state: tuple[str, ...], **said: Any) -> Any:
        chosen = {name: said.pop(name) for name in Filters.__dataclass_fields__ if name != "states"}
        states = tuple(JobState(one.lower()) for one in state)
        return command(*args, filters=Filters(states=states, **chosen), **said)

    options = [
        click.option(
            "-s",
            "--state",
            type=click.Choice([*JobState], case_sensitive=False),
            metavar="STATE",
            multiple=True,
            help=STATES,
        ),
        click.option("-t", "--task", help="Of this task."),
        click.option("-Q", "--queue", help="In this queue."),
        click.option("--origin", help="Of this origin."),
        click.option(
            "--error", help="With this exception class, or with this text in the error's message."
        ),
        click.option("--bundle", metavar="ID", help="Members of this bundle."),
        click.option(
            "--since", type=Ago(), help="Enqueued since then: 10m, 2h, 7d ago, or an ISO time."
        ),
        click.option("--before", type=Ago(), help="Enqueued before that."),
    ]
    function: Callable[..., Any] = with_filters
    for option in reversed(options):
        function = option(function)
    return function


def choose(
    app: App, ids: Sequence[str], filters: Filters, *, default: Sequence[JobState]
) -> list[str]:
    """Return the ids of the jobs that are meant: those named, or all that fit.

    Args:
        app: whose database.
        ids: ids or unique prefixes.
        filters: where no ids are named.
        default: the states that fit if the filters name none.
    """
    if ids and not filters.are_empty():
        raise click.UsageError("expected ids or filters, found both")
    if ids:
        return list(dict.fromkeys(find_job(app, one).id for one in ids))
    if filters.are_empty():
        raise click.UsageError("expected ids, or a filter such as --state failed, found neither")
    return [job.id for job in pages(app, filters, default)]


def pages(app: App, filters: Filters, default: Sequence[JobState]) -> Iterator[Job]:
    """Yield every job that fits, newest first."""
    from pgtasks.db import operations

    if not filters.states:
        filters = replace(filters, states=tuple(default))
    wanted = filters.job_filter(app, limit=PAGE)
    while True:
        page = app.run(operations.list_jobs(wanted))
        yield from page
        if len(page) < PAGE:
            return
        wanted = msgspec.structs.replace(wanted, before_id=page[-1].id)


def find_job(app: App, text: str) -> Job:
    """Return the job of that id, or the only one whose id begins so.

    Raises:
        NotFoundError: there is none.
        UsageError: the text begins no id, or several jobs fit.
    """
    full = _full_id(text)
    if full is not None:
        return app.job(full)
    found = app.jobs(id_prefix=text, limit=SHOWN + 1)
    return _only(text, "job", found, [f"{job.id} {job.task} {job.state}" for job in found])


def find_bundle(app: App, text: str) -> Bundle:
    """Return the bundle of that id, or the only one whose id begins so; see `find_job`."""
    full = _full_id(text)
    if full is not None:
        return app.bundle(full)
    found = app.bundles(id_prefix=text, limit=SHOWN + 1)
    return _only(text, "bundle", found, [f"{one.id} {one.state}" for one in found])


def confirm(question: str, *, force: bool) -> None:
    """Ask before something is done that cannot be undone; Abort unless the answer is yes."""
    if not force:
        click.confirm(question, abort=True, err=True)


def _full_id(text: str) -> str | None:
    try:
        return parse_id(text)
    except ValueError:
        pass
    digits = text.replace("-", "")
    if not digits or len(digits) > 32 or any(one not in "0123456789abcdefABCDEF" for one in digits):
        raise click.UsageError(f"an id is a UUID or the beginning of one, found {text!r}")
    return None


def _only(text: str, what: str, found: Sequence[T], shown: Sequence[str]) -> T:
    if not found:
        raise NotFoundError(f"no {what} has an id that begins with {text}")
    if len(found) > 1:
        count = f"more than {SHOWN}" if len(found) > SHOWN else str(len(found))
        listed = "; ".join(shown[:SHOWN])
        raise click.ClickException(
            f"{text} is not unique, {count} {plural(2, what).split()[1]} fit: {listed}"
        )
    return found[0]
