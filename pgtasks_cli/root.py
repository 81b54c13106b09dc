"""The root command: which subcommands there are, and how a run of one ends.

Subcommands are loaded when they are run: `pgtasks worker` does not pay for `pgtasks jobs`, and
`pgtasks --help` loads none of them.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from pgtasks_cli.session import Session, add_shared_options, shared_options

FAILED = 1
USAGE = 2
NO_DATABASE = 3
WRONG_SCHEMA = 4
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Lazy(NamedTuple):
    """Where a subcommand is, and its line in the help."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "worker": Lazy("pgtasks_cli.worker", "worker", "Run jobs until told to stop."),
    "beat": Lazy("pgtasks_cli.beat", "beat", "Enqueue what schedules have due, and run no job."),
    "migrate": Lazy("pgtasks_cli.migrate", "migrate", "Bring the schema to this release's version."),
    "call": Lazy("pgtasks_cli.call", "call", "Enqueue a task by its name and print the job's id."),
    "result": Lazy("pgtasks_cli.result", "result", "Print what a job returned."),
    "status": Lazy("pgtasks_cli.status", "status", "Count jobs and bundles by state."),
    "jobs": Lazy("pgtasks_cli.jobs", "jobs", "Look at jobs, and retry, reschedule, cancel or delete them."),
    "bundles": Lazy("pgtasks_cli.bundles", "bundles", "Look at bundles, and retry, cancel or delete them."),
    "schedules": Lazy("pgtasks_cli.schedules", "schedules", "Look at schedules, and pause, run or change them."),
    "queues": Lazy("pgtasks_cli.queues", "queues", "Look at queues, and pause, limit, move or purge them."),
    "tasks": Lazy("pgtasks_cli.tasks", "tasks", "Look at tasks, and pause or resume them."),
    "inspect": Lazy("pgtasks_cli.inspect", "inspect", "Show what workers do and know."),
    "health": Lazy("pgtasks_cli.health", "health", "Say by the exit code whether the workers of this host are alive."),
    "purge": Lazy("pgtasks_cli.purge", "purge", "Cancel every job that waits in a queue."),
    "demo": Lazy("pgtasks_cli.demo", "demo", "See it work: 1,500 real jobs, 4 processes, a private PostgreSQL."),
    "bench": Lazy("pgtasks_cli.bench", "command", "Measure what this machine and its PostgreSQL can do."),
}  # fmt: skip


class Root(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a subcommand; it takes the shared options, too."""
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        try:
            command = getattr(importlib.import_module(found.module), found.attribute)
        except ModuleNotFoundError as error:
            if error.name != found.module:
                raise
            raise click.UsageError(f"'{cmd_name}' is not part of this installation") from None
        assert isinstance(command, click.Command)
        add_shared_options(command)
        self.hand_down(ctx, cmd_name, command)
        return command

    def hand_down(self, ctx: click.Context, name: str, command: click.Command) -> None:
        """Let what was said before a command hold for it, too, if it has such an option of its own."""
        session = ctx.find_object(Session) or Session()
        said = {"--dsn": session.dsn, "--json": "-" if session.json else None}
        ctx.default_map = {
            name: {
                param.name: said[option]
                for param in command.params
                for option in param.opts
                if param.expose_value and said.get(option) is not None
            }
        }

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.summary) for name, found in COMMANDS.items()])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and say in one line on stderr what went wrong."""
        session = Session()
        main: Callable[..., object] = super().main

        def run() -> object:
            return main(*args, standalone_mode=False, obj=session, **extra)

        if not standalone_mode:
            return run()
        sys.exit(finish(run, session))


def finish(run: Callable[[], object], session: Session) -> int:
    """Run a command and return its exit code."""
    try:
        code = run()
    except click.Abort as abort:
        why = abort.__cause__ or abort.__context__
        if isinstance(why, KeyboardInterrupt):
            return INTERRUPTED
        if isinstance(why, EOFError):
            click.echo(err=True)  # ends the line of the question
        return fail("not confirmed, nothing was done (--force does not ask)", FAILED)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later
            error.show()
            return USAGE
        context = error.ctx
        hint = f" (see '{context.command_path} --help')" if context else ""
        return fail(error.format_message().rstrip(".") + hint, USAGE)
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the top of a process)
        return explain(error, session)
    return code if isinstance(code, int) else 0


def explain(error: Exception, session: Session) -> int:
    """Say what went wrong and return the exit code for it; a bug of ours keeps its traceback."""
    from pgtasks.errors import (
        ConfigurationError,
        ConnectError,
        EmbeddedError,
        PgTasksError,
        SchemaError,
    )

    refused = type(error).__module__.partition(".")[0] == "psycopg"
    if session.verbose or not (refused or isinstance(error, PgTasksError)):
        traceback.print_exception(error)
    match error:
        case SchemaError():
            return fail(str(error), WRONG_SCHEMA)
        case ConnectError() | EmbeddedError():
            return fail(str(error), NO_DATABASE)
        case ConfigurationError():
            return fail(str(error), USAGE)
        case PgTasksError():
            return fail(str(error), FAILED)
        case _ if refused:
            return fail(f"the database refused: {str(error).partition(chr(10))[0]}", FAILED)
        case _:
            return FAILED


def fail(message: str, code: int) -> int:
    """Print one line on stderr, with nothing in it that a terminal obeys, and return the code."""
    line = "".join(
        one if one.isprintable() else repr(one)[1:-1] for one in " ".join(message.split())
    )
    click.echo(f"pgtasks: {line}", err=True)
    return code


def print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the version and end, before anything else is looked at."""
    if value and not ctx.resilient_parsing:
        from pgtasks.version import VERSION

        click.echo(f"pgtasks {VERSION}")
        ctx.exit()


@click.group(
    cls=Root,
    params=shared_options(hidden=False),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """A task queue for Python that needs nothing but PostgreSQL.

    The options below may stand before the command or after it.

    \b
    Example:
      export PGTASKS_DSN=postgresql://user@localhost/mydb
      pgtasks migrate
      pgtasks worker -A shop -c 4
      pgtasks call shop.send_email -k '{"to": "ann@example.com"}' --wait

    \b
    Exit codes: 0 done or stopped cleanly, 1 failed, 2 usage, 3 no database,
    4 schema not at the right version, 69 nobody answered.
    """
