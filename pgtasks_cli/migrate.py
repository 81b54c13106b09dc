"""``pgtasks migrate``: installs the schema, brings it up to date, or says whether it is."""

from __future__ import annotations

import click

from pgtasks_cli import output
from pgtasks_cli.session import Session, pass_session


@click.command()
@click.option("--sql", is_flag=True, help="Print the whole schema as a script; needs no database.")
@click.option(
    "--check", is_flag=True, help="Change nothing; exit with 4 if the version is not right."
)
@click.option(
    "--roles",
    is_flag=True,
    help="Also create the roles of producers, workers, inspectors and admins, and grant; with --sql: print how.",
)
@pass_session
def migrate(session: Session, sql: bool, check: bool, roles: bool) -> None:
    """Bring the schema to this release's version.

    Safe to run at any time, and by many at once: who finds nothing to do does nothing.

    \b
    Example:
      pgtasks migrate
      pgtasks migrate --roles
      pgtasks migrate --sql | psql mydb
    """
    from pgtasks.db import migrations

    if check and (sql or roles):
        raise click.UsageError(f"expected --check or {'--sql' if sql else '--roles'}, found both")
    if sql:
        click.echo(migrations.roles_script() if roles else migrations.script(), nl=False)
        return
    app = session.database()
    if check:
        with app.pools.connect() as connection:
            migrations.check(connection)
            version = migrations.installed_version(connection)
        applied = []
    else:
        applied = app.migrate()
        version = applied[-1] if applied else migrations.code_version()
        if roles:
            with app.pools.connect() as connection:
                migrations.grant_roles(connection)
    names = [
        f"{known.version:04}_{known.name}"
        for known in migrations.known()
        if known.version in applied
    ]

    def text() -> None:
        for name in names:
            click.echo(f"applied {name}")
        if not session.quiet:
            click.echo(f"schema is at version {version}" + ("" if names else ": nothing to do"))
            if roles:
                click.echo("roles are granted: pgtasks_producer, _worker, _inspector, _admin")

    output.show(session, {"version": version, "applied": names, "roles": roles}, text)
