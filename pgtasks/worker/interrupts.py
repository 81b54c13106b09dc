"""Interrupts on their way to jobs: from the slate, where the parent leaves orders, into the job's own code.

The parent writes an order into the slot of a job and sends the signal ASK. Python runs handlers in the main
thread, between two steps of whatever that does. From there an interrupt goes

- into a job of the main thread by raising it in the handler,
- into a job of another thread as an asynchronous exception, one a job at most: who got one cannot be told
  whether it has arrived,
- into a coroutine as the cancellation of its asyncio task, which `Interruptible` turns into the exception
  that is meant.

The job's `Guard` says whether that may be now. What comes while it may not waits there.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Awaitable, Coroutine, Generator
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

from pgtasks.errors import Cancelled, SoftTimeLimitExceeded
from pgtasks.guard import Guard
from pgtasks.worker.messages import Order

if TYPE_CHECKING:
    from pgtasks.worker.slate import Slate

# A prototype of its own: argument types of ctypes.pythonapi are everybody's.
_set_async_exc = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)
_clear_async_exc = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)

SOFT = "the soft time limit is over"
CANCEL = "the job was cancelled"


# They are cancellations as well: whoever has to clean up when a coroutine is cancelled (psycopg its query, a
# TaskGroup its tasks) looks out for CancelledError.
class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):
    """Raised by its class, since a thread cannot be given more."""

    def __init__(self, message: str = SOFT) -> None:
        super().__init__(message)


class Cancel(Cancelled, asyncio.CancelledError):
    """Raised by its class, as `SoftLimit` is."""

    def __init__(self, message: str = CANCEL) -> None:
        super().__init__(message)


# What is shown and stored is the public class.
for _cls, _public in ((SoftLimit, SoftTimeLimitExceeded), (Cancel, Cancelled)):
    _cls.__module__, _cls.__qualname__ = _public.__module__, _public.__qualname__
    _cls.__name__ = _public.__name__

# What an order raises; HARD_LIMIT reaches coroutines only.
RAISES: dict[Order, type[BaseException]] = {
    Order.SOFT_LIMIT: SoftLimit,
    Order.CANCEL: Cancel,
    Order.HARD_LIMIT: asyncio.CancelledError,
}


class ThreadGuard(Guard):
    """The guard of the jobs that run one by one in a thread."""

    __slots__ = ("heard",)

    def __init__(self) -> None:
        super().__init__()
        self.heard: tuple[int, frozenset[Order]] = (0, frozenset())  # the last job's orders

    def begin(self, serial: int) -> None:
        """Say which job is next."""
        self.serial = serial
        self.depth = 0

    def settle(self) -> None:
        """Take back an asynchronous exception that has not arrived."""
        if self.sent == self.serial:
            _clear_async_exc(self.thread, None)

    def hear(self, serial: int, order: Order) -> type[BaseException] | None:
        """Take an order in the signal handler; returns what the handler shall raise."""
        known = self.heard[1] if self.heard[0] == serial else frozenset()
        if serial != self.serial or order in known or order is Order.HARD_LIMIT:
            return None
        self.heard = (serial, known | {order})
        interrupt, thread = RAISES[order], self.thread
        if thread == get_ident():
            if self.open and not self.depth:
                return interrupt
            self.pending = (serial, interrupt)
        elif self.sent != serial:
            send = _set_async_exc
            # One step; see `Guard`.
            if self.serial == serial and self.open and not self.depth:
                self.sent = serial
                send(thread, interrupt)
            else:
                self.pending = (serial, interrupt)
        return None


class CoroutineGuard(Guard):
    """The guard of one job that is a coroutine; all of it belongs to the loop's thread but `hear`.

    Args:
        serial: which job.
        loop: the loop that runs it.
    """

    __slots__ = ("_heard", "_loop", "over", "raising", "task", "waiting")

    def __init__(self, serial: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(serial)
        self._loop = loop
        self._heard: frozenset[Order] = frozenset()  # the main thread's
        self.task: asyncio.Task[Any] | None = None
        self.over = False  # whether its hard limit ended it
        self.raising: type[BaseException] | None = None  # what the cancellation means
        self.waiting: Order | None = None

    def hear(self, serial: int, order: Order) -> None:
        """Take an order in the signal handler, and pass it on to the loop."""
        if serial == self.serial and order not in self._heard:
            self._heard |= {order}
            try:
                self._loop.call_soon_threadsafe(self._interrupt, order)
            except RuntimeError:
                return  # the loop is closed: nothing runs there any more

    def enter(self) -> None:
        """Say that the job's own code begins; raises what came for it before."""
        self.open = True
        self.task = asyncio.current_task()
        if self.waiting is not None:
            order, self.waiting = self.waiting, None
            self.over = order is Order.HARD_LIMIT
            raise RAISES[order]

    def release(self) -> None:
        """Deliver what waited for the end of a guarded section, once the coroutine awaits something."""
        self.pending = None
        self._loop.call_soon(self._deliver)

    def _interrupt(self, order: Order) -> None:
        if self.waiting is not Order.HARD_LIMIT:
            self.waiting = order
        self._deliver()

    def _deliver(self) -> None:
        if self.waiting is None or not self.open:
            return
        if self.depth:
            self.pending = (self.serial, asyncio.CancelledError)  # makes `guarded` call `release`
            return
        order, self.waiting = self.waiting, None
        self.over = self.over or order is Order.HARD_LIMIT
        self.raising = RAISES[order]
        if self.task is not None:
            self.task.cancel()


class Interruptible(Awaitable[Any]):
    """Awaits a coroutine, and throws into it what its guard says instead of a plain cancellation."""

    __slots__ = ("_guard", "_inner")

    def __init__(self, awaitable: Awaitable[Any], guard: CoroutineGuard) -> None:
        if not isinstance(awaitable, Coroutine):
            awaitable = awaited(awaitable)
        self._inner: Coroutine[Any, Any, Any] = awaitable
        self._guard = guard

    def __await__(self) -> Generator[Any, Any, Any]:
        """Be the iterator that a task drives."""
        return cast("Generator[Any, Any, Any]", self)

    def __iter__(self) -> Interruptible:
        """Be an iterator."""
        return self

    def __next__(self) -> Any:
        """Go on."""
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Go on with a value; but what swallowed the cancellation further inside ends here."""
        if self._guard.raising is not None:
            return self.throw(asyncio.CancelledError())
        return self._inner.send(value)

    def throw(self, error: Any, value: Any = None, trace: Any = None) -> Any:
        """Go on with an exception."""
        guard = self._guard
        if guard.raising is not None and isinstance(error, asyncio.CancelledError):
            error, guard.raising = guard.raising(), None
            if guard.task is not None:
                guard.task.uncancel()
        return self._inner.throw(error)

    def close(self) -> None:
        """End the coroutine."""
        self._inner.close()


async def awaited(awaitable: Awaitable[Any]) -> Any:
    """Await anything."""
    return await awaitable


class Interrupts:
    """The guards of a child's slots.

    Args:
        slate: where the orders stand.
    """

    def __init__(self, slate: Slate) -> None:
        self._slate = slate
        # Each written by the lane that owns the slot, read by the signal handler.
        self.guards: list[ThreadGuard | CoroutineGuard | None] = [None] * slate.slots

    def deliver(self) -> type[BaseException] | None:
        """Hand every order to the job that it is for; returns what the signal handler shall raise."""
        raising = None
        for slot, guard in enumerate(self.guards):
            if guard is not None and (found := self._slate.order(slot)) is not None:
                raising = guard.hear(*found) or raising
        return raising
