"""How a child runs jobs: one by one in a thread (`Runner`), or many coroutines on an event loop (`LoopRunner`).

`Shift` is what the runners of one child share. A child with one runner is a loop over its pipe
(`pgtasks.worker.child`); one with several has a thread that reads the pipe and hands the jobs over.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pgtasks import events
from pgtasks.errors import ConfigurationError, DecodingError, UnknownTaskError
from pgtasks.guard import guard_var
from pgtasks.worker.attempt import arun_attempt, not_run, run_attempt
from pgtasks.worker.interrupts import CoroutineGuard, Interruptible, ThreadGuard
from pgtasks.worker.outcome import Outcome, describe, over_limit
from pgtasks.worker.reporter import Reporter, record_of
from pgtasks.worker.rows import request_from_row
from pgtasks.worker.transaction import Fence, arun_transaction, run_transaction

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.context import Request
    from pgtasks.options import WorkerOptions
    from pgtasks.task import Task
    from pgtasks.worker.messages import ClaimedRow
    from pgtasks.worker.slate import Slate
    from pgtasks.worker.wire import Note, WireJob

logger = logging.getLogger("pgtasks")

SKIPPED = Outcome("skipped")
# The child ends with this code if only its parent can find out what became of a job.
UNSETTLED_CODE = 75
# Of the arguments in a log line, in characters.
SHOWN = 1000
# ru_maxrss is in kilobytes, on macOS in bytes.
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Shift:
    """What the runners of a child share.

    Args:
        app, options, hostname: whose tasks, and the worker's options and name.
        reporter, slate: where outcomes go.
    """

    def __init__(
        self, app: App, options: WorkerOptions, hostname: str, reporter: Reporter, slate: Slate
    ) -> None:
        self.app = app
        self.options = options
        self.hostname = hostname
        self.reporter = reporter
        self.slate = slate
        self.guards = reporter.interrupts.guards
        self.tells_start = events.wanted("job.started")
        self.exit_code = 0
        self._stopping = False  # any runner's thread may set it
        self.wake = -1  # written to when it stops, if somebody waits at the pipe
        replaceable = options.pool != "solo"  # who else would go on?
        self._left = options.max_tasks_per_child if replaceable else None
        self._most_memory = options.max_memory_per_child if replaceable else None
        self._lock = threading.Lock()

    @property
    def counts(self) -> bool:
        """Whether the number of jobs is limited."""
        return self._left is not None

    def take(self) -> bool:
        """Whether one more job may begin here."""
        if self._left is None:
            return not self._stopping
        with self._lock:
            if self._stopping or not self._left:
                return False
            self._left -= 1
            last = not self._left
        if last:
            self.stop()
        return True

    def ends(self) -> bool:
        """Whether nothing more is begun."""
        return self._stopping

    def stop(self, code: int = 0) -> None:
        """Begin nothing more; the child is replaced."""
        self.exit_code = self.exit_code or code
        self._stopping = True
        if self.wake >= 0:
            os.write(self.wake, b"!")

    def look_at_memory(self) -> None:
        """Stop if this process ever held too much; after each report."""
        if self._most_memory is not None and not self._stopping:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
            if peak > self._most_memory:
                self.stop()

    def is_coroutine(self, task_name: str) -> bool:
        """Whether jobs of this task are for the event loop."""
        task = self.app.tasks.get(task_name)
        return task is not None and inspect.iscoroutinefunction(task.run)

    def find(self, row: ClaimedRow) -> tuple[Task[Any, Any], Request] | Outcome:
        """Return a job's task and request, or how it fails without them."""
        task = self.app.tasks.get(row.task)
        if task is None:
            unknown = UnknownTaskError(f"no task is named {row.task!r} in app {self.app.name!r}")
            return Outcome("failed", error=describe(unknown))
        try:
            request = request_from_row(self.app, row, self.hostname)
        except (DecodingError, ConfigurationError) as error:
            return Outcome("failed", error=describe(error))
        if self.tells_start:
            tell_started(task, row)
        return task, request

    def limit_of(self, task: Task[Any, Any], request: Request) -> float | None:
        """Return the time limit of a job: its call's, else the task's, the worker's, the app's."""
        said = request.said.get("time_limit")
        app = getattr(self.app, "time_limit", None)
        for limit in (said, task.options.time_limit, self.options.time_limit, app):
            if isinstance(limit, int | float):
                return limit
        return None

    def fence(self, slot: int, token: str, started: float) -> Fence:
        """Return what a transactional attempt needs."""
        return Fence(token, started, partial(self.slate.set_session, slot=slot))

    def post(self, slot: int) -> Callable[[int, bytes], None]:
        """Return what takes the progress of the job in a slot."""
        note, monotonic = self.slate.note_progress, time.monotonic

        def post(serial: int, data: bytes) -> None:
            note(serial, data, monotonic(), slot)

        return post

    def record(
        self, serial: int, slot: int, outcome: Outcome, note: Note | None, started: float
    ) -> None:
        """Put down an outcome; one that nobody knows stays on the slate as running, and ends the child."""
        if outcome.kind == "unsettled":
            self.stop(UNSETTLED_CODE)
            return
        self.reporter.add(record_of(serial, outcome, started, time.monotonic()))
        if note is not None and note.token is not None:
            self.slate.set_session(0, slot)

    def skip(self, serial: int) -> None:
        """Put down that a job was not begun."""
        now = time.monotonic()
        self.reporter.add(record_of(serial, SKIPPED, now, now))


