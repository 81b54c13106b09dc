"""What was said for the whole run: which app, which database, how to print; before or after the command."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pgtasks import App

# As libpq reads a URL: what stands before the first "@" and before any "/" is user:password.
URL_PASSWORD = re.compile(r"^[a-z]+://[^/@]*:[^/@]+@", re.IGNORECASE)
NAMED_PASSWORD = re.compile(r"\b(ssl)?password\s*=", re.IGNORECASE)


@dataclass(slots=True)
class Session:
    """The shared options of one run."""

    app_path: str | None = None
    dsn: str | None = None
    json: bool = False
    color: bool = True
    quiet: bool = False
    verbose: bool = False

    def load_app(self) -> App:
        """Import the app that was named.

        Raises:
            UsageError: none was named, or there is no such app.
            ClickException: its module raised.
        """
        path = self.app_path or os.environ.get("PGTASKS_APP")
        if not path:
            raise click.UsageError(
                "no app was named: say -A module or -A module:attribute, or set PGTASKS_APP"
            )
        from pgtasks_cli.loading import find_app

        app = find_app(path)
        if self.dsn:
            app.dsn = self.dsn
        return app

    def connect(self, *, tasks: bool = False, patience: float | None = None) -> App:
        """Return an app whose operations use one connection until the command ends.

        Args:
            tasks: load the named app for its tasks, also when --dsn says where the database is.
            patience: how long a statement may take, in seconds; None: as long as the server lets it.
        """
        app = self.load_app() if tasks and self.names_app() else self.database()
        # One connection and not the app's pool: it says at once when no database answers.
        context = click.get_current_context()
        context.call_on_close(app.close)
        connection = context.with_resource(app.pools.connect())
        context.with_resource(app.connection(connection))
        if patience is not None:
            connection.execute(f"set statement_timeout = {round(patience * 1000)}")
        return app

    def database(self) -> App:
        """Return an app for the database alone: --dsn, else the named app's, else PGTASKS_DSN."""
        from pgtasks import App

        return self.load_app() if self.names_app() and not self.dsn else App("cli", self.dsn)

    def names_app(self) -> bool:
        """Whether an app was named."""
        return bool(self.app_path or os.environ.get("PGTASKS_APP"))


pass_session = click.make_pass_decorator(Session)


def shared_options(*, hidden: bool) -> list[click.Parameter]:
    """Return the options that may stand anywhere; hidden leaves the less used ones out of the help."""
    return [
        option("-A", "--app", "app_path", metavar="MODULE[:ATTR]", help="The app.  [env: PGTASKS_APP]"),
        option(
            "--dsn",
            callback=keep_dsn,
            help="The database, without a password, or embedded:.  [env: PGTASKS_DSN]",
        ),
        option("--json", is_flag=True, help="Print one JSON document."),
        option("--workdir", callback=go_to, hidden=hidden, help="Change to this folder first."),
        option("-C", "--no-color", "color", flag_value=False, hidden=hidden, help="Print no colours."),
        option("-q", "--quiet", is_flag=True, hidden=hidden, help="Print no banner and no remarks."),
        option("-v", "--verbose", is_flag=True, hidden=hidden, help="Print tracebacks of errors."),
    ]  # fmt: skip


def option(*names: str, **settings: Any) -> click.Option:
    """Return an option whose value, if it is said, is kept in the session."""
    return click.Option(
        names, expose_value=False, **{"callback": keep, "default": None, **settings}
    )


def add_shared_options(command: click.Command) -> None:
    """Let a command, and those below it, take the shared options, once."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_shared_options(below)
    taken = {name for param in command.params for name in param.opts}
    command.params += [
        param for param in shared_options(hidden=True) if taken.isdisjoint(param.opts)
    ]
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])


def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Note what was said; what was not leaves alone what was said before the command."""
    if value is not None and param.name:
        setattr(ctx.ensure_object(Session), param.name, value)


def keep_dsn(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Note a DSN that has no password."""
    keep(ctx, param, without_password(ctx, param, value))


def without_password(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a password: everybody on the machine can read a process's arguments."""
    if value and _has_password(value):
        raise click.UsageError(
            "a password in --dsn can be read by everybody on this machine: set PGTASKS_DSN, "
            "or use a service file (--dsn service=name) or a passfile (~/.pgpass)",
            ctx,
        )
    return value


def _has_password(dsn: str) -> bool:
    from pgtasks.db.dsn import has_password

    # The patterns are for what libpq does not understand, and would quote in its message.
    return bool(has_password(dsn) or URL_PASSWORD.search(dsn) or NAMED_PASSWORD.search(dsn))


def go_to(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Change the folder before anything is imported from it."""
    if value is not None:
        try:
            os.chdir(value)
        except OSError as error:
            raise click.UsageError(f"--workdir {value}: {error.strerror}", ctx) from None
