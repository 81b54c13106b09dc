"""A child: reads jobs from its pipe, runs them, reports outcomes.

A child that runs jobs one by one does all of it in its main thread: `run_jobs`. Outcomes are reported when
the jobs that were read are done, when a few milliseconds have passed, or when the parent asks (SIGUSR2): it
asks when a job runs on while outcomes wait behind it, and when it left orders on the slate. Until reported
they stand on the slate, where the parent finds them if the child is killed.

A child that runs several at once has a thread that reads the pipe, so that no job waits behind one of
another kind: `run_several`. There each outcome is reported at once.

A child that ran as many jobs as it may, or grew too large, ends by itself, with code 0: what it has not
begun stays the parent's.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import select
import signal
import sys
import threading
import time
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING

import orjson

from pgtasks.worker.reporter import Reporter
from pgtasks.worker.runners import LoopRunner, Runner, Shift, ThreadRunner
from pgtasks.worker.wire import read_jobs

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.options import WorkerOptions
    from pgtasks.worker.slate import Slate
    from pgtasks.worker.wire import WireJob

__all__ = ["ASK", "Reporter", "listen_to_parent", "main", "run"]

# Outcomes older than this are reported before the next job begins, in seconds.
REPORT_AFTER = 0.005

ASK = signal.SIGUSR2


def main(
    app: App,
    options: WorkerOptions,
    hostname: str,
    inbox: int,
    outbox: int,
    slate: Slate,
    parent_pid: int,
) -> int:
    """Be a forked child: take care of signals, run jobs, clean up. Returns the exit code."""
    reporter = Reporter(outbox, slate)
    _set_signals(reporter)
    _die_with_parent(parent_pid)
    # The parent keeps the end of what comes there: a crash says in which line it happened.
    faulthandler.enable(2)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, 2)
    random.seed()
    return run(app, options, hostname, inbox, reporter, slate)


def run(
    app: App, options: WorkerOptions, hostname: str, inbox: int, reporter: Reporter, slate: Slate
) -> int:
    """Run jobs until the parent closes the pipe, between the app's hooks. Returns the exit code.

    Args:
        app: whose tasks.
        options: the worker's; they say how many jobs run at once, and when to end early.
        hostname: the worker's name.
        inbox: the pipe that jobs come from.
        reporter: what outcomes go to; in solo mode `listen_to_parent` must have been told of it.
        slate: the page shared with the parent, with a slot for each job that runs at once.
    """
    shift = Shift(app, options, hostname, reporter, slate)
    if any(task.options.transactional for task in app.tasks.values()):
        app.pools.max_size = max(app.pools.max_size, slate.slots)
    app.child_started()
    try:
        if options.pool == "threads" or options.async_concurrency > 1:
            run_several(shift, inbox)
        else:
            run_jobs(shift, inbox)
    finally:
        app.child_stopped()
        app.close()
        sys.stdout.flush()
        sys.stderr.flush()
    return shift.exit_code


def run_jobs(shift: Shift, inbox: int) -> None:
    """Run jobs one by one in this thread."""
    runner = Runner(shift)
    guard, slate, reporter = runner.guard, shift.slate, shift.reporter
    counts, monotonic, dumps = shift.counts, time.monotonic, orjson.dumps
    try:
        while not shift.ends() and (jobs := read_jobs(inbox)) is not None:
            for serial, row, note in jobs:
                if slate.skips(serial):
                    shift.skip(serial)
                    continue
                if counts and not shift.take():
                    break
                guard.serial, guard.depth = serial, 0
                started = monotonic()
                slate.begin(serial, started)
                outcome = runner.run(serial, row, note, started)
                if note is not None:
                    shift.record(serial, 0, outcome, note, started)
                    if shift.ends():
                        break
                    continue
                stopped = monotonic()
                # As `record_of`, without the call.
                reporter.add(
                    dumps(
                        (
                            serial,
                            outcome.kind,
                            outcome.result,
                            outcome.error,
                            outcome.delay,
                            started,
                            stopped,
                        )
                    )
                )
                if stopped - reporter.reported_at > REPORT_AFTER:
                    reporter.report()
                    shift.look_at_memory()
            reporter.report()
            shift.look_at_memory()
    finally:
        runner.close()


def run_several(shift: Shift, inbox: int) -> None:
    """Run jobs in threads, or in this one, and coroutines on a loop, while another thread reads the pipe."""
    options = shift.options
    jobs: SimpleQueue[WireJob | None] = SimpleQueue()
    threads = [ThreadRunner(shift, slot, jobs) for slot in range(options.threads)]
    loop = None
    if options.async_concurrency > 1:
        loop = LoopRunner(
            shift, range(options.threads, options.threads + options.async_concurrency)
        )
    woken, shift.wake = os.pipe()

    def read() -> None:
        try:
            hand_over(shift, inbox, woken, jobs, loop)
        except BaseException:
            shift.stop(1)  # as in a child with one runner: what cannot be read ends it
            raise
        finally:
            for _ in threads:
                jobs.put(None)
            if loop is not None:
                loop.close()

    reader = threading.Thread(target=read, name="pgtasks-reader", daemon=True)
    reader.start()
    if loop is not None:
        loop.thread.start()
    try:
        if options.pool == "threads":
            for one in threads:
                one.thread.start()
            for one in threads:
                one.thread.join()
        else:
            threads[0].work()
        if loop is not None:
            loop.thread.join()
        reader.join()
    finally:
        shift.wake, wake = -1, shift.wake
        os.close(wake)
        os.close(woken)
    shift.reporter.report()


def hand_over(
    shift: Shift,
    inbox: int,
    woken: int,
    queue: SimpleQueue[WireJob | None],
    loop: LoopRunner | None,
) -> None:
    """Read jobs and give each to where its kind is run, until the parent closes the pipe or the child stops."""
    poll = select.poll()
    poll.register(inbox, select.POLLIN)
    poll.register(woken, select.POLLIN)
    coroutines: dict[str, bool] = {}
    while not shift.ends():
        poll.poll()
        if shift.ends() or (jobs := read_jobs(inbox)) is None:
            return
        for_loop: list[WireJob] = []
        for job in jobs:
            name = job[1].task
            if loop is not None and name not in coroutines:
                coroutines[name] = shift.is_coroutine(name)
            if loop is not None and coroutines[name]:
                for_loop.append(job)
            else:
                queue.put(job)
        if loop is not None and for_loop:
            loop.take(for_loop)


def listen_to_parent(reporter: Reporter) -> None:
    """Let the signal ASK reach the reporter; only the main thread may call this."""
    # Without SA_RESTART: a system call that blocks must return, so that Python runs the handler, which may
    # interrupt the job; if it does not, Python makes the call again (PEP 475).
    signal.signal(ASK, reporter.on_signal)


def _set_signals(reporter: Reporter) -> None:
    # The parent decides when a child ends, also if a signal goes to the whole process group. Handlers
    # and not SIG_IGN, which programs started by a task would inherit.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, _leave_it_to_the_parent)
        signal.siginterrupt(number, False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listen_to_parent(reporter)


def _leave_it_to_the_parent(number: int, stack: FrameType | None) -> None:
    """Do nothing: see `_set_signals`."""


def _die_with_parent(parent_pid: int) -> None:
    """On Linux, be killed when the parent dies, even in the middle of a job; elsewhere EOF ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent_pid:
            os._exit(1)
