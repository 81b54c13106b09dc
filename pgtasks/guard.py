"""Where the interrupt of a job may be raised: in its own code, and there not in a guarded section.

Somebody cancels a job, or its soft time limit is over: then an exception is raised in the middle of what
it does. A worker has a `Guard` for whatever runs a job, so that this happens in the job's own code only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from types import TracebackType

__all__ = ["Guard", "guarded"]


class Guard:
    """What knows whether the job that runs here may be interrupted now.

    The thread that runs the job writes ``serial``, ``open`` and ``depth``; the thread that delivers
    interrupts (a signal handler of the main thread) reads them and writes ``pending``. No lock is needed
    and none would do, since an exception may come while it is taken: in CPython, signals, exceptions from
    other threads and the turns of other threads come only after calls, at the start of functions and at the
    end of a loop's body. So what stands here as a few assignments and conditions in a row is one step.
    """

    __slots__ = ("depth", "open", "pending", "post", "sent", "serial", "thread")

    def __init__(self, serial: int = 0) -> None:
        self.serial = serial  # which job
        self.thread = get_ident()
        self.open = False  # whether the job's own code runs
        self.depth = 0  # how many guarded sections it is in
        # An interrupt that waits, and the job that it is for, since it may come too late.
        self.pending: tuple[int, type[BaseException]] | None = None
        self.sent = 0  # the last job that an asynchronous exception was sent to
        # Where the job's progress goes, with the serial that it is of; None: nowhere.
        self.post: Callable[[int, bytes], None] | None = None

    def settle(self) -> None:
        """Take back an asynchronous exception that has not arrived; asked once the job's code is left."""

    def release(self) -> None:
        """Raise the interrupt that waited."""
        pending, self.pending = self.pending, None
        if pending is not None and pending[0] == self.serial:
            raise pending[1]


guard_var: ContextVar[Guard | None] = ContextVar("pgtasks_guard", default=None)


class guarded:  # noqa: N801 (used as a statement: with guarded(): …)
    """Let no time limit and no cancellation interrupt a block of a task: ``with guarded(): …``.

    For what must not be cut in half. An interrupt that comes meanwhile is raised at the end of the block,
    in a coroutine at its next ``await``. Blocks may be nested. Outside of a job it does nothing; and it
    does not hold off a hard time limit, which kills the process.
    """

    __slots__ = ("_guard", "_serial")

    def __enter__(self) -> None:
        """Begin the block."""
        guard = self._guard = guard_var.get()
        if guard is not None:
            if (
                guard.thread != get_ident()
            ):  # a thread that the job started is not interrupted anyway
                self._guard = None
            else:
                self._serial = guard.serial
                guard.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the block, and raise what came meanwhile."""
        guard = self._guard
        # What a job left behind, a generator, say, may end in a later one.
        if guard is not None and guard.serial == self._serial:
            guard.depth -= 1
            if guard.pending is not None and not guard.depth and guard.open:
                guard.release()
