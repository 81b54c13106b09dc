"""Forks, feeds, reaps and kills children: owns pids, pipes and slates.

A child closes what it inherited and is not its own: the other children's pipes (else nobody would see
end of file when the parent dies) and the parent's database sockets (else a killed parent's session would
live on in the server).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from pgtasks.worker.child import ASK
from pgtasks.worker.outcome import storable
from pgtasks.worker.slate import Slate
from pgtasks.worker.wire import READ_SIZE, FrameReader

# How much is kept of a child's stderr, in bytes: a Python stack, say, that faulthandler writes.
LAST_LINES = 4096

# What runs in a child, given its ends of the pipes; returns the exit code.
ChildMain = Callable[[int, int, Slate], int]


@dataclass(slots=True)
class Child:
    """One child as the parent has it."""

    number: int
    pid: int
    inbox: int  # the parent writes jobs here; -1 once closed
    outbox: int  # the parent reads outcomes here; -1 at end of file
    slate: Slate
    errors: int = (
        -1
    )  # the parent reads here what the child writes to stderr; -1: its own, or closed
    reader: FrameReader = field(default_factory=FrameReader)
    unsent: bytearray = field(default_factory=bytearray)
    last_lines: bytes = b""  # the end of what it wrote to stderr
    unwritten: bytes = b""  # of that, what our stderr has not taken yet

    def send(self, data: bytes) -> None:
        """Queue bytes and write what the pipe takes now."""
        self.unsent += data
        self.write()

    def write(self) -> None:
        """Write what the pipe takes now; a broken pipe is left to the reaper."""
        try:
            while self.unsent and self.inbox >= 0:
                sent = os.write(self.inbox, self.unsent)
                del self.unsent[:sent]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent.clear()

    def read(self) -> list[list[Any]]:
        """Return the records that came, without blocking; at end of file outbox becomes -1."""
        records: list[list[Any]] = []
        try:
            while self.outbox >= 0:
                data = os.read(self.outbox, READ_SIZE)
                if not data:
                    os.close(self.outbox)
                    self.outbox = -1
                    break
                for frame in self.reader.feed(data):
                    records += frame
                if len(data) < READ_SIZE:
                    break
        except BlockingIOError:
            pass  # all read
        return records

    def read_errors(self) -> None:
        """Read what the child wrote to stderr, pass it on, and keep the end of it."""
        try:
            data = os.read(self.errors, READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            os.close(self.errors)
            self.errors = -1
            return
        self.last_lines = (self.last_lines + data)[-LAST_LINES:]
        self.unwritten += data
        self.write_errors()

    def write_errors(self) -> None:
        """Pass on what stderr takes now: whoever reads it must not hold up the parent."""
        while self.unwritten and select.select([], [2], [], 0)[1]:
            # A pipe that is ready takes so much without blocking.
            sent = os.write(2, self.unwritten[: select.PIPE_BUF])
            self.unwritten = self.unwritten[sent:]

    def close_inbox(self) -> None:
        """Let the child end after what it has."""
        if self.inbox >= 0:
            os.close(self.inbox)
            self.inbox = -1

    def ask(self) -> None:
        """Ask for a report."""
        _signal(self.pid, ASK)

    def kill(self) -> None:
        """Kill it; what runs in this very process cannot be killed, and ends in its own time."""
        if self.pid != os.getpid():
            _signal(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close what is left of a child that is gone."""
        self.close_inbox()
        if self.outbox >= 0:
            os.close(self.outbox)
            self.outbox = -1
        if self.errors >= 0:
            os.close(self.errors)
            self.errors = -1
        self.slate.close()


class Pool(Protocol):
    """What runs jobs for the parent: forked children, or the main thread of this process."""

    children: dict[int, Child]

    def spawn(self, private: Iterable[int]) -> Child:
        """Start a child; ``private`` are descriptors that it must not keep."""

    def reap(self) -> list[tuple[Child, list[list[Any]], dict[str, Any]]]:
        """Return the children that are gone, with their last records and the cause."""


