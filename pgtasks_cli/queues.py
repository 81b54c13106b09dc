"""``pgtasks queues``: how deep each queue is, and what is held back: pause, resume, limit, move, purge."""

from __future__ import annotations

from typing import Any

import click

from pgtasks import QueueInfo, Rate
from pgtasks.queue_management import check_move
from pgtasks_cli import output
from pgtasks_cli.holding import known_queues, operator, paused, reason_option
from pgtasks_cli.params import Duration
from pgtasks_cli.purge import purge_queues
from pgtasks_cli.selection import confirm
from pgtasks_cli.session import Session, pass_session

names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)
new_option = click.option("--new", is_flag=True, help="Also a queue that nobody has used yet.")


@click.group(invoke_without_command=True)
@click.pass_context
def queues(ctx: click.Context) -> None:
    """Look at queues, and pause, limit, move or purge them.

    \b
    Example:
      pgtasks queues
      pgtasks queues pause mail --reason "provider is down"
      pgtasks queues limit mail --max-running 5 --rate 100/m
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@queues.command("list")
@pass_session
def list_(session: Session) -> None:
    """List the queues that hold jobs, have a worker, or are configured.

    Limits are those of the code, unless they say by whom they were set.

    \b
    Example:
      pgtasks queues list
    """
    app = session.connect()
    found = app.queues()

    def text() -> None:
        if not found:
            output.remark(session, "no queue holds a job or has a worker")
            return
        numbers = ["ready", "running", "scheduled", "blocked", "parked", "oldest", "workers"]
        headers = ["queue", *numbers]
        more = any(limits(one) or one.paused_at for one in found)
        if more:
            headers += ["limits", "note"]
        output.table(
            session,
            headers,
            [
                [
                    one.name,
                    one.ready,
                    one.running,
                    one.scheduled,
                    one.blocked,
                    one.parked,
                    one.oldest_wait,
                    one.workers,
                    *([limits(one), note(one)] if more else []),
                ]
                for one in found
            ],
            right=numbers,
        )

    output.show(session, found, text)


@queues.command()
@names_argument
@reason_option
@new_option
@pass_session
def pause(session: Session, names: tuple[str, ...], reason: str | None, new: bool) -> None:
    """Let no worker begin a job of these queues.

    Running jobs end; what workers have claimed and not begun they give back within a second. New jobs may be
    enqueued, and wait.

    \b
    Example:
      pgtasks queues pause mail --reason "provider is down"
    """
    app = session.connect()
    known_queues(app, names, new=new)
    for name in names:
        app.pause_queue(name, reason=reason, by=operator())
    _show(session, names, f"paused {', '.join(names)}")


@queues.command()
@names_argument
@pass_session
def resume(session: Session, names: tuple[str, ...]) -> None:
    """Let these queues go on.

    \b
    Example:
      pgtasks queues resume mail
    """
    app = session.connect()
    known_queues(app, names)
    for name in names:
        if not app.resume_queue(name):
            output.remark(session, f"queue {name} was not paused")
    _show(session, names, f"resumed {', '.join(names)}")


@queues.command()
@click.argument("name")
@click.option(
    "--max-running",
    metavar="N|none",
    help="How many of its jobs run at most, in all workers together.",
)
@click.option(
    "--rate", metavar="N/s|m|h|d|none", help="How many attempts begin: 10/s, 100/m, 1000/h, 5000/d."
)
@click.option(
    "--burst",
    metavar="N",
    type=click.IntRange(1),
    help="How many may begin at once after a pause.  [default: what the rate gives in a second]",
)
@click.option(
    "--ageing",
    metavar="DURATION|none",
    help="Raise the priority of a job by one after so long, and again after so long.",
)
@click.option(
    "--reset", is_flag=True, help="Let the limits be those that the code declares, or none."
)
@new_option
@pass_session
def limit(
    session: Session,
    name: str,
    max_running: str | None,
    rate: str | None,
    burst: int | None,
    ageing: str | None,
    reset: bool,
    new: bool,
) -> None:
    """Limit a queue, in all workers together.

    What is not said stays as it is; none takes a limit away. From then on the limits go before what the code
    declares, until --reset.

    \b
    Example:
      pgtasks queues limit mail --max-running 5
      pgtasks queues limit mail --rate 100/m --burst 10 --ageing 1m
      pgtasks queues limit mail --rate none
      pgtasks queues limit mail --reset
    """  # fmt: skip
    said: dict[str, Any] = {}
    if max_running is not None:
        said["max_running"] = _whole(max_running)
    if burst is not None and (rate is None or rate == "none"):
        raise click.UsageError("--burst is how much of a rate may come at once: say --rate, too")
    if rate is not None:
        from pgtasks.rates import parse_rate

        said["rate"] = None if rate == "none" else parse_rate(rate, burst=burst)
    if ageing is not None:
        said["ageing"] = None if ageing == "none" else Duration().convert(ageing, None, None)
    if reset == bool(said):
        raise click.UsageError(
            "--reset takes back what was set by hand: say it alone"
            if reset
            else "no limit was said: expected --max-running, --rate, --ageing or --reset"
        )
    app = session.connect()
    known_queues(app, [name], new=new)
    if not reset:
        app.limit_queue(name, **said, by=operator())
    elif not app.reset_limits(name):
        output.remark(session, f"nobody had set limits of queue {name} by hand")
    now = next((one for one in app.queues() if one.name == name), None)
    held = limits(now) if now else None
    output.show(session, now, lambda: click.echo(f"{name}: {held or 'no limits'}"))


@queues.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("-t", "--task", help="Only jobs of this task.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@new_option
@pass_session
def move(
    session: Session, source: str, target: str, task: str | None, force: bool, new: bool
) -> None:
    """Move the jobs that wait in a queue to another one.

    Ready, scheduled, blocked and parked ones; running jobs are left alone. They keep their ids and their order,
    and stand in line behind what is there. Unique ones stay if another job has their key there.

    \b
    Example:
      pgtasks queues move mail bulk --task shop.send_newsletter
    """
    check_move(source, target)
    app = session.connect()
    known_queues(app, [source])
    known_queues(app, [target], new=new)
    depth = next((one for one in app.queues() if one.name == source), None)
    waiting = depth.ready + depth.scheduled + depth.blocked + depth.parked if depth else 0
    if waiting:
        what = f"jobs of task {task}" if task else output.plural(waiting, "waiting job")
        confirm(f"move {what} from queue {source} to queue {target}?", force=force)
    moved = app.move_jobs(source, target, task=task)
    if not task and moved < waiting:
        output.remark(
            session,
            f"{output.plural(waiting - moved, 'job')} did not move: taken by a worker meanwhile, or unique, "
            f"and another job has its key in {target}",
        )
    output.show(
        session,
        {"moved": moved, "from": source, "to": target},
        lambda: click.echo(f"Moved {output.plural(moved, 'job')} from {source} to {target}"),
    )


@queues.command()
@names_argument
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_session
def purge(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Cancel every job that waits in these queues.

    Ready, scheduled, blocked and parked ones; running jobs are left alone. It asks first.

    \b
    Example:
      pgtasks queues purge mail
    """
    app = session.connect()
    known_queues(app, names)
    purge_queues(session, app, names, (), force=force)


