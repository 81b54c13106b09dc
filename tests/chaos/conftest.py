"""Faults on a throw-away server that keeps its promises: fsync is on."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgtasks.db import migrations
from pgtasks.db.embedded import TemporaryServer, temporary_server
from tests.fixtures import sample_app
from tests.fixtures.workers import Workers, gate, runs

__all__ = ["gate", "runs"]


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be had again: ``PGTASKS_CHAOS_SEED=…``."""
    seed = int(os.environ.get("PGTASKS_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"PGTASKS_CHAOS_SEED={seed}")  # noqa: T201 (shown if the test fails)
    return random.Random(seed)


@pytest.fixture
def server() -> Iterator[TemporaryServer]:
    """A migrated server of its own; the sample app uses it."""
    with temporary_server({"fsync": "on", "max_connections": "50"}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            migrations.migrate(connection)
        sample_app.app.dsn = server.dsn
        try:
            yield server
        finally:
            sample_app.app.close()


@pytest.fixture
def workers(server: TemporaryServer, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers on ``server``."""
    workers = Workers(server.dsn, tmp_path)
    try:
        yield workers
    finally:
        workers.end()


class Look:
    """Asks the server, on a connection that is opened anew when it broke."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.connection: psycopg.Connection[Any] | None = None

    def open(self) -> psycopg.Connection[Any]:
        if self.connection is None or self.connection.broken or self.connection.closed:
            self.connection = psycopg.connect(self._dsn, autocommit=True, application_name="test")
        return self.connection

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def look(server: TemporaryServer) -> Iterator[Look]:
    """A connection of the test's own: ``look.open()``, again after each restart."""
    look = Look(server.dsn)
    try:
        yield look
    finally:
        look.close()
