"""``pgtasks status``: how many jobs and bundles there are in each state."""

from __future__ import annotations

import click

from pgtasks import JobState
from pgtasks_cli import output
from pgtasks_cli.session import Session, pass_session


@click.command()
@pass_session
def status(session: Session) -> None:
    """Count jobs and bundles by state.

    \b
    Example:
      pgtasks status
      pgtasks --dsn service=prod status --json
    """
    from pgtasks_cli.liveness import is_online

    app = session.connect()
    counts = app.status()
    workers = app.workers()
    online = sum(is_online(worker) for worker in workers)

    def text() -> None:
        states = [state for state in JobState if counts.jobs[state] or state in SHOWN_AT_ZERO]
        rows: list[list[output.Cell]] = [
            [str(state), counts.jobs[state], *(of.get(state, 0) for of in counts.queues.values())]
            for state in states
        ]
        headers = ["state", "jobs"]
        if len(counts.queues) > 1:
            headers += counts.queues
        output.table(session, headers, [row[: len(headers)] for row in rows], right=headers[1:])
        click.echo()
        output.table(
            session,
            ["state", "bundles"],
            [[state, count] for state, count in counts.bundles.items()],
            right=["bundles"],
        )
        click.echo()
        silent = f", {len(workers) - online} silent" if online < len(workers) else ""
        click.echo(f"{output.plural(online, 'worker')} online{silent}")

    output.show(
        session,
        {
            "jobs": counts.jobs,
            "queues": counts.queues,
            "bundles": counts.bundles,
            "workers": {"online": online, "silent": len(workers) - online},
        },
        text,
    )


# What people look for, also when it is none.
SHOWN_AT_ZERO = (JobState.READY, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED)
