"""``pgtasks beat``: the schedules alone, without running any job."""

from __future__ import annotations

import os
import socket
from typing import Any

import click

from pgtasks import WorkerOptions
from pgtasks.options import worker_name
from pgtasks_cli.params import Duration, Names
from pgtasks_cli.session import Session, pass_session
from pgtasks_cli.worker import LEVELS, ignored_options, import_all, log_to, pid_written


@click.command()
@click.option(
    "-n",
    "--hostname",
    "name",
    metavar="NAME",
    help="What it is called; %h host, %n its first part, %d the rest.  [default: beat@%h]",
)
@click.option("-I", "--include", type=Names(), help="Import these modules, too.")
@click.option(
    "-l",
    "--loglevel",
    metavar="LEVEL",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="WARNING",
    show_default=True,
    help="What to log: debug, info, warning, error or critical.",
)
@click.option("--log-json", is_flag=True, help="Log lines as JSON.")
@click.option(
    "-f",
    "--logfile",
    metavar="PATH",
    help="Log to this file, not to stderr; %h, %n, %d as in --hostname.",
)
@click.option("--pidfile", metavar="PATH", help="Write the process id here.")
@click.option(
    "--health-port",
    metavar="[HOST:]PORT",
    help="Answer HTTP probes there: 200 if healthy, else 503. HOST is 127.0.0.1 unless said.",
)
@click.option(
    "--no-listen",
    "listen",
    flag_value=False,
    default=None,
    help="Poll only, use no notifications (for PgBouncer).",
)
@click.option("--lease", type=Duration(), help="How long it may be silent.  [default: 30s]")
@click.option(
    "--beat-every", "beat", type=Duration(), help="How often it says that it lives.  [default: 5s]"
)
@click.option("-s", "--schedule", expose_value=False, hidden=True)
@click.option("-S", "--scheduler", expose_value=False, hidden=True)
@click.option("--max-interval", expose_value=False, hidden=True)
@ignored_options
@pass_session
def beat(
    session: Session,
    /,
    include: tuple[str, ...] | None,
    loglevel: str,
    log_json: bool,
    logfile: str | None,
    pidfile: str | None,
    **said: Any,
) -> None:
    """Enqueue what schedules have due, and run no job.

    Workers do that, too, unless they are told --no-beat, so mostly this is not needed. Any number of both may run:
    each tick is enqueued once. Celery's -s, -S and --max-interval are accepted and do nothing.

    \b
    Example:
      pgtasks beat -A shop -l info
    """
    from pgtasks import logs
    from pgtasks.worker.process import prepare, run_worker
    from pgtasks_cli.banner import beat_banner

    app = session.load_app()
    import_all(include)
    options = {name: value for name, value in said.items() if value is not None}
    parent = prepare(app, WorkerOptions(**{"name": "beat@%h", **options, "pool": "beat"}))
    host = socket.gethostname()
    with pid_written(pidfile and worker_name(pidfile, host)):
        if not (session.quiet or session.json):
            click.echo(beat_banner(app, parent, os.getpid()))
        if logfile:
            log_to(worker_name(logfile, host))
        logs.set_up(loglevel.upper(), json=log_json or session.json)
        run_worker(parent)
