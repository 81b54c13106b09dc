"""``pgtasks inspect``: what workers do and know, in the form that Celery prints it.

Nobody is asked: a worker describes itself at each beat, and its claims are rows. So this answers
although all workers are busy or gone; what it says is as old as the last beat, 5 s as a rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pgtasks import App, JobState
from pgtasks.options import BUILTIN
from pgtasks_cli import output
from pgtasks_cli.liveness import NobodyError, claim_age, is_online, judge
from pgtasks_cli.params import Names
from pgtasks_cli.session import Session, pass_session

if TYPE_CHECKING:
    from pgtasks.job import ClaimedJob, WorkerInfo

LISTED = 1000

Replies = Mapping[str, Any]


def inspect_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand Celery's options."""
    command = click.option("-t", "--timeout", expose_value=False, hidden=True)(command)
    command = click.option(
        "-j",
        "as_json",
        is_flag=True,
        expose_value=False,
        callback=keep_json,
        help="The same as --json.",
    )(command)
    return click.option(
        "-d", "--destination", type=Names(), default=(), help="Only these workers, by name."
    )(command)


def keep_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Note that JSON was asked for."""
    if value:
        ctx.ensure_object(Session).json = True


@click.group(invoke_without_command=True)
@inspect_options
@click.pass_context
@pass_session
def inspect(session: Session, ctx: click.Context, destination: tuple[str, ...]) -> None:
    """Show what workers do and know.

    Reads tables, so it answers when workers are busy or gone. Without a subcommand: a summary.

    \b
    Example:
      pgtasks inspect
      pgtasks inspect active -d worker@host
      pgtasks inspect ping && echo at least one worker is up
    """
    ctx.meta["destination"] = destination
    if ctx.invoked_subcommand is None:
        summary(session, destination)


def summary(session: Session, destination: Sequence[str]) -> None:
    """Print one line a worker."""
    app = session.connect()
    found = workers(app, destination)

    def text() -> None:
        if not found:
            say_nobody(session)
            return
        output.table(
            session,
            [
                "worker",
                "state",
                "pool",
                "running",
                "held",
                "finished",
                "queues",
                "tasks",
                "started",
                "beat",
            ],
            [
                [
                    one.name,
                    state(one),
                    f"{one.concurrency} ({one.pool})",
                    len(one.running),
                    one.stats.get("held"),
                    sum(one.stats.get("finished", {}).values()),
                    ",".join(one.queues),
                    len(own_tasks(one)),
                    one.started_at,
                    output.rough(one.beat_age) + " ago",
                ]
                for one in found
            ],
            right=["running", "held", "finished", "tasks"],
        )

    output.show(
        session, [{**msgspec.structs.asdict(one), "online": is_online(one)} for one in found], text
    )


def own_tasks(worker: WorkerInfo) -> list[str]:
    """Return the names of the tasks that a worker knows, the built-in ones left out."""
    return [name for name in worker.tasks if not name.startswith(BUILTIN)]


def state(worker: WorkerInfo) -> str:
    """Return a worker's state in one word."""
    return worker.state if is_online(worker) else "silent"


@inspect.command()
@inspect_options
@click.option("--args", "with_args", is_flag=True, help="Show arguments, too; they may be private.")
@pass_session
def active(session: Session, destination: tuple[str, ...], with_args: bool) -> None:
    """List the jobs that run, as of each worker's last beat.

    \b
    Example:
      pgtasks inspect active
    """
    claimed_by_worker(session, destination, running=True, with_args=with_args)


@inspect.command()
@inspect_options
@click.option("--args", "with_args", is_flag=True, help="Show arguments, too; they may be private.")
@pass_session
def reserved(session: Session, destination: tuple[str, ...], with_args: bool) -> None:
    """List the jobs that workers hold and have not begun.

    \b
    Example:
      pgtasks inspect reserved
    """
    claimed_by_worker(session, destination, running=False, with_args=with_args)


@inspect.command()
@inspect_options
@pass_session
def scheduled(session: Session, destination: tuple[str, ...]) -> None:
    """List the jobs whose time lies ahead.

    They wait in the database, not with a worker.

    \b
    Example:
      pgtasks inspect scheduled
    """
    app = session.connect()
    found = workers(app, destination)
    jobs = sorted(
        app.jobs(JobState.SCHEDULED, limit=LISTED), key=lambda job: job.start_at or job.created_at
    )
    listed = [
        {
            "eta": job.start_at,
            "priority": job.priority,
            "request": {"id": job.id, "name": job.task, "queue": job.queue},
            **({"unique": job.options["unique_key"]} if "unique_key" in job.options else {}),
        }
        for job in jobs
    ]
    answer(session, {"database": listed}, found)


@inspect.command()
@inspect_options
@pass_session
def registered(session: Session, destination: tuple[str, ...]) -> None:
    """List the tasks that each worker knows.

    \b
    Example:
      pgtasks inspect registered
    """
    found = workers(session.connect(), destination)
    answer(session, {one.name: own_tasks(one) for one in found}, found)


@inspect.command("active_queues")
@inspect_options
@pass_session
def active_queues(session: Session, destination: tuple[str, ...]) -> None:
    """List the queues that each worker serves.

    \b
    Example:
      pgtasks inspect active_queues
    """
    found = workers(session.connect(), destination)
    replies = {one.name: [{"name": queue} for queue in one.queues] for one in found}
    answer(session, replies, found)


