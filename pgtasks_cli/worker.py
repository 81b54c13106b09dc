"""``pgtasks worker``: Celery's options in, `WorkerOptions` out, and what an operator sees at the start."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgtasks import WorkerOptions
from pgtasks.options import worker_name
from pgtasks_cli import output
from pgtasks_cli.loading import import_module
from pgtasks_cli.params import Duration, Memory, Names, WeightedNames
from pgtasks_cli.session import Session, pass_session

if TYPE_CHECKING:
    from pgtasks import App

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
POOLS = {"prefork": "prefork", "processes": "prefork", "threads": "threads", "solo": "solo"}


def pool_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return our name of a pool."""
    if value is None:
        return None
    if value.lower() not in POOLS:
        raise click.BadParameter(
            f"there is no pool {value!r}: expected prefork (children run the jobs), threads (one child runs "
            "them in threads) or solo (this process runs them, one by one); async def tasks run in all",
            ctx,
            param,
        )
    return POOLS[value.lower()]


def ignored_options(command: F) -> F:
    """Accept Celery's options that mean nothing here."""
    for flag in ("--without-gossip", "--without-mingle", "--without-heartbeat"):
        command = click.option(flag, is_flag=True, expose_value=False, hidden=True)(command)
    command = click.option("--heartbeat-interval", expose_value=False, hidden=True)(command)
    command = click.option("-O", "--optimization", expose_value=False, hidden=True)(command)
    return click.option(
        "-E", "--task-events", "--events", is_flag=True, expose_value=False, hidden=True
    )(command)


