"""Which machine and which process this is, so that another worker on it can tell who is gone."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A process among all of all machines; empty parts are unknown here."""

    host: str
    boot_id: str | None
    pid_namespace: str | None
    pid: int
    pid_started_at: float | None  # seconds since 1970, as the system counts it

    def is_gone(self, here: Identity) -> bool:
        """Whether this process is certainly gone, seen from another on its own machine.

        Pods of one node share the boot id and not the pids, so the pid namespace counts, too.
        """
        if not self.boot_id or not self.pid_namespace:
            return False
        if (self.boot_id, self.pid_namespace) != (here.boot_id, here.pid_namespace):
            return False
        started_at = process_started_at(self.pid)
        return started_at is None or (
            self.pid_started_at is not None and abs(started_at - self.pid_started_at) > 1.0
        )


def identity() -> Identity:
    """Describe this process."""
    return Identity(
        host=socket.gethostname(),
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        pid_namespace=_link("/proc/self/ns/pid"),
        pid=os.getpid(),
        pid_started_at=process_started_at(os.getpid()),
    )


def process_started_at(pid: int) -> float | None:
    """Return when the process of that pid began; None if there is none that lives."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return str(Path(path).readlink())
    except OSError:
        return None
