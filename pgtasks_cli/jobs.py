"""``pgtasks jobs``: look at jobs, and retry, reschedule, cancel or delete them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

from pgtasks import App, Attempt, Job, JobError, JobState, Progress
from pgtasks.unique import without_key
from pgtasks_cli import crash, graph, holding, output, relations
from pgtasks_cli.cancelling import no_terminate_option, print_cancelled, split
from pgtasks_cli.params import Later
from pgtasks_cli.selection import (
    UNFINISHED,
    UNSUCCESSFUL,
    Filters,
    choose,
    confirm,
    find_job,
    job_filters,
)
from pgtasks_cli.session import Session, pass_session

# How many jobs one transaction changes.
BATCH = 1000
# How much of a result `show` prints; `pgtasks result` prints all of it.
RESULT_SHOWN = 2000

force_option = click.option("-f", "--force", is_flag=True, help="Do not ask.")
ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1)


@click.group()
def jobs() -> None:
    """Look at jobs, and retry, reschedule, cancel or delete them.

    An id may be cut short as long as one job fits.

    \b
    Example:
      pgtasks jobs list --state failed --since 1h
      pgtasks jobs retry --state failed --task shop.send_email
    """


@jobs.command("list")
@job_filters
@click.option(
    "-n",
    "--limit",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="At most so many.",
)
@click.option(
    "--before-id",
    metavar="ID",
    help="The next page: only jobs before this one, the last of the page before.",
)
@pass_session
def list_(session: Session, filters: Filters, limit: int, before_id: str | None) -> None:
    """List jobs, newest first.

    \b
    Example:
      pgtasks jobs list --state failed --state quarantined --since 2h
      pgtasks jobs list --error ConnectionError --limit 10 --json
    """
    from pgtasks.db import operations

    app = session.connect()
    before = find_job(app, before_id).id if before_id else None
    found = app.run(operations.list_jobs(filters.job_filter(app, limit=limit, before_id=before)))

    def text() -> None:
        if not found:
            output.remark(session, "no job fits")
            return
        output.table(
            session,
            ["id", "task", "queue", "state", "attempt", "enqueued", "note"],
            [
                [
                    output.short_id(job.id),
                    job.task,
                    job.queue,
                    str(job.state),
                    job.attempt,
                    job.created_at,
                    relations.note(job),
                ]
                for job in found
            ],
            right=["attempt"],
        )
        if len(found) == limit:
            output.remark(session, f"the next page: --before-id {found[-1].id}")

    output.show(session, [document(job) for job in found], text)


@jobs.command()
@click.argument("id")
@click.option(
    "--args", "with_args", is_flag=True, help="Show its arguments, too; they may be private."
)
@pass_session
def show(session: Session, id: str, with_args: bool) -> None:
    """Show all there is to know of a job.

    Also what it waits for, and why it did not run.

    \b
    Example:
      pgtasks jobs show 0199c2b47d3c7f
      pgtasks jobs show 0199c2b47d3c7f --args
    """
    app = session.connect()
    job = find_job(app, id)
    output.show(
        session,
        document(job, with_args=with_args),
        lambda: print_job(session, app, job, with_args),
    )


@jobs.command("graph")
@click.argument("id")
@click.option(
    "-n",
    "--shown",
    metavar="N",
    type=click.IntRange(1, 100_000),
    default=graph.SHOWN,
    show_default=True,
    help="Draw so many members of a group, and of what else hangs on one job.",
)
@pass_session
def graph_(session: Session, id: str, shown: int) -> None:
    """Draw the graph that a job belongs to.

    Chains, groups, callbacks, and what jobs enqueued, by the id of any of its jobs. What follows stands below
    what it waits for, a group's members on the group.

    \b
    Example:
      pgtasks jobs graph 0199c2b47d3c7f
      pgtasks jobs graph 0199c2b47d3c7f --shown 200 | less
    """
    app = session.connect()
    found = app.graph(find_job(app, id).id)
    bundles = graph.read_bundles(app, found)
    documents = {
        "root": found[0].root_id or found[0].id,
        "jobs": [document(job) for job in found],
        "bundles": [{**msgspec.structs.asdict(one), "state": one.state} for one in bundles],
    }
    output.show(
        session, documents, lambda: graph.draw(session, found, graph.Layout(found, bundles), shown)
    )


@jobs.command()
@ids_argument
@job_filters
@force_option
@pass_session
def retry(session: Session, ids: Sequence[str], filters: Filters, force: bool) -> None:
    """Start finished jobs again, from their first attempt.

    By id, or all that fit a filter: then it asks first, and takes those without success unless --state says
    otherwise. The crashes of a quarantined job are forgotten; what is known of them stays.

    \b
    Example:
      pgtasks jobs retry 0199c2b47d3c7f
      pgtasks jobs retry --state failed --task shop.send_email
    """
    app = session.connect()
    chosen = choose(app, ids, filters, default=UNSUCCESSFUL)
    if not ids and chosen:
        confirm(f"retry {output.plural(len(chosen), 'job')}?", force=force)
    done = [id for batch in in_batches(chosen) for id in app.reset_many(batch)]
    report(
        session,
        app,
        "retried",
        done,
        chosen,
        "only a finished job can be retried, cancel it first",
        ids,
    )


@jobs.command()
@click.argument("id")
@click.option("--start-at", type=Later(), help="The earliest time, or how long from now.")
@click.option("--now", is_flag=True, help="Run it as soon as a worker is free.")
@click.option("--priority", type=int, help="Higher runs first.")
@click.option("-Q", "--queue", metavar="NAME", help="Move it to this queue.")
@pass_session
def reschedule(
    session: Session,
    id: str,
    start_at: float | datetime | None,
    now: bool,
    priority: int | None,
    queue: str | None,
) -> None:
    """Give a waiting job another time, priority or queue.

    What is not said stays. A job that a worker has, or that is finished, is left alone: then the exit code is 1.

    \b
    Example:
      pgtasks jobs reschedule 0199c2b47d3c7f --start-at 2h
      pgtasks jobs reschedule 0199c2b47d3c7f --now --priority 5 -Q urgent
    """
    if start_at is not None and now:
        raise click.UsageError("expected --start-at or --now, found both")
    changes: dict[str, Any] = {}
    if start_at is not None or now:
        changes["start_at"] = start_at
    if priority is not None:
        changes["priority"] = priority
    if queue is not None:
        changes["queue"] = queue
    if not changes:
        raise click.UsageError("expected --start-at, --now, --priority or --queue, found none")
    app = session.connect()
    job = find_job(app, id)
    state = app.reschedule(job.id, **changes)
    after = app.job(job.id)
    later = after.start_at if state is JobState.SCHEDULED else None
    starts = f", starts {output.when(later)}" if later else ""
    output.show(
        session,
        document(after),
        lambda: click.echo(
            f"rescheduled job {job.id}: {state}{starts}, queue {after.queue}, priority {after.priority}"
        ),
    )


@jobs.command()
@ids_argument
@job_filters
@force_option
@no_terminate_option
@pass_session
def cancel(
    session: Session, ids: Sequence[str], filters: Filters, force: bool, no_terminate: bool
) -> None:
    """Cancel jobs that are not finished.

    A waiting job is cancelled at once. A running one is asked to stop, by its worker: Cancelled is raised in
    the task; if it goes on for the worker's grace period, its process is killed.

    \b
    Example:
      pgtasks jobs cancel 0199c2b47d3c7f
      pgtasks jobs cancel --task shop.send_email --before 1d
      pgtasks jobs cancel --no-terminate --state running --task shop.send_email
    """
    app = session.connect()
    chosen = choose(app, ids, filters, default=UNFINISHED)
    if chosen:
        confirm(f"cancel {output.plural(len(chosen), 'job')}?", force=force)
    done: dict[str, str] = {}
    for batch in in_batches(chosen):
        done.update(app.cancel(*batch, terminate=not no_terminate))
    left = [id for id in chosen if id not in done]
    output.show(
        session,
        {**split(done), "left": left},
        lambda: print_cancelled(done, terminate=not no_terminate),
    )
    if ids:
        explain_left(app, left, "what is finished cannot be cancelled")


@jobs.command()
@ids_argument
@job_filters
@force_option
@pass_session
def delete(session: Session, ids: Sequence[str], filters: Filters, force: bool) -> None:
    """Delete jobs and all that is known of them; running ones stay.

    By id, or all that fit a filter: then finished ones, unless --state says otherwise.

    \b
    Example:
      pgtasks jobs delete 0199c2b47d3c7f
      pgtasks jobs delete --state succeeded --before 1d -f
    """
    app = session.connect()
    finished = [state for state in JobState if state.finished]
    chosen = choose(app, ids, filters, default=finished)
    if chosen:
        confirm(f"delete {output.plural(len(chosen), 'job')} for good?", force=force)
    done = [id for batch in in_batches(chosen) for id in app.delete(*batch)]
    report(session, app, "deleted", done, chosen, "a running job stays, cancel it first", ids)


def in_batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield so many ids as one transaction should change."""
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]


