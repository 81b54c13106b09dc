"""The connections of one app's callers: a pool a process, and an asynchronous one a running loop.

Opened at first use. After a fork the child drops what it inherited without closing it, since the
sockets are the parent's; so gunicorn --preload and a second ``asyncio.run`` both work.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import select
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgtasks.db.dsn import conninfo, describe
from pgtasks.db.watched import (
    AsyncWatchedConnection,
    WatchedConnection,
    aset_timeouts,
    set_timeouts,
)
from pgtasks.errors import ConnectError
from pgtasks.guard import guarded

# How long a call waits for a free connection, or for a database that is away, in seconds.
WAIT = 10.0
MAX_SIZE = 10
CLOSED = "the server closed the connection while it was idle"

Connection = WatchedConnection
AsyncConnection = AsyncWatchedConnection


class Pools:
    """The pools under one DSN."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.max_size = MAX_SIZE  # of pools that are opened from now on
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pool: ConnectionPool[Connection] | None = None
        self._async_pools: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, AsyncConnectionPool[AsyncConnection]
        ] = weakref.WeakKeyDictionary()
        self._inherited: list[
            object
        ] = []  # kept alive, so that no destructor closes the parent's sockets

    def connect(self) -> Connection:
        """Return a connection of its own, in autocommit mode; the caller closes it."""
        try:
            return WatchedConnection.connect(conninfo(self.dsn), autocommit=True)
        except psycopg.OperationalError as error:
            raise ConnectError(no_answer(self.dsn, error)) from error

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection in autocommit mode, guarded: no interrupt of a job comes in between."""
        with guarded():
            connection, give_back = self.borrow()
            try:
                yield connection
            finally:
                give_back()

    def borrow(self) -> tuple[Connection, Callable[[], None]]:
        """Take a connection in autocommit mode; the function gives it back."""
        pool = self._pool
        if pool is None or self._pid != os.getpid():
            pool = self._open()
        try:
            connection = pool.getconn()
        except PoolTimeout:
            self.connect().close()  # says why; or the pool was only busy
            raise ConnectError(self._busy()) from None
        # Not pool.connection(): its commit and bookkeeping cost 30 µs, and here every connection is in
        # autocommit mode. What an operation leaves open by failing, putconn() rolls back.
        return connection, partial(pool.putconn, connection)

    @asynccontextmanager
    async def aconnection(self) -> AsyncIterator[AsyncConnection]:
        """Lend an asynchronous connection in autocommit mode, guarded as `connection` is."""
        with guarded():
            connection, give_back = await self.aborrow()
            try:
                yield connection
            finally:
                await give_back()

    async def aborrow(self) -> tuple[AsyncConnection, Callable[[], Awaitable[None]]]:
        """Take an asynchronous connection in autocommit mode; the function gives it back."""
        pool = (
            self._async_pools.get(asyncio.get_running_loop()) if self._pid == os.getpid() else None
        )
        if pool is None:
            pool = await self._aopen()
        try:
            connection = await pool.getconn()
        except PoolTimeout:
            await asyncio.to_thread(lambda: self.connect().close())
            raise ConnectError(self._busy()) from None
        return connection, partial(pool.putconn, connection)

    def _busy(self) -> str:
        return f"no connection became free within {WAIT:g} s: {self.max_size} are in use"

    def close(self) -> None:
        """Close the synchronous pool; it opens again at the next use."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close()

    async def aclose(self) -> None:
        """Close the running loop's pool; it opens again at the next use."""
        pool = self._async_pools.pop(asyncio.get_running_loop(), None)
        if pool is not None and self._pid == os.getpid():
            await pool.close()

    def _open(self) -> ConnectionPool[Connection]:
        with self._lock:
            self._drop_inherited()
            if self._pool is None:
                self.connect().close()  # the pool would only time out; this says at once what is wrong
                self._pool = ConnectionPool(
                    conninfo(self.dsn),
                    connection_class=WatchedConnection,
                    kwargs={"autocommit": True},
                    configure=set_timeouts,
                    min_size=1,
                    max_size=self.max_size,
                    timeout=WAIT,
                    check=check_alive,
                    name="pgtasks",
                    open=True,
                )
                # Its threads must end before the interpreter does.
                atexit.register(_close_at_exit, weakref.ref(self))
            return self._pool

    async def _aopen(self) -> AsyncConnectionPool[AsyncConnection]:
        with self._lock:
            self._drop_inherited()
        address = await asyncio.to_thread(conninfo, self.dsn)  # may start a server
        await asyncio.to_thread(lambda: self.connect().close())  # says at once what is wrong
        loop = asyncio.get_running_loop()
        pool = self._async_pools.get(loop)
        if pool is None:
            pool = self._async_pools[loop] = AsyncConnectionPool(
                address,
                connection_class=AsyncWatchedConnection,
                kwargs={"autocommit": True},
                configure=aset_timeouts,
                min_size=1,
                max_size=self.max_size,
                timeout=WAIT,
                check=acheck_alive,
                name="pgtasks",
                open=False,
            )
            await pool.open()
        return pool

    def _drop_inherited(self) -> None:
        if self._pid != os.getpid():
            self._inherited += [self._pool, *self._async_pools.values()]
            self._pool = None
            self._async_pools = weakref.WeakKeyDictionary()
            self._pid = os.getpid()


def check_alive(connection: Connection) -> None:
    """Close an idle connection that the server closed, after a restart, say; the pool then replaces it.

    Raises:
        OperationalError: what the pool waits for.
    """
    if _has_news(connection.fileno()):
        connection.close()
        raise psycopg.OperationalError(CLOSED)


async def acheck_alive(connection: AsyncConnection) -> None:
    """Do what `check_alive` does, for an asynchronous pool."""
    if _has_news(connection.fileno()):
        await connection.close()
        raise psycopg.OperationalError(CLOSED)


def _has_news(socket: int) -> bool:
    """Whether there is something to read: on an idle connection that is the news of its end.

    Asking the kernel takes 2 µs; asking the server, as psycopg_pool's own check does, a round trip.
    """
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


def _close_at_exit(pools: weakref.ref[Pools]) -> None:
    alive = pools()
    if alive is not None:
        alive.close()


def no_answer(dsn: str, error: BaseException) -> str:
    """Say in one line that no database answered, and why, without the DSN's password."""
    reason = str(error).strip().splitlines()
    return (
        f"no database answered at {describe(dsn)}: {reason[0] if reason else type(error).__name__}"
    )
