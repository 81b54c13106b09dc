"""A child: reads jobs from its pipe, runs them one by one, reports outcomes.

Outcomes are reported when the jobs that were read are done, when a few milliseconds have passed, or when
the parent asks (SIGUSR2): it asks when a job runs on while outcomes wait behind it. Until reported they
stand on the slate, where the parent finds them if the child is killed.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

import orjson

from pgtasks.worker.runners import Runner
from pgtasks.worker.wire import frame, read_jobs, write_all

if TYPE_CHECKING:
    from pgtasks.app import App
    from pgtasks.worker.slate import Slate

# Outcomes older than this are reported before the next job begins, in seconds.
REPORT_AFTER = 0.005

ASK = signal.SIGUSR2


class Reporter:
    """Collects outcomes and reports them; safe against a signal in between."""

    def __init__(self, outbox: int, slate: Slate) -> None:
        self._outbox = outbox
        self._slate = slate
        self._reporting = False
        self._asked = False
        self.reported_at = time.monotonic()

    def add(self, record: bytes) -> None:
        """Take an outcome; one that the slate has no room for is reported at once."""
        self._reporting = True
        if not self._slate.add(record):
            self._write()
            if not self._slate.add(record):
                write_all(self._outbox, frame(b"[" + record + b"]"))
        self._reporting = False
        if self._asked:
            self.report()

    def report(self) -> None:
        """Report what was collected."""
        self._reporting, self._asked = True, False
        self._write()
        self._reporting = False

    def _write(self) -> None:
        records = self._slate.unreported()
        if len(records) > 2:
            write_all(self._outbox, frame(records))
            self._slate.clear()
        self.reported_at = time.monotonic()

    def on_signal(self, number: int, stack: FrameType | None) -> None:
        """Report because the parent asked; later, if a report is being written right now."""
        if self._reporting:
            self._asked = True
        else:
            self.report()


def run_jobs(runner: Runner, inbox: int, reporter: Reporter, slate: Slate) -> None:
    """Run jobs until the parent closes the pipe."""
    monotonic = time.monotonic
    while (jobs := read_jobs(inbox)) is not None:
        for serial, row, _ in jobs:
            started = monotonic()
            slate.begin(serial, started)
            outcome = runner.run(row)
            stopped = monotonic()
            reporter.add(
                orjson.dumps(
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
        reporter.report()


def main(
    app: App, options: object, hostname: str, inbox: int, outbox: int, slate: Slate, parent_pid: int
) -> int:
    """Be a forked child: take care of signals, run jobs, clean up. Returns the exit code."""
    reporter = Reporter(outbox, slate)
    _set_signals(reporter)
    _die_with_parent(parent_pid)
    random.seed()
    return run(app, options, hostname, inbox, reporter, slate)


def listen_to_parent(r):
    pass


def run(app: App, options, hostname: str, inbox: int, reporter: Reporter, slate: Slate) -> int:
    """Run jobs until the parent closes the pipe, between the app's hooks. Returns the exit code."""
    runner = Runner(app, hostname)
    app.child_started()
    try:
        run_jobs(runner, inbox, reporter, slate)
    finally:
        runner.close()
        app.child_stopped()
        app.close()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _set_signals(reporter: Reporter) -> None:
    # The parent decides when a child ends, also if a signal goes to the whole process group. Handlers
    # and not SIG_IGN, which programs started by a task would inherit.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, _leave_it_to_the_parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(ASK, reporter.on_signal)
    # A blocking call of a task goes on after a signal.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, ASK):
        signal.siginterrupt(number, False)


def _leave_it_to_the_parent(number: int, stack: FrameType | None) -> None:
    """Do nothing: see `_set_signals`."""


def _die_with_parent(parent_pid: int) -> None:
    """On Linux, be killed when the parent dies, even in the middle of a job; elsewhere EOF ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent_pid:
            os._exit(1)