def report(
    session: Session,
    app: App,
    verb: str,
    done: Sequence[str],
    chosen: Sequence[str],
    why_not: str,
    ids: Sequence[str],
) -> None:
    """Say what was done, and, of jobs named by id, what was not; that is exit code 1."""
    known = set(done)
    left = [id for id in chosen if id not in known]
    output.show(
        session,
        {verb: done, "left": left},
        lambda: click.echo(f"{verb} {output.plural(len(done), 'job')}"),
    )
    if ids:
        explain_left(app, left, why_not, retrying=verb == "retried")
    elif left and verb == "retried":
        output.remark(
            session,
            f"left {output.plural(len(left), 'job')} as they are: of those that did not run since something before "
            "them failed, pgtasks jobs show says by what to start them again",
        )


def explain_left(app: App, left: Sequence[str], why_not: str, *, retrying: bool = False) -> None:
    """Raise ClickException if jobs that were named by id were left as they are."""
    if left:
        jobs = {job.id: job for one in left[:5] for job in app.jobs(id_prefix=one)}
        unreached = [job for job in jobs.values() if job.state.finished]
        if unreached and retrying:
            job = unreached[0]
            unique = relations.unique(app, job)
            if unique is not None and "is held by" in unique:
                raise click.ClickException(
                    f"job {job.id} is {unique}: it can be retried when that one is finished or cancelled"
                )
            why = "it was cancelled before it had what it takes"
            if relations.did_not_run(job):
                assert job.error is not None
                why = f"job {job.error.dependency} failed"
            raise click.ClickException(
                f"job {job.id} did not run, since {why}: start it again from there by {relations.to_retry(job)}"
            )
        said = ", ".join(
            f"job {id} is {jobs[id].state if id in jobs else 'gone'}" for id in left[:5]
        )
        raise click.ClickException(f"{said}: {why_not}")


