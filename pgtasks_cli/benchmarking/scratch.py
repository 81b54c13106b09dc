"""A database of the benchmarks' own: made on the given server, migrated, dropped afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgtasks.db import migrations
from pgtasks.db.dsn import conninfo
from pgtasks.db.pools import Pools
from pgtasks_cli.benchmarking.figures import Server

if TYPE_CHECKING:
    import psycopg

# What decides how fast a server writes, or how it plans.
SETTINGS = (
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_compression",
    "wal_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "work_mem",
    "jit",
    "track_io_timing",
    "shared_preload_libraries",
)

# All that a run leaves behind; the schema's version and its partitions stay.
TABLES = (
    "job, unique_key, claim, job_history, job_bundle, worker, task, listener, schedule, schedule_tick, "
    "schedule_declaration, queue, job_limit, job_rate, task_gate, rate_bucket, turn"
)


class Scratch:
    """The database that the benchmarks work in.

    Args:
        dsn: where it is.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._pools = Pools(dsn)

    def connect(self) -> psycopg.Connection[Any]:
        """Return a plain connection in autocommit mode; the caller closes it."""
        return self._pools.connect()

    def empty(self) -> None:
        """Forget all jobs, and write out what is dirty, so that each run begins alike."""
        names = ", ".join(f"pgtasks.{name}" for name in TABLES.split(", "))
        with self.connect() as connection:
            connection.execute(f"truncate {names}".encode())
            if _first(connection, "select rolsuper from pg_roles where rolname = current_user"):
                connection.execute("checkpoint")

    def server(self) -> Server:
        """Return the server's version and those settings that matter here."""
        with self.connect() as connection:
            rows = connection.execute(
                "select name, current_setting(name) from pg_settings where name = any(%s)",
                (list(SETTINGS),),
            ).fetchall()
            version = str(_first(connection, "select current_setting('server_version')"))
        found = dict(rows)
        return Server(
            version=version, settings={name: found[name] for name in SETTINGS if name in found}
        )


@contextmanager
def scratch_database(dsn: str) -> Iterator[Scratch]:
    """Make the database for a block, and drop it afterwards.

    Args:
        dsn: a server, and a role that may create databases there. Nothing that exists is touched.
    """
    address = conninfo(dsn)  # starts the private server, if that is meant
    pools = Pools(address)
    with pools.connect() as server:
        name = _free_name(server)
        server.execute(f"create database {name} template template0".encode())
    try:
        scratch = Scratch(f"{address} dbname={name}")  # of two, libpq takes the last
        with scratch.connect() as connection:
            migrations.migrate(connection)
        yield scratch
    finally:
        with pools.connect() as server:
            server.execute(f"drop database {name} with (force)".encode())


def _free_name(server: psycopg.Connection[Any]) -> str:
    """Return a name that no database has: one of a killed run, with our pid, is not ours to drop."""
    taken = {row[0] for row in server.execute("select datname from pg_database").fetchall()}
    name = own = f"pgtasks_bench_{os.getpid()}"
    number = 1
    while name in taken:
        number += 1
        name = f"{own}_{number}"
    return name


def _first(connection: psycopg.Connection[Any], statement: str) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    return None if row is None else row[0]
