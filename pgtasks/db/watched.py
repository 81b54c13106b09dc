"""Connections that do not wait for ever: a server that takes a statement and never answers breaks them.

TCP keepalives and ``tcp_user_timeout`` notice a dead host. They do not notice a proxy that lost its server, or
a server process that stands still, since a kernel goes on acknowledging. So each wait for the server ends
after `REPLY_TIMEOUT` without a byte. The server itself gives statements and locks up before that.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg

REPLY_TIMEOUT = 20.0  # seconds without anything from the server
# On the server. Of what callers do here (a COPY of 100,000 jobs takes about 2 s), nothing comes near.
STATEMENT_TIMEOUT = "15s"
LOCK_TIMEOUT = "10s"

SETTINGS = f"set statement_timeout = '{STATEMENT_TIMEOUT}'; set lock_timeout = '{LOCK_TIMEOUT}'"
# For the rest of a transaction that runs a user's own statements, which may take what time they need.
NO_SETTINGS = "set local statement_timeout = 0; set local lock_timeout = 0"

NOTHING_READY = 0  # psycopg.waiting.Ready.NONE: the pause between two looks for Ctrl-C is over


class WatchedConnection(psycopg.Connection[Any]):
    """A synchronous connection that gives up on a silent server."""

    reply_timeout: float | None = REPLY_TIMEOUT

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Drive one conversation with the server; see psycopg."""
        return super().wait(watched(gen, self), *args, **kwargs)


class AsyncWatchedConnection(psycopg.AsyncConnection[Any]):
    """An asynchronous connection that gives up on a silent server."""

    reply_timeout: float | None = REPLY_TIMEOUT

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Drive one conversation with the server; see psycopg."""
        return await super().wait(watched(gen, self), *args, **kwargs)


def watched(
    gen: Generator[Any, Any, Any], connection: WatchedConnection | AsyncWatchedConnection
) -> Generator[Any, Any, Any]:
    """Pass a conversation through, and break the connection when the server is silent for too long.

    Raises:
        OperationalError: it was.
    """
    heard_at = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready != NOTHING_READY:
                heard_at = time.monotonic()
            elif (
                connection.reply_timeout is not None
                and time.monotonic() - heard_at > connection.reply_timeout
            ):
                gen.close()
                connection.pgconn.finish()
                raise psycopg.OperationalError(f"no reply within {connection.reply_timeout:g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


def set_timeouts(connection: psycopg.Connection[Any]) -> None:
    """Let the server give up in time, too."""
    connection.execute(SETTINGS)


async def aset_timeouts(connection: psycopg.AsyncConnection[Any]) -> None:
    """Let the server give up in time, too."""
    await connection.execute(SETTINGS)