@click.command()
@click.option(
    "-c",
    "--concurrency",
    metavar="N",
    type=click.IntRange(1, 1000),
    help="How many jobs run at once.  [default: CPUs]",
)
@click.option(
    "-Q",
    "--queues",
    type=WeightedNames(),
    help="Serve these queues; with weights, mail:3,default, three jobs of mail for each of default while both have "
    "some.  [default: all that tasks and routes name, and default]",
)
@click.option("-X", "--exclude-queues", type=Names(), help="Do not serve these.")
@click.option(
    "-n",
    "--hostname",
    "name",
    metavar="NAME",
    help="The worker's name; %h host, %n its first part, %d the rest.  [default: worker@%h]",
)
@click.option(
    "-P",
    "--pool",
    metavar="POOL",
    callback=pool_name,
    help="What runs the jobs. prefork: processes; threads: one process with threads; solo: the worker itself.  "
    "[default: prefork]",
)
@click.option(
    "--async-concurrency",
    metavar="N",
    type=click.IntRange(1, 1000),
    help="How many jobs of async def tasks each child runs at once, besides the others; 1: they take turns "
    "with them.  [default: 1]",
)
@click.option(
    "--soft-time-limit",
    type=Duration(),
    help="Raise SoftTimeLimitExceeded in a job that runs so long, if its task has no such limit.",
)
@click.option(
    "--time-limit",
    type=Duration(),
    help="Kill a job that runs so long, if its task has no such limit; not with pool threads or solo.",
)
@click.option(
    "--max-tasks-per-child",
    metavar="N",
    type=click.IntRange(1),
    help="Replace a child after so many jobs.",
)
@click.option(
    "--max-memory-per-child",
    metavar="SIZE",
    type=Memory(),
    help="Replace a child that ever held so much, after its job: in KiB, or with a unit: 200MB, 1GB.",
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
@click.option(
    "--pidfile",
    metavar="PATH",
    help="Write the process id here, and refuse to start beside a worker that did.",
)
@click.option(
    "--health-port",
    metavar="[HOST:]PORT",
    help="Answer HTTP probes there: 200 if healthy, else 503. HOST is 127.0.0.1 unless said; for Kubernetes' "
    "httpGet say 0.0.0.0:PORT.",
)
@click.option(
    "--grace",
    type=Duration(),
    help="How long running jobs may go on after TERM, or after they were cancelled.  [default: 25s]",
)
@click.option(
    "--poll-interval",
    type=Duration(),
    help="The longest time between two looks for jobs.  [default: 1s]",
)
@click.option(
    "--no-listen",
    "listen",
    flag_value=False,
    default=None,
    help="Poll only, use no notifications (for PgBouncer).",
)
@click.option(
    "--lease",
    type=Duration(),
    help="After how long without a beat others take its jobs.  [default: 30s]",
)
@click.option(
    "--beat-every", "beat", type=Duration(), help="How often it renews its lease.  [default: 5s]"
)
@click.option(
    "--claim-batch", metavar="N", type=int, help="How many jobs one claim may take.  [default: 500]"
)
@click.option(
    "--prefetch-multiplier",
    "prefetch",
    metavar="N",
    type=click.IntRange(0),
    help="How many jobs may wait for each child at most; 0: the default.  [default: 500]",
)
@click.option(
    "--keep-history-for", type=Duration(), help="How long finished jobs are kept.  [default: 7d]"
)
@click.option(
    "--purge",
    "--discard",
    "purge",
    is_flag=True,
    help="First cancel every job that waits in the queues to be served; it does not ask.",
)
@click.option(
    "-B",
    "--beat/--no-beat",
    "schedules",
    default=None,
    help="Enqueue what schedules have due, as any number of workers may.  [default: --beat]",
)
@ignored_options
@pass_session
def worker(
    session: Session,
    /,
    include: tuple[str, ...] | None,
    loglevel: str,
    log_json: bool,
    logfile: str | None,
    pidfile: str | None,
    purge: bool,
    **said: Any,
) -> None:
    """Run jobs until told to stop.

    TERM or Ctrl-C: take no more jobs, let the running ones end, give the rest back. The second time, or when
    the grace period is over: kill what runs and give it back. USR1 prints all stacks.

    Celery's --without-gossip, --without-mingle, --without-heartbeat, --heartbeat-interval, -O and -E are
    accepted and do nothing.

    \b
    Example:
      pgtasks worker -A shop -c 4 -l info
      pgtasks worker -A shop -Q mail:3,default -n mail@%h
      pgtasks worker -A shop --time-limit 10m --max-memory-per-child 500MB --health-port 8080
      pgtasks worker -A shop -P threads -c 20
    """
    from pgtasks import logs
    from pgtasks.worker.process import prepare, run_worker
    from pgtasks_cli.banner import banner, warnings

    app = session.load_app()
    import_all(include)
    options = worker_options(said)
    parent = prepare(app, options)
    host = socket.gethostname()
    with pid_written(pidfile and worker_name(pidfile, host)):
        if not (session.quiet or session.json):
            click.echo(banner(app, parent))
        if logfile:
            log_to(worker_name(logfile, host))
        logs.set_up(loglevel.upper(), json=log_json or session.json)
        for warning in warnings(app, options):
            logs.logger.warning(warning)
        if purge:
            purge_first(session, app, parent.queues)
        run_worker(parent)


def import_all(modules: tuple[str, ...] | None) -> None:
    """Import what --include names."""
    for module in modules or ():
        if import_module(module) is None:
            raise click.UsageError(f"no module is named {module!r}, which --include names")


def purge_first(session: Session, app: App, queues: Sequence[str]) -> None:
    """Cancel what waits, over a connection of its own: the pool has threads, and this process is going to fork."""
    with app.pools.connect() as connection, app.connection(connection):
        gone = app.purge(*queues)
    if not (session.quiet or session.json):
        click.echo(f"Purged {output.plural(gone, 'job')} from {', '.join(queues)}")


def worker_options(said: dict[str, Any]) -> WorkerOptions:
    """Return the options; what was not said is left to them."""
    options = {name: value for name, value in said.items() if value is not None}
    if "queues" in options:
        weights = options["queues"]
        options["queues"] = tuple(weights)
        options["weights"] = {name: weight for name, weight in weights.items() if weight != 1}
    if not options.get("prefetch", True):
        del options["prefetch"]
    if options.get("pool") != "solo":
        options.setdefault("concurrency", len(os.sched_getaffinity(0)))
    return WorkerOptions(**options)


def log_to(path: str) -> None:
    """Let stderr be that file, for this process and the children, whatever they write there."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise click.ClickException(f"cannot log to {path}: {error.strerror}") from None
    sys.stderr.flush()
    os.dup2(file, 2)
    os.close(file)


@contextmanager
def pid_written(path: str | None) -> Iterator[None]:
    """Keep the process id in a file for a block.

    Raises:
        ClickException: a living process has its id there, or the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        refuse_second(path)
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)


def refuse_second(path: str) -> None:
    """Raise ClickException if the process whose id is in the file lives; a stale file is nothing."""
    from pgtasks.worker.host import process_started_at

    with suppress(FileNotFoundError, ValueError), open(path, encoding="ascii") as file:
        pid = int(file.read())
        if pid != os.getpid() and process_started_at(pid) is not None:
            raise click.ClickException(f"process {pid} runs already, says {path}")