@inspect.command()
@inspect_options
@pass_session
def stats(session: Session, destination: tuple[str, ...]) -> None:
    """Show each worker's figures, as of its last beat.

    \b
    Example:
      pgtasks inspect stats --json
    """
    app = session.connect()
    found = workers(app, destination)
    now = datetime.now(UTC)
    replies = {
        one.name: {
            "id": one.id,
            "host": one.host,
            "pid": one.pid,
            "version": one.version,
            "state": state(one),
            "uptime": round((now - one.started_at).total_seconds()),
            "beat_age": round(one.beat_age, 1),
            "claim_age": rounded(claim_age(one)),
            "pool": {
                "implementation": one.pool,
                "max-concurrency": one.concurrency,
                "processes": one.stats.get("children", []),
            },
            "queues": list(one.queues),
            "running": len(one.running),
            "held": one.stats.get("held", 0),
            "late": one.stats.get("late", 0),
            "total": one.stats.get("finished", {}),
            "outcomes": one.stats.get("outcomes", {}),
        }
        for one in found
    }
    answer(session, replies, found)


@inspect.command()
@inspect_options
@pass_session
def ping(session: Session, destination: tuple[str, ...]) -> None:
    """Say which workers were heard of; exit with 69 if none was.

    Heard of is a worker that gave a beat within its lease; how long ago that was, and how long since it
    claimed or looked for jobs, stands beside. For probes: pgtasks health.

    \b
    Example:
      pgtasks inspect ping
      pgtasks inspect ping -d worker@host
    """
    found = [one for one in workers(session.connect(), destination) if is_online(one)]
    if not found:
        if session.json:
            output.document({})
        name = " of that name" if destination else ""
        raise NobodyError(
            f"no nodes replied within time constraint: no worker{name} was heard of within its lease"
        )
    verdicts = {one.name: judge(one) for one in found}
    if session.json:
        replies: Replies = {
            name: {"ok": "pong", "beat_age": one.beat_age, "claim_age": one.claim_age}
            for name, one in verdicts.items()
        }
    else:
        replies = {name: {"ok": f"pong, {one.text()}"} for name, one in verdicts.items()}
    answer(session, replies, found)


def rounded(seconds: float | None) -> float | None:
    """Return seconds for people."""
    return None if seconds is None else round(seconds, 1)


def workers(app: App, destination: Sequence[str]) -> list[WorkerInfo]:
    """Return the registered workers, or those of these names, which may be given to the group, too."""
    wanted = destination or click.get_current_context().meta.get("destination", ())
    return [one for one in app.workers() if not wanted or one.name in wanted]


def claimed_by_worker(
    session: Session, destination: Sequence[str], *, running: bool, with_args: bool
) -> None:
    """Print the jobs that workers hold."""
    from pgtasks.db import operations

    app = session.connect()
    found = workers(app, destination)
    claimed = [
        one for one in app.run(operations.list_claimed_jobs(LISTED)) if one.running == running
    ]
    replies = {
        one.name: [claim(job, one, with_args) for job in claimed if job.worker_id == one.id]
        for one in found
    }
    answer(session, replies, found)


def claim(job: ClaimedJob, worker: WorkerInfo, with_args: bool) -> dict[str, Any]:
    """Return one held job in Celery's words."""
    request = {
        "id": job.id,
        "name": job.task,
        "queue": job.queue,
        "priority": job.priority,
        "attempt": job.attempt,
        "hostname": worker.name,
        "time_start": job.claimed_at,
    }
    if job.progress:
        request["progress"] = job.progress.text()
    if with_args:
        request["args"] = output.json_value(job.args_json, "args")
        request["kwargs"] = output.json_value(job.kwargs_json, "kwargs")
    return request


def answer(session: Session, replies: Replies, found: Sequence[WorkerInfo]) -> None:
    """Print what each node says, and how many are online; as JSON one object keyed by node."""

    def text() -> None:
        for node, reply in replies.items():
            title = f"{click.style('->', bold=True)}  {click.style(node, fg='cyan', bold=True)}: OK"
            click.echo(title, color=None if session.color else False)
            click.echo("\n".join(f"    {line}" for line in body(reply)))
        if not found:
            say_nobody(session)
            return
        count = sum(map(is_online, found))
        click.echo(f"\n{count} node{'' if count == 1 else 's'} online.")

    output.show(session, replies, text)


def body(reply: object) -> Iterable[str]:
    """Return the lines of one reply: a list as items, a dict as JSON, {"ok": …} as its value."""
    match reply:
        case []:
            return ["- empty -"]
        case list():
            return [f"* {one if isinstance(one, str) else inline(one)}" for one in reply]
        case {"ok": value}:
            return [str(value)]
        case _:
            return json.dumps(msgspec.to_builtins(reply, str_keys=True), indent=4).splitlines()


def inline(value: object) -> str:
    """Return a dict of a list in one line."""
    return json.dumps(msgspec.to_builtins(value, str_keys=True), ensure_ascii=True)


def say_nobody(session: Session) -> None:
    """Say that no worker is registered."""
    context = click.get_current_context()
    named = context.params.get("destination") or context.meta.get("destination")
    output.remark(session, f"no worker{' of that name' if named else ''} is registered")