def tell_started(task: Task[Any, Any], row: ClaimedRow) -> None:
    shown = task.options.log_arguments
    events.emit(
        "job.started",
        id=row.id,
        task=row.task,
        queue=row.queue,
        attempt=row.attempt,
        args=row.args[:SHOWN] if shown else None,
        kwargs=row.kwargs[:SHOWN] if shown else None,
    )


class Runner:
    """Runs jobs one by one in the thread that makes it; coroutine functions on an event loop of its own.

    Args:
        shift: what it shares with others.
        slot: its place on the slate.
    """

    def __init__(self, shift: Shift, slot: int = 0) -> None:
        self.shift = shift
        self.slot = slot
        self.guard = ThreadGuard()
        self.guard.post = shift.post(slot)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ordinary: dict[str, Task[Any, Any]] = {}  # functions that are no coroutine functions
        guard_var.set(self.guard)
        shift.guards[slot] = self.guard

    def run(self, serial: int, row: ClaimedRow, note: Note | None, started: float) -> Outcome:
        """Run one attempt and say what it means for the job. Raises nothing."""
        shift = self.shift
        task = self._ordinary.get(row.task)
        if task is None or note is not None:
            return self._run_other(serial, row, note, started)
        # The hot path: each call less is a percent.
        try:
            request = request_from_row(shift.app, row, shift.hostname)
        except (DecodingError, ConfigurationError) as error:
            return Outcome("failed", error=describe(error))
        if shift.tells_start:
            tell_started(task, row)
        return run_attempt(task, request, row.args, row.kwargs, row.input, self.guard, self._await)

    def _run_other(
        self,
        serial: int,
        row: ClaimedRow,
        note: Note | None,
        started: float,
    ) -> Outcome:
        """Run what is not an ordinary job of an ordinary function, or is the first of its task."""
        found = self.shift.find(row)
        if isinstance(found, Outcome):
            return found
        task, request = found
        if note is not None and note.over_limit is not None:
            error = over_limit(note.over_limit)
            return not_run(task, request, row.args, row.kwargs, row.input, error)
        fence = None
        if note is not None and note.token is not None:
            fence = self.shift.fence(self.slot, note.token, started)
        if not inspect.iscoroutinefunction(task.run):
            if fence is not None:
                return run_transaction(task, request, row, fence, self.guard, self._await)
            self._ordinary[row.task] = task
            return run_attempt(
                task, request, row.args, row.kwargs, row.input, self.guard, self._await
            )
        loop = self._open_loop()
        guard = CoroutineGuard(serial, loop)
        guard.post = self.guard.post
        coroutine = _arun(self.shift, task, request, row, fence, guard)
        self.shift.guards[self.slot] = guard
        try:
            outcome: Outcome = run_on_loop(loop, coroutine)
            return outcome
        except BaseException as error:  # noqa: BLE001 (a task may have cancelled this one)
            return Outcome("failed", error=describe(error))
        finally:
            self.shift.guards[self.slot] = self.guard

    def _await(self, awaitable: Awaitable[Any]) -> Any:
        """Await what an ordinary function returned; interrupts now go to where it awaits something."""
        loop = self._open_loop()
        guard = CoroutineGuard(self.guard.serial, loop)
        guard.post = self.guard.post
        self.shift.guards[self.slot] = guard
        try:
            value, error = run_on_loop(loop, _await_interruptibly(awaitable, guard))
        finally:
            self.shift.guards[self.slot] = self.guard
        if error is not None:
            raise error
        return value

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._loop.is_closed():  # by a task
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop

    def close(self) -> None:
        """Close the event loop, if there is one."""
        self.shift.guards[self.slot] = None
        if self._loop is not None and not self._loop.is_closed():
            _close_loop(self._loop, self.shift.app)
            asyncio.set_event_loop(None)


