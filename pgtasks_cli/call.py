"""``pgtasks call``: enqueues a task by its name, and waits for the result if asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pgtasks import JobState
from pgtasks.errors import PgTasksError, ResultTimeoutError
from pgtasks_cli import output
from pgtasks_cli.params import DURATION, Duration, Json, Later, Moment
from pgtasks_cli.session import Session, pass_session

if TYPE_CHECKING:
    from pgtasks import AsyncResult

FOREVER = 0.0


class CallCommand(click.Command):
    """Lets ``-w`` stand before the task's name, which is no number of seconds."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Say ``--wait=0`` where no duration follows."""
        following = [*args[1:], ""]
        told = [
            f"--wait={FOREVER}"
            if one in ("-w", "--wait") and not DURATION.fullmatch(next_one)
            else one
            for one, next_one in zip(args, following, strict=True)
        ]
        return super().parse_args(ctx, told)


@click.command(cls=CallCommand)
@click.argument("name")
@click.option("-a", "--args", type=Json(list), help="Positional arguments, as a JSON array.")
@click.option("-k", "--kwargs", type=Json(dict), help="Keyword arguments, as a JSON object.")
@click.option("--eta", "--start-at", "eta", type=Moment(), help="Run it then or later.")
@click.option("--countdown", type=Duration(), help="Run it after this long.")
@click.option("--expires", type=Later(), help="Do not begin it after that.")
@click.option("--queue", help="Put it there.")
@click.option("--priority", type=int, help="Higher runs first.")
@click.option("--task-id", help="The job's id, a UUID of yours.")
@click.option(
    "-w",
    "--wait",
    type=Duration(),
    metavar="[DURATION]",
    help="Wait for the result, so long or for ever, and print it.",
)
@pass_session
def call(
    session: Session,
    /,
    name: str,
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    wait: float | None,
    **options: Any,
) -> None:
    """Enqueue a task by its name and print the job's id.

    With -A the arguments are checked against the task, and its queue and priority are used. Without, the task
    need not be importable here.

    \b
    Example:
      pgtasks call shop.add -a '[2, 3]' --wait
      pgtasks call shop.send_email -k '{"to": "ann@example.com"}' --countdown 10m
    """
    if options["eta"] is not None and options["countdown"] is not None:
        raise click.UsageError("expected --eta or --countdown, found both")
    app = session.connect(tasks=True)
    if session.names_app():
        app.load()
        app.find_task(name)
    said = {option: value for option, value in options.items() if value is not None}
    try:
        enqueued = app.send_task(name, args or (), kwargs, **said)
    except (TypeError, ValueError) as error:
        if isinstance(error, PgTasksError):
            raise
        raise click.UsageError(f"{name}: {error}") from None
    if wait is None:
        output.show(session, {"id": enqueued.id}, lambda: click.echo(enqueued.id))
        return
    if not session.json:
        output.remark(session, enqueued.id)
    await_and_print(session, enqueued, wait or None)


def await_and_print(session: Session, enqueued: AsyncResult[Any], timeout: float | None) -> None:
    """Wait for a job and print what it gave; exit with 1 if it gave no result."""
    try:
        enqueued.get(timeout, propagate=False)
    except ResultTimeoutError as error:
        if not session.json:
            raise
        output.document({"id": enqueued.id, "state": enqueued.app.job(enqueued.id).state})
        raise click.ClickException(str(error)) from None
    print_result(session, enqueued.app.job(enqueued.id))


def print_result(session: Session, job: Any, *, traceback: bool = False) -> None:
    """Print what a job gave; exit with 1 if it gave no result."""
    value = output.json_value(job.result_json, "result")
    succeeded = job.state is JobState.SUCCEEDED

    def text() -> None:
        if succeeded:
            output.document(value)
        if traceback and job.error and job.error.traceback:
            output.block(job.error.traceback, indent=0)

    output.show(
        session,
        {
            "id": job.id,
            "task": job.task,
            "state": job.state,
            "result": value,
            "error": job.error,
        },
        text,
    )
    if not succeeded:
        raise click.ClickException(unsuccessful(job))


def unsuccessful(job: Any) -> str:
    """Say in one line why there is no result."""
    if job.error:
        why = f": {job.error.type}: {job.error.message}".rstrip(": ")
    else:
        why = f": {job.reason}" if job.reason else ""
    return f"job {job.id} {'' if job.state.finished else 'is '}{job.state}{why}"
