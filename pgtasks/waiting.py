"""Waits for jobs and bundles to stop: woken by notification, polling beneath it."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from pgtasks.errors import ResultTimeoutError

if TYPE_CHECKING:
    from pgtasks.app import App

T = TypeVar("T")

FIRST_POLL = 0.05  # seconds between two looks, growing to…
LAST_POLL = 1.0


def wait(
    app: App, ids: set[str], look: Callable[[], T | None], timeout: float | None, what: str
) -> T:
    """Return what ``look`` finds, as soon as it finds something.

    Looks first, once the listener is up, whenever one of the ids is told, and now and then.

    Raises:
        ResultTimeoutError: nothing was found within ``timeout`` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    found = look()
    if found is not None:
        return found
    heard = threading.Event()

    def hear(channel: str, stopped: list[str] | None) -> None:
        if stopped is None or not ids.isdisjoint(stopped):
            heard.set()

    unsubscribe = app.listener.subscribe(hear)
    try:
        poll = FIRST_POLL
        while True:
            left = poll if deadline is None else min(poll, deadline - time.monotonic())
            heard.wait(max(0.0, left))
            heard.clear()
            found = look()
            if found is not None:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise ResultTimeoutError(f"{what} is not finished after {timeout:g} s")
            poll = min(poll * 1.5, LAST_POLL)
    finally:
        unsubscribe()


async def await_(
    app: App,
    ids: set[str],
    look: Callable[[], Awaitable[T | None]],
    timeout: float | None,
    what: str,
) -> T:
    """Return what ``look`` finds, as soon as it finds something; the twin of `wait`."""
    import asyncio  # here, since it takes long to load and only callers of this have it anyway

    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    found = await look()
    if found is not None:
        return found
    heard = asyncio.Event()

    def hear(channel: str, stopped: list[str] | None) -> None:
        if (stopped is None or not ids.isdisjoint(stopped)) and not loop.is_closed():
            loop.call_soon_threadsafe(heard.set)

    unsubscribe = app.listener.subscribe(hear)
    try:
        poll = FIRST_POLL
        while True:
            left = poll if deadline is None else min(poll, deadline - loop.time())
            with suppress(TimeoutError):  # then it is time to poll
                await asyncio.wait_for(heard.wait(), max(0.0, left))
            heard.clear()
            found = await look()
            if found is not None:
                return found
            if deadline is not None and loop.time() >= deadline:
                raise ResultTimeoutError(f"{what} is not finished after {timeout:g} s")
            poll = min(poll * 1.5, LAST_POLL)
    finally:
        unsubscribe()