async def _arun(
    shift: Shift,
    task: Task[Any, Any],
    request: Request,
    row: ClaimedRow,
    fence: Fence | None,
    guard: CoroutineGuard,
) -> Outcome:
    limit = shift.limit_of(task, request)
    if fence is not None:
        return await arun_transaction(task, request, row, fence, guard, limit)
    return await arun_attempt(task, request, row.args, row.kwargs, row.input, guard, limit)


async def _await_interruptibly(
    awaitable: Awaitable[Any], guard: CoroutineGuard
) -> tuple[Any, BaseException | None]:
    """Return its value, or what it raised: an asyncio task would make any cancellation a plain one."""
    guard_var.set(guard)
    try:
        try:
            guard.enter()
            return await Interruptible(awaitable, guard), None
        finally:
            guard.open = False
    except BaseException as error:  # noqa: BLE001 (a user's coroutine)
        return None, error


def run_on_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, also if something else on the loop raises SystemExit or stops it."""
    task = loop.create_task(coroutine)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            if loop.is_closed():
                raise
            if not task.done():
                logger.warning("a coroutine on the event loop raised %s", type(error).__name__)
    return task.result()


def _close_loop(loop: asyncio.AbstractEventLoop, app: App) -> None:
    """Close a loop; every job has its outcome, so that nothing that happens here matters to one."""
    try:
        run_on_loop(loop, _leave_loop(app))
    except BaseException as error:  # noqa: BLE001 (what tasks left behind)
        logger.warning("an event loop was not left cleanly: %s", type(error).__name__)
    finally:
        loop.close()


async def _leave_loop(app: App) -> None:
    """Close this loop's pool, and end what tasks left behind on it."""
    pools = app.__dict__.get("pools")
    if pools is not None:
        await pools.aclose()
    mine = asyncio.current_task()
    left = [task for task in asyncio.all_tasks() if task is not mine]
    for task in left:
        task.cancel()
    await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0)), *left], timeout=1.0)
    await asyncio.get_running_loop().shutdown_asyncgens()


class ThreadRunner:
    """Runs jobs one by one in a thread of its own, or in the one that calls `work`; many share a queue.

    Args:
        shift: what it shares with others.
        slot: its place on the slate.
        jobs: where jobs come from; None ends it.
    """

    def __init__(self, shift: Shift, slot: int, jobs: SimpleQueue[WireJob | None]) -> None:
        self._shift = shift
        self._slot = slot
        self._jobs = jobs
        self.thread = threading.Thread(target=self.work, name=f"pgtasks-{slot}", daemon=True)

    def work(self) -> None:
        """Run jobs until the queue says that it is over."""
        runner = Runner(self._shift, self._slot)
        try:
            while (job := self._jobs.get()) is not None:
                copy_context().run(self._run, runner, *job)
        finally:
            runner.close()

    def _run(self, runner: Runner, serial: int, row: ClaimedRow, note: Note | None) -> None:
        shift = self._shift
        if shift.slate.skips(serial):
            shift.skip(serial)
        elif shift.take():  # else it stays unread, as far as the parent knows
            runner.guard.begin(serial)
            started = time.monotonic()
            shift.slate.begin(serial, started, self._slot)
            outcome = runner.run(serial, row, note, started)
            shift.record(serial, self._slot, outcome, note, started)
        shift.reporter.report()
        shift.look_at_memory()


