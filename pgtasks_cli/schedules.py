"""``pgtasks schedules``: look at schedules, and pause, resume, run, edit, add or remove them."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from pgtasks.errors import PgTasksError
from pgtasks.schedule import CATCH_UP, zone_of
from pgtasks_cli import output
from pgtasks_cli.call import FOREVER, CallCommand, await_and_print
from pgtasks_cli.jobs import force_option
from pgtasks_cli.params import Duration, Json, Names
from pgtasks_cli.selection import confirm
from pgtasks_cli.session import Session, pass_session

if TYPE_CHECKING:
    from pgtasks import App, Schedule

F = TypeVar("F", bound=Callable[..., Any])

# How many runs to come `show` lists.
SHOWN = 5
UNSET = ("queue", "priority", "expires")

CATCH_UP_HELP = (
    "What becomes of ticks that are missed, since no worker ran: skip drops them, one runs one job for all, all runs "
    "one for each."
)


@click.group()
def schedules() -> None:
    """Look at schedules, and pause, run or change them.

    Those from code come with the workers that have them, and go with the last; what is paused or edited here goes
    before what the code says, and stays. Those that are added here stay until they are removed here.

    \b
    Example:
      pgtasks schedules list
      pgtasks schedules show nightly
      pgtasks schedules pause nightly
      pgtasks schedules add cleanup '0 3 * * *' shop.clean_up --timezone Europe/Vienna
    """


def task_options(command: F) -> F:
    """Add the options that say what is enqueued, and how."""
    for option in reversed(
        (
            click.option(
                "--timezone", metavar="ZONE", help="Read the cron line there: Europe/Vienna."
            ),
            click.option("--catch-up", type=click.Choice(CATCH_UP), help=CATCH_UP_HELP),
            click.option(
                "-a", "--args", type=Json(list), help="Positional arguments, as a JSON array."
            ),
            click.option(
                "-k", "--kwargs", type=Json(dict), help="Keyword arguments, as a JSON object."
            ),
            click.option("--queue", help="Put its jobs there."),
            click.option("--priority", type=int, help="Higher runs first."),
            click.option(
                "--expires",
                type=Duration(),
                help="Do not begin a job later than that after its tick.",
            ),
        )
    ):
        command = option(command)
    return command


@schedules.command("list")
@pass_session
def list_(session: Session) -> None:
    """List the schedules, where each comes from, and when it runs next.

    from: code, hand, or code+edits where somebody changed what the code says. state: active; paused; undeclared, if
    no live worker has it in its code any more; error, if it cannot be read.

    \b
    Example:
      pgtasks schedules list
      pgtasks schedules list --json
    """
    app = session.connect()
    found = app.schedules.list()

    def text() -> None:
        if not found:
            output.remark(session, "there is no schedule")
            return
        output.table(
            session,
            ["name", "task", "when", "from", "state", "last", "next", "note"],
            [
                [
                    one.name,
                    one.task,
                    when(one),
                    source(one),
                    one.state,
                    one.last_at,
                    next_run(one),
                    note(one),
                ]
                for one in found
            ],
        )
        if any(one.state == "active" for one in found) and not app.workers():
            output.remark(
                session,
                "nothing ticks: no worker is alive, start 'pgtasks worker' or 'pgtasks beat'",
            )

    output.show(session, [document(one) for one in found], text)


@schedules.command()
@click.argument("name")
@pass_session
def show(session: Session, name: str) -> None:
    """Show a schedule, and its next runs in its own time zone and in UTC.

    \b
    Example:
      pgtasks schedules show nightly
    """
    app = session.connect()
    one = app.schedules.get(name)
    ticks = one.next_ticks(SHOWN)

    def text() -> None:
        output.fields(
            session,
            {
                "name": one.name,
                "task": one.task,
                "args": arguments(one.args_json, "[]"),
                "kwargs": arguments(one.kwargs_json, "{}"),
                "when": one.spec,
                "timezone": one.timezone,
                "catch up": one.catch_up,
                "queue": one.queue,
                "priority": one.priority,
                "expires": one.expires,
                "options": output.json_text(one.options) if one.options else None,
                "from": f"{source(one)} of app {one.app}" if one.app else source(one),
                "edited": output.json_text(one.overrides) if one.overrides else None,
                "state": one.state,
                "note": note(one),
                "last": one.last_at,
                "last job": one.last_job_id,
            },
        )
        if ticks:
            would = {
                "paused": "if it were not paused",
                "undeclared": "if a worker had it in its code",
            }
            output.heading(session, f"next runs {would.get(one.state, '')}".rstrip())
            zones = {one.timezone: zone_of(one.timezone), "UTC": UTC}
            rows = [[local(tick.astimezone(zone)) for zone in zones.values()] for tick in ticks]
            output.table(session, list(zones), rows)

    output.show(session, {**document(one), "next_runs": [tick.isoformat() for tick in ticks]}, text)


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--by", help="Who does it, for people.  [default: user@host]")
@pass_session
def pause(session: Session, names: Sequence[str], by: str | None) -> None:
    """Let schedules tick no more until they are resumed.

    Also those from code: it holds for newer code as well.

    \b
    Example:
      pgtasks schedules pause nightly
    """
    app = session.connect()
    app.schedules.pause(*names, by=by or me())
    done(session, "paused", names)


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@pass_session
def resume(session: Session, names: Sequence[str]) -> None:
    """Let paused schedules tick again.

    From now on: what they missed is dropped.

    \b
    Example:
      pgtasks schedules resume nightly
    """
    app = session.connect()
    app.schedules.resume(*names)
    done(session, "resumed", names)


@schedules.command("run-now", cls=CallCommand)
@click.argument("name")
@click.option(
    "-w",
    "--wait",
    type=Duration(),
    metavar="[DURATION]",
    help="Wait for the result, so long or for ever, and print it.",
)
@pass_session
def run_now(session: Session, name: str, wait: float | None) -> None:
    """Enqueue a schedule's job now and print its id.

    Also of one that is paused. Its ticks stay as they are.

    \b
    Example:
      pgtasks schedules run-now nightly --wait
    """
    app = session.connect()
    result = app.schedules.run_now(name)
    if wait is None:
        output.show(session, {"id": result.id}, lambda: click.echo(result.id))
        return
    if not session.json:
        output.remark(session, result.id)
    await_and_print(session, result, None if wait == FOREVER else wait)


@schedules.command()
@click.argument("name")
@click.argument("spec")
@click.argument("task")
@task_options
@pass_session
def add(
    session: Session, /, name: str, spec: str, task: str, expires: float | None, **said: Any
) -> None:
    """Add a schedule that ticks until it is removed.

    SPEC is a cron line (minute hour day-of-month month day-of-week, and maybe second as the sixth), or 'every 30s',
    'every 2h'. When the clock is set, a tick in the skipped hour runs once right after it, and one in the
    repeated hour once, the first time. With -A the arguments are checked against the task.

    \b
    Example:
      pgtasks schedules add cleanup '0 3 * * *' shop.clean_up --timezone Europe/Vienna
      pgtasks schedules add ping 'every 30s' shop.ping -a '["db1"]' --expires 30s
    """
    app = session.connect(tasks=True)
    if session.names_app():
        app.load()
        app.find_task(task)
    given = {key: value for key, value in {**said, "expires": expires}.items() if value is not None}
    try:
        app.schedules.add(name, spec, task, **given)
    except (TypeError, ValueError) as error:
        if isinstance(error, PgTasksError):
            raise
        raise click.UsageError(f"{task}: {error}") from None
    tell(session, app, "added", name)


@schedules.command()
@click.argument("name")
@click.option("--spec", help="A cron line, or 'every 30s'.")
@task_options
@click.option("--unset", type=Names(), help="Of queue, priority, expires: as the task has it.")
@click.option("--forget", is_flag=True, help="Forget what was edited before: as the code has it.")
@pass_session
def edit(
    session: Session, /, name: str, unset: tuple[str, ...] | None, forget: bool, **said: Any
) -> None:
    """Change a schedule.

    Of one from code, this goes before what the code says, also of newer code.

    \b
    Example:
      pgtasks schedules edit nightly --spec '30 2 * * *' --catch-up all
      pgtasks schedules edit nightly --forget
    """
    changes = {key: value for key, value in said.items() if value is not None}
    for key in unset or ():
        if key not in UNSET or key in changes:
            raise click.UsageError(
                f"--unset takes {', '.join(UNSET)}, and not what is set at once, found {key!r}"
            )
        changes[key] = None
    if not changes and not forget:
        raise click.UsageError("nothing to change was said")
    app = session.connect()
    app.schedules.edit(name, forget=forget, **changes)
    tell(session, app, "changed", name)


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@force_option
@pass_session
def remove(session: Session, names: Sequence[str], force: bool) -> None:
    """Remove schedules that were added here, or that no worker has in its code.

    \b
    Example:
      pgtasks schedules remove cleanup
    """
    app = session.connect()
    for name in names:
        app.schedules.get(name)  # before the question
    confirm(f"remove schedule {', '.join(names)}?", force=force)
    app.schedules.remove(*names)
    done(session, "removed", names)


def done(session: Session, what: str, names: Sequence[str]) -> None:
    """Say what was done to which schedules."""
    output.show(
        session,
        {what: list(names)},
        lambda: click.echo(f"{what} {', '.join(map(output.one_line, names))}"),
    )


def tell(session: Session, app: App, what: str, name: str) -> None:
    """Say what was done to a schedule, and when it runs now."""
    one = app.schedules.get(name)

    def text() -> None:
        ticks = one.next_ticks(1)
        at = f"; next run {local(ticks[0].astimezone(zone_of(one.timezone)))}" if ticks else ""
        paused = " (it is paused)" if one.state == "paused" else ""
        click.echo(output.one_line(f"{what} {name}: {when(one)}{at}{paused}"))

    output.show(session, document(one), text)


def when(one: Schedule) -> str:
    """Return the spec, with the time zone if it is not UTC and matters."""
    zone = "" if one.timezone == "UTC" or one.spec.startswith("every") else f" {one.timezone}"
    return f"{one.spec}{zone}"


def source(one: Schedule) -> str:
    """Return where a schedule comes from, in a word."""
    return f"{one.declared_by}+edits" if one.overrides else one.declared_by


def next_run(one: Schedule) -> datetime | None:
    """Return when a schedule runs next, if it does."""
    return one.next_at or next(iter(one.next_ticks(1)), None) if one.state == "active" else None


def note(one: Schedule) -> str | None:
    """Return what is odd about a schedule."""
    match one.state:
        case "paused":
            by = f" by {one.paused_by}" if one.paused_by else ""
            return f"paused{by} {output.when(one.paused_at)}" if one.paused_at else None
        case "undeclared":
            since = f" since {output.when(one.undeclared_at)}" if one.undeclared_at else ""
            return f"in no live worker's code{since}"
        case _:
            return one.problem


def arguments(text: str, nothing: str) -> str | None:
    """Return arguments as they are stored; None for none."""
    return None if text == nothing else text


def local(moment: datetime) -> str:
    """Return a moment as people of its time zone write it."""
    return moment.strftime("%a %Y-%m-%d %H:%M:%S %z")


def document(one: Schedule) -> dict[str, object]:
    """Return a schedule as JSON has it."""
    plain = msgspec.structs.asdict(one)
    del plain["now"]
    args, kwargs = plain.pop("args_json"), plain.pop("kwargs_json")
    return {
        **plain,
        "args": output.json_value(args, "args"),
        "kwargs": output.json_value(kwargs, "kwargs"),
        "state": one.state,
        "error": one.problem,
    }


def me() -> str:
    """Return who types this, as far as the machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's account without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"[:200]
