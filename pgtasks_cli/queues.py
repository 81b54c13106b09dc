"""``pgtasks queues``: how deep each queue is."""

from __future__ import annotations

import click

from pgtasks_cli import output
from pgtasks_cli.session import Session, pass_session


@click.group(invoke_without_command=True)
@click.pass_context
def queues(ctx: click.Context) -> None:
    """Show how deep each queue is.

    \b
    Example:
      pgtasks queues
      pgtasks queues list --json
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@queues.command("list")
@pass_session
def list_(session: Session) -> None:
    """List the queues that hold jobs or have a worker.

    \b
    Example:
      pgtasks queues list
    """
    from pgtasks.db import operations

    app = session.connect()
    found = app.run(operations.list_queues())

    def text() -> None:
        if not found:
            output.remark(session, "no queue holds a job or has a worker")
            return
        headers = [
            "queue",
            "ready",
            "running",
            "scheduled",
            "blocked",
            "parked",
            "oldest",
            "workers",
        ]
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
                ]
                for one in found
            ],
            right=headers[1:],
        )

    output.show(session, found, text)