class LoopRunner:
    """Runs jobs of coroutine functions, many at once, on an event loop in a thread of its own.

    Args:
        shift: what it shares with others.
        slots: its places on the slate.
    """

    def __init__(self, shift: Shift, slots: Sequence[int]) -> None:
        self._shift = shift
        self._loop = asyncio.new_event_loop()
        # What follows belongs to the loop's thread.
        self._free = list(slots)
        self._waiting: deque[WireJob] = deque()
        self._running: set[asyncio.Task[Outcome]] = set()
        self._closing = False
        self._reporting = False
        self.thread = threading.Thread(target=self._work, name="pgtasks-loop", daemon=True)

    def take(self, jobs: list[WireJob]) -> None:
        """Take jobs; from any thread."""
        self._loop.call_soon_threadsafe(self._take, jobs)

    def close(self) -> None:
        """Let it end after what it has; from any thread."""
        self._loop.call_soon_threadsafe(self._close)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._ended:
            try:
                self._loop.run_forever()  # a job may stop it, and what a job started may raise SystemExit
            except BaseException as error:  # noqa: BLE001 (the top of a thread)
                logger.warning("a coroutine on the event loop raised %s", type(error).__name__)
        _close_loop(self._loop, self._shift.app)

    @property
    def _ended(self) -> bool:
        return self._closing and not self._waiting and not self._running

    def _take(self, jobs: list[WireJob]) -> None:
        self._waiting.extend(jobs)
        self._fill()

    def _close(self) -> None:
        self._closing = True
        self._fill()

    def _fill(self) -> None:
        """Begin as many jobs as there are places for."""
        shift = self._shift
        while self._waiting and self._free:
            serial, row, note = self._waiting.popleft()
            if shift.slate.skips(serial):
                shift.skip(serial)
                self._report_soon()
            elif shift.take():
                self._begin(serial, row, note)
            else:  # they stay unread, as far as the parent knows
                self._waiting.clear()
        if self._ended:
            self._loop.stop()

    def _begin(self, serial: int, row: ClaimedRow, note: Note | None) -> None:
        shift, slot = self._shift, self._free.pop()
        guard = CoroutineGuard(serial, self._loop)
        guard.post = shift.post(slot)
        shift.guards[slot] = guard
        started = time.monotonic()
        shift.slate.begin(serial, started, slot)
        task = self._loop.create_task(self._run(guard, slot, row, note, started))
        self._running.add(task)
        task.add_done_callback(partial(self._end, serial, slot, note, started))

    async def _run(
        self, guard: CoroutineGuard, slot: int, row: ClaimedRow, note: Note | None, started: float
    ) -> Outcome:
        shift = self._shift
        found = shift.find(row)
        if isinstance(found, Outcome):
            return found
        task, request = found
        if note is not None and note.over_limit is not None:
            error = over_limit(note.over_limit)
            return not_run(task, request, row.args, row.kwargs, row.input, error)
        token = None if note is None else note.token
        fence = None if token is None else shift.fence(slot, token, started)
        return await _arun(shift, task, request, row, fence, guard)

    def _end(
        self,
        serial: int,
        slot: int,
        note: Note | None,
        started: float,
        task: asyncio.Task[Outcome],
    ) -> None:
        """Put down the outcome, also of a job that another coroutine cancelled before it began."""
        try:
            outcome = task.result()
        except BaseException as error:  # noqa: BLE001 (cancelled from outside)
            outcome = Outcome("failed", error=describe(error))
        self._shift.record(serial, slot, outcome, note, started)
        self._running.discard(task)
        self._shift.guards[slot] = None
        if outcome.kind != "unsettled":
            self._free.append(slot)
        self._report_soon()
        self._fill()

    def _report_soon(self) -> None:
        """Report once for all that ends in this turn of the loop."""
        if not self._reporting:
            self._reporting = True
            self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._reporting = False
        self._shift.reporter.report()
        self._shift.look_at_memory()
