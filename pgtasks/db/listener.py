"""One connection a process that hears which jobs and bundles stopped.

Waiters subscribe; a thread listens while there are any, and a little longer. It registers itself in
``pgtasks.listener`` first, so that workers tell; then the waiters look; then they wait. What is heard
is a hint: whoever waits also polls, since a notification may be lost.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from pgtasks import events
from pgtasks.db import operations
from pgtasks.db.run import run
from pgtasks.errors import PgTasksError
from pgtasks.ids import new_id

JOB_CHANNEL = "pgtasks_job_stopped"
BUNDLE_CHANNEL = "pgtasks_job_bundle_stopped"

LINGER = 10.0  # seconds without waiters until the connection is given up
RENEW = 30.0  # seconds; upkeep removes rows of processes that were silent for two minutes
RETRY = 1.0  # seconds until a lost connection is opened again

# Called from the listener's thread with what stopped, "id" or "id+" (will be retried); with None when
# something may have been missed and a look is due.
Callback = Callable[[str, list[str] | None], None]


class Listener:
    """Hears of stopped jobs and bundles in a thread of its own, for all waiters of a process."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        # The waiters' threads add and remove callbacks; the listener's thread reads them.
        self._lock = threading.Lock()
        self._callbacks: list[Callback] = []
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._stop = threading.Event()

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call back for everything that stops from now on; returns a function that ends it."""
        with self._lock:
            if self._pid != os.getpid():  # a fork inherits no thread
                self._pid, self._thread, self._callbacks = os.getpid(), None, []
            self._callbacks.append(callback)
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="pgtasks-listener", daemon=True
                )
                self._thread.start()

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    def close(self) -> None:
        """End the thread and its connection; waiters go on polling."""
        with self._lock:
            thread = self._thread if self._pid == os.getpid() else None
            self._thread = None
            self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with self._connect() as connection:
                    self._listen(connection, stop)
                    return
            except (psycopg.Error, PgTasksError, OSError) as error:
                events.emit("listener.failed", error=str(error))
                self._tell(JOB_CHANNEL, None)
                self._tell(BUNDLE_CHANNEL, None)
                if self._idle():
                    return
                stop.wait(RETRY)

    def _listen(self, connection: psycopg.Connection[Any], stop: threading.Event) -> None:
        listener_id = new_id()
        connection.execute(f"listen {JOB_CHANNEL}")
        connection.execute(f"listen {BUNDLE_CHANNEL}")
        run(connection, operations.register_listener(listener_id))
        self._tell(JOB_CHANNEL, None)
        self._tell(BUNDLE_CHANNEL, None)
        renewed = used = time.monotonic()
        while not stop.is_set():
            for notification in connection.notifies(timeout=0.25, stop_after=1):
                self._tell(notification.channel, notification.payload.split(","))
            now = time.monotonic()
            if self._callbacks:
                used = now
            elif now - used > LINGER and self._idle():
                break
            if now - renewed > RENEW:
                run(connection, operations.register_listener(listener_id))
                renewed = now
        run(connection, operations.deregister_listener(listener_id))

    def _idle(self) -> bool:
        """Give up the thread if nobody waits; decided under the lock, so that no waiter is left alone."""
        with self._lock:
            if self._callbacks:
                return False
            self._thread = None
            return True

    def _tell(self, channel: str, stopped: list[str] | None) -> None:
        with self._lock:
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            callback(channel, stopped)