def limits(one: QueueInfo) -> str | None:
    """Return the limits of a queue in a few words, and who set them; None: it has none."""
    said = []
    if one.max_running is not None:
        said.append(f"{one.max_running} running")
    if one.rate is not None:
        rate = Rate(one.rate, burst=one.burst)
        said.append(f"{rate} (burst {rate.tokens})")
    if one.ageing is not None:
        said.append(f"ages each {one.ageing:g} s")
    if one.limited_at is not None:
        by = f", by {one.limited_by}" if one.limited_by else ", by hand"
        return (", ".join(said) or "none") + by
    return ", ".join(said) or None


def note(one: QueueInfo) -> str | None:
    """Return what else is to be said of a queue."""
    said = [paused(one.paused_at, one.paused_by, one.pause_reason)]
    if one.paused_at is None and one.max_running is not None and one.running >= one.max_running:
        said.append("full")
    if one.paused_at is None and one.tokens is not None and one.tokens < 1 and one.ready:
        said.append("waits for its rate")
    if one.limited_at is not None and one.declared:
        said.append("code declares other limits (--reset)")
    return ", ".join(text for text in said if text) or None


def _whole(text: str) -> int | None:
    """Return a number of --max-running; None: no limit."""
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise click.UsageError(
            f"--max-running is a whole number from 1, or none, found {text!r}: to let nothing run, pause the queue"
        )
    return int(text)


def _show(session: Session, names: tuple[str, ...], text: str) -> None:
    output.show(session, {"queues": list(names)}, lambda: click.echo(text))