def document(job: Job, *, with_args: bool = False) -> dict[str, Any]:
    """Return a job as JSON has it; its arguments may be private, so they are asked for."""
    plain = msgspec.structs.asdict(job)
    args, kwargs, result = (plain.pop(f"{name}_json") for name in ("args", "kwargs", "result"))
    if with_args:
        plain["args"] = output.json_value(args, "args")
        plain["kwargs"] = output.json_value(kwargs, "kwargs")
    del plain["progress_json"]
    plain["progress"] = progress_document(job.progress)
    plain["result"] = output.json_value(result, "result")
    return plain


def progress_document(progress: Progress) -> dict[str, Any] | None:
    """Return how far a job is as JSON has it; None: it has said nothing."""
    if not progress:
        return None
    plain = msgspec.structs.asdict(progress)
    del plain["job_id"]
    return {**plain, "text": progress.text()}


def print_job(session: Session, app: App, job: Job, with_args: bool) -> None:
    """Print a job in full."""
    result = job.result_json
    if result is not None and len(result) > RESULT_SHOWN:
        result = f"{result[:RESULT_SHOWN]}… ({len(result):,} characters)"
    output.fields(
        session,
        {
            "id": job.id,
            "task": job.task,
            "state": f"{job.state}{', cancel requested' if job.cancel_requested else ''}",
            "reason": job.reason,
            "held back": holding.held_back(app, job),
            "because": relations.failed_before(app, job),
            "waits for" if job.state is JobState.BLOCKED else "waited for": relations.waited_for(
                app, job
            ),
            "unique": relations.unique(app, job),
            "queue": job.queue,
            "priority": job.priority,
            "attempt": job.attempt,
            "crashes": job.crashes or None,
            "origin": job.origin,
            "enqueued": both(job.created_at),
            "start at": both(job.start_at),
            "expires": both(job.expires_at),
            "started": both(job.started_at),
            "stopped": both(job.stopped_at),
            "took": (job.stopped_at - job.started_at).total_seconds()
            if job.stopped_at and job.started_at
            else None,
            "progress": f"{job.progress.text()} ({output.when(job.progress.at)})"
            if job.progress and job.progress.at
            else None,
            "meta": output.json_text(job.progress.meta) if job.progress.meta is not None else None,
            "worker": job.worker_id,
            "bundle": relations.member_of(app, job),
            "parent": job.parent_id,
            "root": job.root_id if job.root_id != job.id else None,
            "options": " ".join(
                f"{name}={value}" for name, value in without_key(job.options).items()
            )
            or None,
            "args": job.args_json if with_args else None,
            "kwargs": job.kwargs_json if with_args else None,
            "result": result,
        },
    )
    if job.attempts:
        output.heading(session, "earlier attempts")
        for attempt in job.attempts:
            print_attempt(attempt)
    if job.error:
        output.heading(session, "error")
        print_error(job.error)
    if relations.did_not_run(job):
        output.remark(session, f"start it again from what failed: {relations.to_retry(job)}")
    elif job.state is JobState.BLOCKED:
        output.remark(session, f"what is around it: pgtasks jobs graph {job.id}")