class PreforkPool:
    """Children that are forks of this process."""

    def __init__(self, main: ChildMain, slots: int = 1) -> None:
        self._main = main
        self._slots = slots
        self._next = 0
        self.children: dict[int, Child] = {}

    def spawn(self, private: Iterable[int]) -> Child:
        """Fork a child."""
        slate = Slate(self._slots)
        inbox_read, inbox = os.pipe()
        outbox, outbox_write = os.pipe()
        errors, errors_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.dup2(errors_write, 2)
            os.close(errors_write)
            _be_child(
                self._main,
                inbox_read,
                outbox_write,
                slate,
                [inbox, outbox, errors, *private, *self._descriptors()],
            )
        for fd in (inbox_read, outbox_write, errors_write):
            os.close(fd)
        for fd in (inbox, outbox, errors):
            os.set_blocking(fd, False)
        self._next += 1
        child = self.children[self._next] = Child(self._next, pid, inbox, outbox, slate, errors)
        return child

    def reap(self) -> list[tuple[Child, list[list[Any]], dict[str, Any]]]:
        """Collect children that ended; what they had reported or noted comes first."""
        gone = []
        for child in list(self.children.values()):
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            records = child.read()
            while child.outbox >= 0 and (more := child.read()):
                records += more
            records += orjson.loads(child.slate.unreported())
            if child.errors >= 0:
                child.read_errors()
            gone.append((child, records, _cause(child, status, usage.ru_maxrss)))
            del self.children[child.number]
        return gone

    def _descriptors(self) -> list[int]:
        return [
            fd
            for child in self.children.values()
            for fd in (child.inbox, child.outbox, child.errors)
            if fd >= 0
        ]


class SoloPool:
    """No child at all: the jobs run in the main thread of this process, the parent in another thread.

    So a job may be stopped at in a debugger, and the lease is renewed meanwhile.
    """

    def __init__(self, main: ChildMain, slots: int = 1) -> None:
        self._main = main
        self._slots = slots
        self.children: dict[int, Child] = {}
        self._started = threading.Event()
        self._ended = threading.Event()
        self._ends: tuple[int, int, Slate] | None = None

    def spawn(self, private: Iterable[int]) -> Child:
        """Hand the pipes to the main thread, which waits in `run`."""
        slate = Slate(self._slots)
        inbox_read, inbox = os.pipe()
        outbox, outbox_write = os.pipe()
        os.set_blocking(inbox, False)
        os.set_blocking(outbox, False)
        self._ends = (inbox_read, outbox_write, slate)
        child = self.children[1] = Child(1, os.getpid(), inbox, outbox, slate)
        self._started.set()
        return child

    def run(self, parent_ended: threading.Event) -> None:
        """Run jobs in this thread until the parent closes the pipe, or ends."""
        while not self._started.wait(0.2):
            if parent_ended.is_set():
                return
        assert self._ends is not None
        inbox, outbox, slate = self._ends
        try:
            self._main(inbox, outbox, slate)
        finally:
            self._ended.set()  # first: end of file wakes the parent, which then looks
            os.close(inbox)
            os.close(outbox)

    def reap(self) -> list[tuple[Child, list[list[Any]], dict[str, Any]]]:
        """Return the one "child" once its loop has ended."""
        if not self._ended.is_set() or not self.children:
            return []
        child = self.children.pop(1)
        return [(child, child.read(), {"type": "pgtasks.Crash", "message": "the solo loop ended"})]


def _be_child(
    main: ChildMain, inbox: int, outbox: int, slate: Slate, not_ours: Iterable[int]
) -> None:
    """Run ``main`` in a fresh fork, and leave without the parent's exit handlers."""
    code = 1
    try:
        for fd in set(not_ours):
            os.close(fd)
        code = main(inbox, outbox, slate)
    except BaseException:  # noqa: BLE001 (the top of a process)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _cause(child: Child, status: int, peak_kb: int) -> dict[str, Any]:
    """Describe how a process ended, as an error that can be stored."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        names = {one.value: f" ({one.name})" for one in signal.Signals}  # real-time ones have none
        how = f"was killed by signal {number}{names.get(number, '')}"
    else:
        how = f"exited with code {os.WEXITSTATUS(status)}"
    return {
        "type": "pgtasks.Crash",
        "message": f"the child process {child.pid} {how}; its peak memory was {peak_kb // 1024} MB",
        "traceback": "",
        "args": None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "exit_code": None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
        "peak_memory": peak_kb * 1024,
        "stderr": storable(child.last_lines.decode("utf-8", "replace")),
    }


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # gone already, and about to be reaped
