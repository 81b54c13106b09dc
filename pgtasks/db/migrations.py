"""Brings the schema to this release's version, forward only, and refuses what does not fit.

`migrate` runs each missing migration in a transaction of its own, under an advisory lock, and
records it in ``pgtasks.migrations``. The schema also records the oldest code that may run on it
(``min_code_version``), so that a pod of the previous release may restart during an upgrade.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg

from pgtasks.db.statements import schema_folder
from pgtasks.errors import DatabaseError, SchemaError

RECORD = "insert into pgtasks.migrations (version, name, min_code_version) values"
LOCK_KEY = 7236411  # any number that only pgtasks uses; one process migrates at a time


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of schema/migrations."""

    version: int
    name: str
    sql: str
    # The oldest code version that still works on a schema with this migration applied. A file says
    # so in a line "-- min code version: 3" when it breaks older code.
    min_code_version: int


@cache
def known() -> tuple[Migration, ...]:
    """Return the migrations that this release ships, in order."""
    found: list[Migration] = []
    for path in sorted((schema_folder() / "migrations").glob("[0-9]*.sql")):
        version, name = int(path.stem[:4]), path.stem[5:]
        sql = path.read_text(encoding="utf-8")
        said = re.search(r"^-- min code version: (\d+)$", sql, re.MULTILINE)
        minimum = int(said[1]) if said else (found[-1].min_code_version if found else 1)
        found.append(Migration(version, name, sql, minimum))
    return tuple(found)


def code_version() -> int:
    """Return the schema version that this release knows."""
    return known()[-1].version


def installed_version(connection: psycopg.Connection[Any]) -> int:
    """Return the version of the schema in the database; 0 if there is none."""
    return _installed(connection)[0]


def check(connection: psycopg.Connection[Any]) -> None:
    """Raise SchemaError unless this code may run on the schema in the database."""
    version, minimum = _installed(connection)
    if version == 0:
        raise SchemaError(
            "the schema pgtasks is not installed in this database: run 'pgtasks migrate'"
        )
    if version < code_version():
        raise SchemaError(
            f"schema is at version {version}, this release needs {code_version()}: run 'pgtasks migrate'"
        )
    if minimum > code_version():
        raise SchemaError(
            f"schema is at version {version} and needs code that knows version {minimum}, this release knows "
            f"{code_version()}: run 'pip install --upgrade pgtasks'"
        )


def migrate(connection: psycopg.Connection[Any]) -> list[int]:
    """Apply what is missing and return the versions applied; nothing to do returns an empty list.

    Args:
        connection: an autocommit connection of a role that may create the schema.

    Raises:
        SchemaError: the schema is newer than this release; nothing was changed.
    """
    applied: list[int] = []
    for migration in known():
        with connection.transaction():
            connection.execute("select pg_advisory_xact_lock(%s)", (LOCK_KEY,))
            version = installed_version(connection)
            if version > code_version():
                raise SchemaError(
                    f"schema is at version {version}, this release knows only {code_version()}: "
                    "run 'pip install --upgrade pgtasks', an older release never changes a newer schema"
                )
            if migration.version <= version:
                continue
            connection.execute(migration.sql.encode())
            connection.execute(
                RECORD + " (%s, %s, %s)",
                (migration.version, migration.name, migration.min_code_version),
            )
            applied.append(migration.version)
    if applied and has_roles(connection):
        grant_roles(connection)  # a function that was made anew has lost what was granted
    return applied


def has_roles(connection: psycopg.Connection[Any]) -> bool:
    """Whether schema/roles.sql was applied to this database."""
    row = connection.execute(
        "select coalesce((select has_schema_privilege(oid, 'pgtasks', 'usage') from pg_roles"
        " where rolname = 'pgtasks_worker'), false)"
    ).fetchone()
    return bool(row and row[0])


def grant_roles(connection: psycopg.Connection[Any]) -> None:
    """Create the roles that are missing, and grant; may be done again at any time.

    Raises:
        DatabaseError: the connection's role may not do that; the message says who may.
    """
    try:
        with connection.transaction():
            connection.execute("select pg_advisory_xact_lock(%s)", (LOCK_KEY,))
            connection.execute(roles_script().encode())
    except psycopg.errors.InsufficientPrivilege as error:
        why = error.diag.message_primary or ""
        if why.startswith("role "):
            raise DatabaseError(why) from None
        raise DatabaseError(
            f"the database refused to grant ({why}): run 'pgtasks migrate --roles' as the role that owns the "
            "schema pgtasks, or as a superuser"
        ) from None


def roles_script() -> str:
    """Return the SQL that creates the roles and grants."""
    return (schema_folder() / "roles.sql").read_text(encoding="utf-8")


def script() -> str:
    """Return the whole schema as one SQL script, for those who apply it by other means."""
    parts = ["begin;\n"]
    for migration in known():
        parts.append(migration.sql)
        parts.append(
            f"{RECORD} ({migration.version}, '{migration.name}', {migration.min_code_version});\n"
        )
    parts.append("commit;\n")
    return "\n".join(parts)


def _installed(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    row = connection.execute("select to_regclass('pgtasks.migrations')::text").fetchone()
    if row is None or row[0] is None:
        return 0, 0
    row = connection.execute(
        "select coalesce(max(version), 0), coalesce(max(min_code_version), 0) from pgtasks.migrations"
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)
