"""``pgtasks tasks``: which tasks workers know, and pause and resume of a task."""

from __future__ import annotations

import click

from pgtasks_cli import output
from pgtasks_cli.holding import operator, paused, reason_option
from pgtasks_cli.session import Session, pass_session

names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)


@click.group(invoke_without_command=True)
@click.pass_context
def tasks(ctx: click.Context) -> None:
    """Look at tasks, and pause or resume them.

    \b
    Example:
      pgtasks tasks
      pgtasks tasks pause shop.send_email --reason "wrong template"
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@tasks.command("list")
@pass_session
def list_(session: Session) -> None:
    """List the tasks that workers have published, with their default queues.

    \b
    Example:
      pgtasks tasks list
    """
    app = session.connect()
    found = app.published_tasks()

    def text() -> None:
        if not found:
            output.remark(session, "no worker has published a task yet")
            return
        numbers = ["priority", "ready", "running", "parked", "workers"]
        notes = [paused(one.paused_at, one.paused_by, one.pause_reason) for one in found]
        output.table(
            session,
            ["task", "queue", *numbers, *(["note"] if any(notes) else [])],
            [
                [
                    one.name,
                    one.queue,
                    one.priority,
                    one.ready,
                    one.running,
                    one.parked,
                    one.workers,
                    *([note] if any(notes) else []),
                ]
                for one, note in zip(found, notes, strict=True)
            ],
            right=numbers,
        )

    output.show(session, found, text)


@tasks.command()
@names_argument
@reason_option
@pass_session
def pause(session: Session, names: tuple[str, ...], reason: str | None) -> None:
    """Let no worker begin a job of these tasks.

    Within a second. Running jobs end; what workers have claimed and not begun they give back. New jobs may be
    enqueued, and wait, parked.

    \b
    Example:
      pgtasks tasks pause shop.send_email --reason "wrong template"
    """
    app = session.connect()
    for name in names:
        app.pause_task(name, reason=reason, by=operator())
    _show(session, names, f"paused {', '.join(names)}")


@tasks.command()
@names_argument
@pass_session
def resume(session: Session, names: tuple[str, ...]) -> None:
    """Let these tasks go on.

    \b
    Example:
      pgtasks tasks resume shop.send_email
    """
    from pgtasks.db import operations

    app = session.connect()
    known = [one.name for one in app.published_tasks()]
    for name in names:
        if name not in known:
            raise click.ClickException(
                f"no worker has published a task {name!r}{operations.did_you_mean(name, known)}"
            )
        if not app.resume_task(name):
            output.remark(session, f"task {name} was not paused")
    _show(session, names, f"resumed {', '.join(names)}")


def _show(session: Session, names: tuple[str, ...], text: str) -> None:
    output.show(session, {"tasks": list(names)}, lambda: click.echo(text))
