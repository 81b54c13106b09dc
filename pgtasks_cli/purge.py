"""``pgtasks purge``: cancels what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pgtasks_cli import output
from pgtasks_cli.params import Names
from pgtasks_cli.selection import confirm
from pgtasks_cli.session import Session, pass_session

if TYPE_CHECKING:
    from pgtasks import App


@click.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("-Q", "--queues", type=Names(), help="These queues.  [default: all]")
@click.option("-X", "--exclude-queues", type=Names(), default=(), help="But not these.")
@pass_session
def purge(
    session: Session, force: bool, queues: tuple[str, ...] | None, exclude_queues: tuple[str, ...]
) -> None:
    """Cancel every job that waits in a queue.

    Ready, scheduled, blocked and parked ones; running jobs are left alone. It asks first.

    \b
    Example:
      pgtasks purge -Q mail
      pgtasks purge -f -X important
    """
    purge_queues(session, session.connect(), queues, exclude_queues, force=force)


def purge_queues(
    session: Session,
    app: App,
    queues: Sequence[str] | None,
    exclude_queues: Sequence[str],
    *,
    force: bool,
) -> None:
    """Ask, cancel what waits, and say how much that was."""
    depths = {one.name: one for one in app.queues()}
    chosen = [name for name in queues or depths if name not in exclude_queues]
    unknown = [name for name in chosen if name not in depths]
    if unknown:
        output.remark(session, f"queue {unknown[0]!r} holds no job and has no worker")
    waiting = sum(
        one.ready + one.scheduled + one.blocked + one.parked
        for one in depths.values()
        if one.name in chosen
    )
    if waiting:
        confirm(
            f"cancel {output.plural(waiting, 'waiting job')} of {output.plural(len(chosen), 'queue')} "
            f"({', '.join(chosen)})?",
            force=force,
        )
    gone = app.purge(*chosen) if waiting else 0
    output.show(
        session,
        {"purged": gone, "queues": chosen},
        lambda: click.echo(
            f"Purged {output.plural(gone, 'job')} from {output.plural(len(chosen), 'queue')}"
        ),
    )