def print_attempt(attempt: Attempt) -> None:
    """Print one attempt that ended without finishing the job."""
    if attempt.replaced is not None:
        click.echo(f"  {attempt.replaced} put this in its place")
        return
    worker = f" on worker {attempt.worker_id}" if attempt.worker_id is not None else ""
    click.echo(f"  {attempt.attempt}  {both(moment(attempt.started_at)) or 'not begun'}{worker}")
    if attempt.error:
        output.block(f"{attempt.error.type}: {attempt.error.message}".removesuffix(": "), indent=5)
        if crash.is_crash(attempt.error):
            crash.print_facts(attempt.error, indent=7)


def print_error(error: JobError) -> None:
    """Print an error, with its traceback."""
    text = f"{error.type}: {error.message}".removesuffix(": ")
    output.block(
        error.traceback if text in error.traceback else f"{text}\n{error.traceback}", indent=2
    )
    if crash.is_crash(error):
        crash.print_facts(error, indent=4)


def moment(text: str | None) -> datetime | None:
    """Read a stored time; anything odd is none."""
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def both(value: datetime | None) -> str | None:
    """Return a time, and on a terminal how long ago it was, too."""
    if value is None:
        return None
    exact = value.astimezone().isoformat(sep=" ", timespec="milliseconds")
    return f"{exact} ({output.when(value)})" if output.is_terminal() else output.when(value)
