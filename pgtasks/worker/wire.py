"""Frames on a pipe between the parent and a child.

A frame is four bytes of length (big-endian) and so many bytes of JSON.

- parent to child: ``[[serial, row, note], …]``: jobs in the order in which they shall run. The serial is
  the parent's own number for a job that it holds; the row is what the claim returned, untouched: arguments
  are opaque text until the child decodes them, so that one bad job harms no other. The note is null, or
  what else the child must know (`Note`).
- child to parent: ``[[serial, kind, result, error, delay, started, stopped], …]``: outcomes. The times
  are seconds of CLOCK_MONOTONIC, which is one clock for all processes of a machine. Beside the kinds that
  the database knows there are three: "skipped" (not begun, as the slate said), "committed" (a transactional
  job whose success is in the database) and "late" (a transactional job that was no longer this worker's).

How far a job is does not go over the pipe: it would wait when the pipe is full, and only the newest counts. It
stands on the slate.

End of file from the parent is the order to stop after the jobs that were read; from a child it means
that the child is gone.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from pgtasks.worker.messages import ClaimedRow

HEADER = struct.Struct(">I")
READ_SIZE = 1 << 16


class Note(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a child must know of a job beyond its row.

    Attributes:
        token: of a transactional job, whose success the child writes itself.
        over_limit: do not run it: it ran longer than this time limit (seconds) in a child that was
            killed for it. Say what that means for the job, by its task's policy, and call its hooks.
    """

    token: str | None = None
    over_limit: float | None = None


WireJob = tuple[int, ClaimedRow, Note | None]


def pack_jobs(jobs: list[WireJob]) -> bytes:
    """Return a frame of jobs, each with its serial."""
    return frame(msgspec.json.encode(jobs))


def frame(body: bytes) -> bytes:
    """Return a frame of a body that is JSON already."""
    return HEADER.pack(len(body)) + body


_JOBS = msgspec.json.Decoder(list[WireJob])


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take what was read and yield the value of each frame that is complete by it."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(memoryview(self._buffer)[HEADER.size : end])
            del self._buffer[:end]
            yield msgspec.json.decode(body)


def read_jobs(fd: int) -> list[WireJob] | None:
    """Read one frame of jobs, blocking; None at the end of the file."""
    header = _read_exactly(fd, HEADER.size)
    if header is None:
        return None
    body = _read_exactly(fd, HEADER.unpack(header)[0])
    return None if body is None else _JOBS.decode(body)


def write_all(fd: int, data: bytes) -> None:
    """Write everything, blocking."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_exactly(fd: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
