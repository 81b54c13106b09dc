"""Waits for jobs and bundles to stop: woken by notification, polling beneath it.

A `Watch` says when to look, and for which ids; whoever waits does the looking. What is heard is a hint:
a notification may be lost, so there is a look at everything now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Set
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from pgtasks.context import current_request, having
from pgtasks.errors import ResultTimeoutError

if TYPE_CHECKING:
    from pgtasks.app import App

T = TypeVar("T")

FIRST_POLL = 0.05  # seconds between two looks at everything, growing to…
LAST_POLL = 1.0
# …or more, where a look takes long: a twentieth of the time at most goes into looks.
POLL_PER_LOOK = 20
SLOWEST_POLL = 5.0
APART = (
    0.05  # seconds between two looks for what was heard, so that a stream of news is taken in gulps
)

join_var: ContextVar[bool] = ContextVar("pgtasks_join", default=False)


class _Schedule:
    """When to look for ids, and for which: told by the listener's thread, asked by the waiter's."""

    def __init__(
        self, app: App, ids: Set[str], timeout: float | None, *, patient: bool = False
    ) -> None:
        self._app = app
        self._ids = ids
        self._timeout = timeout
        self._patient = patient
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._looked_at: float | None = None
        self._poll = FIRST_POLL
        self._poll_at = 0.0
        self._unsubscribe: Callable[[], None] | None = None
        # Both written by the listener's thread, and taken by the waiter's.
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._all_told = False

    def _wake(self) -> None:
        """Let the waiter ask `_left` again; called from the listener's thread."""
        raise NotImplementedError

    def _hear(self, channel: str, stopped: list[str] | None) -> None:
        told = None if stopped is None else self._ids & set(stopped)
        with self._lock:
            if told is None:
                self._all_told = True
            elif told:
                self._told |= told
            else:
                return
        self._wake()

    def _begin(self, what: str) -> None:
        """Begin a pause: listen from the second look on, since the first may be all that is needed."""
        if self._looked_at is None:
            return
        now = time.monotonic()
        if self._deadline is not None and self._looked_at >= self._deadline:
            raise ResultTimeoutError(f"{what} not finished after {self._timeout:g} s")
        slow = POLL_PER_LOOK * (now - self._looked_at)
        if self._unsubscribe is None:
            # What stopped after the first look and before this was told to nobody, so the next comes soon.
            self._unsubscribe = self._app.listener.subscribe(self._hear)
            slow = 0.0
        if self._poll_at <= self._looked_at:
            self._poll_at = now + max(self._poll, min(slow, SLOWEST_POLL))
            self._poll = min(self._poll * 1.5, LAST_POLL)

    def _left(self, open: Set[str]) -> float:
        """Return how many seconds there are until the next look."""
        if self._looked_at is None:
            return 0.0
        at = self._poll_at
        with self._lock:
            if self._all_told:
                return 0.0
            told = len(self._told & open)
        if told and (told == len(open) or not self._patient):
            at = min(at, self._looked_at + (0.0 if told == len(open) else APART))
        if self._deadline is not None:
            at = min(at, self._deadline)
        return at - time.monotonic()

    def _take(self, open: Set[str]) -> Set[str]:
        """Return which ids to look for: all that are open, or those that were told."""
        now = time.monotonic()
        with self._lock:
            told, self._told = self._told & open, set()
            everything, self._all_told = self._all_told, False
        over = self._deadline is not None and now >= self._deadline
        everything = everything or over or self._looked_at is None or now >= self._poll_at
        self._looked_at = now
        if everything:
            self._poll_at = now  # the next pause puts it off
        return open if everything else told

    def _end(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()


class Watch(_Schedule):
    """Says when to look for ids that may have stopped; use it in a ``with`` block.

    Args:
        app: whose listener is asked.
        ids: jobs or bundles.
        timeout: for how long, in seconds; None: as long as it takes.
        patient: only the last of them matters: do not look each time that one is told.
    """

    def __init__(
        self, app: App, ids: Set[str], timeout: float | None, *, patient: bool = False
    ) -> None:
        super().__init__(app, ids, timeout, patient=patient)
        self._heard = threading.Event()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def pause(self, open: Set[str], what: str) -> Set[str]:
        """Wait until a look is due, at once for the first one, and return which ids to look for.

        Args:
            open: those that have not been seen to stop.
            what: for the message: who is not finished, with its verb.

        Raises:
            ResultTimeoutError: the time was over before the last look.
        """
        self._begin(what)
        while (left := self._left(open)) > 0:
            self._heard.wait(left)
            self._heard.clear()
        return self._take(open)

    def _wake(self) -> None:
        self._heard.set()


class AsyncWatch(_Schedule):
    """Says when to look for ids that may have stopped; the twin of `Watch`."""

    def __init__(
        self, app: App, ids: Set[str], timeout: float | None, *, patient: bool = False
    ) -> None:
        import asyncio  # here, since it takes long to load and only callers of this have it anyway

        super().__init__(app, ids, timeout, patient=patient)
        self._heard = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> AsyncWatch:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    async def pause(self, open: Set[str], what: str) -> Set[str]:
        """Wait until a look is due; see `Watch.pause`."""
        from asyncio import wait_for

        self._begin(what)
        while (left := self._left(open)) > 0:
            with suppress(TimeoutError):  # then it is time to look
                await wait_for(self._heard.wait(), left)
            self._heard.clear()
        return self._take(open)

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._heard.set)


def wait(app: App, id: str, look: Callable[[], T | None], timeout: float | None, what: str) -> T:
    """Return what ``look`` finds, as soon as it finds something.

    Looks first, once the listener is up, whenever the id is told, and now and then.

    Raises:
        ResultTimeoutError: nothing was found within ``timeout`` seconds.
    """
    with Watch(app, {id}, timeout) as watch:
        while True:
            watch.pause({id}, what)
            found = look()
            if found is not None:
                return found


async def await_(
    app: App, id: str, look: Callable[[], Awaitable[T | None]], timeout: float | None, what: str
) -> T:
    """Return what ``look`` finds, as soon as it finds something; the twin of `wait`."""
    with AsyncWatch(app, {id}, timeout) as watch:
        while True:
            await watch.pause({id}, what)
            found = await look()
            if found is not None:
                return found


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let tasks wait for other jobs' results in this block: as ``disable_sync_subtasks=False`` at each call."""
    with having(join_var, True):
        yield


def refuse_inside_task(refuse: bool, what: str = "get()") -> None:
    """Refuse to wait inside of a task, unless that is allowed.

    Raises:
        RuntimeError: a task runs here.
    """
    if refuse and not join_var.get() and current_request() is not None:
        raise RuntimeError(
            f"{what} inside of a task may wait for ever, since the job may need this very child: "
            "use a callback, or say disable_sync_subtasks=False, or with allow_join_result()"
        )
