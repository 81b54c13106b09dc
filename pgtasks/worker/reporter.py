"""Collects a child's outcomes and reports them to the parent."""

from __future__ import annotations

import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

import orjson

from pgtasks.worker.interrupts import Interrupts
from pgtasks.worker.wire import frame, write_all

if TYPE_CHECKING:
    from pgtasks.worker.outcome import Outcome
    from pgtasks.worker.slate import Slate


class Reporter:
    """Takes outcomes from any thread; until they are reported they stand on the slate.

    Safe against the signal ASK in between, which asks for a report and for a look at the orders.
    """

    def __init__(self, outbox: int, slate: Slate) -> None:
        self.interrupts = Interrupts(slate)
        self.reported_at = time.monotonic()
        self._outbox = outbox
        self._slate = slate
        # Taken without waiting by the signal handler, which may have come while its own thread holds it.
        self._lock = threading.Lock()
        self._asked = False
        self._handling = False
        self._again = False

    def add(self, record: bytes) -> None:
        """Take an outcome; one that the slate has no room for is reported at once."""
        with self._lock:
            if not self._slate.add(record):
                self._write()
                if not self._slate.add(record):
                    write_all(self._outbox, frame(b"[" + record + b"]"))
        if self._asked:
            self.report()

    def report(self) -> None:
        """Report what was collected."""
        with self._lock:
            self._asked = False
            self._write()
        if self._asked:
            self.report()

    def _write(self) -> None:
        records = self._slate.unreported()
        if len(records) > 2:
            write_all(self._outbox, frame(records))
            self._slate.clear()
        self.reported_at = time.monotonic()

    def on_signal(self, number: int, stack: FrameType | None) -> None:
        """Report because the parent asked, and interrupt what it says; in the main thread."""
        if self._handling:
            self._again = True
            return
        raising = None
        while True:
            self._handling, self._again = True, False
            self._report_if_free()
            raising = self.interrupts.deliver() or raising
            self._handling = False
            if not self._again:
                break
        if raising is not None:
            raise raising

    def _report_if_free(self) -> None:
        """Report; later, if a report is being written right now: whoever writes it looks once more."""
        self._asked = True
        if self._lock.acquire(blocking=False):
            try:
                self._asked = False
                self._write()
            finally:
                self._lock.release()


def record_of(serial: int, outcome: Outcome, started: float, stopped: float) -> bytes:
    """Return an outcome as it goes over the wire."""
    return orjson.dumps(
        (serial, outcome.kind, outcome.result, outcome.error, outcome.delay, started, stopped)
    )
