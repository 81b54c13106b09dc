"""``pgtasks health``: an exit code for a probe of Kubernetes, systemd or a load balancer."""

from __future__ import annotations

import socket
from fnmatch import fnmatchcase

import click

from pgtasks.options import worker_name
from pgtasks_cli import output
from pgtasks_cli.liveness import NobodyError, current, judge
from pgtasks_cli.params import Duration
from pgtasks_cli.session import Session, pass_session

NOT_ALIVE = 1
# A probe must end by itself: how long the database may take to answer, in seconds.
PATIENCE = 5.0


@click.command()
@click.option(
    "-n",
    "--name",
    metavar="PATTERN",
    help="Only workers of such a name: * and ? as in file names, %h %n %d as in worker --hostname.",
)
@click.option("--all", "every", is_flag=True, help="All workers, not only those of this host.")
@click.option(
    "--max-age",
    type=Duration(),
    help="How old the last beat and the last claim may be.  [default: the worker's lease]",
)
@pass_session
def health(session: Session, name: str | None, every: bool, max_age: float | None) -> None:
    """Say by the exit code whether the workers of this host are alive.

    Alive is a worker that gave its last beat, and last claimed or looked for jobs, not longer ago than its
    lease (30s unless it says otherwise; two of its poll intervals, if they are longer). One that drains only
    has to beat. It answers from the worker's row, which is as old as its last beat; with worker --health-port
    the worker itself is asked.

    \b
    Exit codes: 0 all of them are alive, 1 one is not, 3 no database,
    69 no worker of this host, or of that name, is registered.

    \b
    Example:
      pgtasks health
      pgtasks health -n 'mail@*' --max-age 1m
      livenessProbe: {exec: {command: [pgtasks, health]}, timeoutSeconds: 5}
    """
    if name is not None and every:
        raise click.UsageError("expected --name or --all, found both")
    host = socket.gethostname()
    app = session.connect(patience=PATIENCE)
    found = current(
        [
            one
            for one in app.workers()
            if every
            or (
                fnmatchcase(one.name, worker_name(name, host))
                if name is not None
                else one.host == host
            )
        ]
    )
    verdicts = [judge(one, max_age) for one in found]
    alive = bool(verdicts) and all(one.alive for one in verdicts)

    def text() -> None:
        for one in verdicts:
            word, color = ("alive", "green") if one.alive else ("NOT alive", "red")
            line = (
                f"{output.one_line(one.worker.name)}: {click.style(word, fg=color)}, {one.text()}"
            )
            click.echo(line, color=None if session.color else False)

    output.show(session, {"alive": alive, "workers": [one.document() for one in verdicts]}, text)
    if not verdicts:
        whose = f"of a name like {name!r} " if name else "" if every else f"of this host ({host}) "
        raise NobodyError(f"no worker {whose}is registered")
    if not alive:
        click.get_current_context().exit(NOT_ALIVE)
