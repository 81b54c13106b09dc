"""Faults on a throw-away server that keeps its promises: fsync is on.

One server a module (``SETTINGS`` there adds to it), emptied for each test; see tests/README.md.
"""

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
from tests.fixtures.database import empty
from tests.fixtures.producer import Producer
from tests.fixtures.proxy import Proxy
from tests.fixtures.workers import Workers, gate, runs

__all__ = ["gate", "runs"]

SETTINGS = {"fsync": "on", "max_connections": "60", "max_prepared_transactions": "20"}


@pytest.fixture
def rng() -> random.Random:
    """Chance that can be had again: ``PGTASKS_CHAOS_SEED=…``."""
    seed = int(os.environ.get("PGTASKS_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"PGTASKS_CHAOS_SEED={seed}")  # noqa: T201 (shown if the test fails)
    return random.Random(seed)


class Scale:
    """How large the tests are: 1 in the short profile, ``PGTASKS_CHAOS_SCALE=…`` in the long one."""

    def __init__(self) -> None:
        self.factor = float(os.environ.get("PGTASKS_CHAOS_SCALE") or 1)

    def __call__(self, number: int, most: int = 1_000_000) -> int:
        """Return this many, or more in the long profile, up to ``most``."""
        return max(1, min(most, round(number * self.factor)))

    def seconds(self, number: float, most: float = 60.0) -> float:
        """Return this long, or longer in the long profile, up to ``most``."""
        return min(most, number * self.factor)

    def share(self, number: float) -> float:
        """Return which share of a rate must be reached; less in the short profile, whose windows are short."""
        return number if self.factor > 1 else number - 0.3


@pytest.fixture(scope="session")
def scale() -> Scale:
    """Sizes for both profiles: ``scale(300, most=10_000)``."""
    return Scale()


@pytest.fixture(scope="module")
def module_server(request: pytest.FixtureRequest) -> Iterator[TemporaryServer]:
    """A migrated server for one module; tests take ``server``."""
    with temporary_server({**SETTINGS, **getattr(request.module, "SETTINGS", {})}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            migrations.migrate(connection)
        yield server


@pytest.fixture
def server(module_server: TemporaryServer) -> Iterator[TemporaryServer]:
    """The module's server, running and empty; the sample app uses it."""
    module_server.start()  # in case that the last test failed while it was down
    empty(module_server.dsn)
    sample_app.app.dsn = module_server.dsn
    try:
        yield module_server
    finally:
        sample_app.app.close()


@pytest.fixture(autouse=True)
def producers_end() -> Iterator[None]:
    """Leave no producer running."""
    yield
    Producer.stop_all()


@pytest.fixture
def workers(server: TemporaryServer, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers on ``server``."""
    workers = Workers(server.dsn, tmp_path)
    try:
        yield workers
    finally:
        workers.end()


@pytest.fixture
def proxy(server: TemporaryServer) -> Iterator[Proxy]:
    """A proxy in front of ``server``; workers come through it by `through`."""
    proxy = Proxy(server.dsn)
    try:
        yield proxy
    finally:
        proxy.close()


def through(proxy: Proxy) -> dict[str, str]:
    """Return the environment of a worker that connects through a proxy."""
    return {"PGTASKS_DSN": proxy.dsn}


class Look:
    """Asks the server, on a connection that is opened anew when it broke."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.connection: psycopg.Connection[Any] | None = None

    def open(self) -> psycopg.Connection[Any]:
        if self.connection is None or self.connection.broken or self.connection.closed:
            self.connection = psycopg.connect(self._dsn, autocommit=True, application_name="test")
        return self.connection

    def one(self, query: str, *parameters: object) -> Any:
        """Return the single value that a query gives."""
        row = self.open().execute(query, parameters).fetchone()
        assert row is not None
        return row[0]

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
