"""A page of memory that a child shares with the parent, to be read after the child's death, too.

The child writes which jobs it runs, before it begins one, and the outcomes that it has not yet reported.
So the parent knows, whatever kills the child, what was running, and loses no outcome of what had finished.
The parent writes orders there: which jobs not to begin, and which running ones to interrupt; then it sends
the signal ASK.

    0..8    child   bytes of unreported outcomes
    8..16   parent  jobs with a smaller serial are not begun any more (a lost lease)
    16..24  parent  how many serials stand in the list that follows
    24..32  child   whether any job here ever said how far it is
    32..    parent  serials that are not begun (cancelled in the pipe): SKIPS of 8 bytes
    ..      slots of 40 bytes, one for each job that the child runs at once:
                child   serial (0: none yet), when it began (CLOCK_MONOTONIC), pid of its session (0: none)
                parent  the serial that an order is for, the order
    ..      child   the outcomes: JSON records, each followed by a comma
    ..      child   the newest progress of each slot, PROGRESS_ROOM bytes each: a checksum of serial and JSON,
                    the length of the JSON, the serial, when it was said (CLOCK_MONOTONIC), JSON

Every field but the last has one writer and is one aligned machine word. Progress may be read while it is
being written: half of it has the wrong checksum, and is read again. A slot may still name a job that has
ended: its outcome stands below or was reported, and the parent goes by that first.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from zlib import crc32

from pgtasks.progress import MAX_PROGRESS
from pgtasks.worker.messages import Order, Report, Running

ROOM = (1 << 16) - 1024  # for outcomes, in bytes
SKIPS = 32

_SLOT = struct.Struct("=QdQQQ")
_PROGRESS = struct.Struct("=IIQd")
PROGRESS_ROOM = _PROGRESS.size + MAX_PROGRESS
# How often progress is read that is being written just then.
READ_TIMES = 3

# In words of 8 bytes.
_LENGTH = 0
_SKIP_BELOW = 1
_SKIP_COUNT = 2
_SAID = 3
_SKIP_LIST = 4
_SLOTS = _SKIP_LIST + SKIPS
_SERIAL, _BEGAN, _SESSION, _ORDER_SERIAL, _ORDER, _SLOT_WORDS = range(6)


class Slate:
    """The shared page of one child; made before the fork.

    Args:
        slots: how many jobs the child runs at once at most.
    """

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self._outcomes = 8 * (_SLOTS + slots * _SLOT_WORDS)
        self._progress = self._outcomes + ROOM
        # Memory that nobody touched takes no room, so that progress costs nothing where there is none.
        self._page = mmap.mmap(-1, self._progress + slots * PROGRESS_ROOM)
        # Views: writing a word through them takes a tenth of the time that struct takes.
        self._words = memoryview(self._page).cast("Q")
        self._times = memoryview(self._page).cast("d")
        self._length = 0
        self._said = False

    # The child's side

    def begin(self, serial: int, now: float, slot: int = 0) -> None:
        """Note that a job begins."""
        base = _SLOTS + slot * _SLOT_WORDS
        # Not known to run before its time is.
        self._times[base + _BEGAN] = now
        self._words[base] = serial

    def set_session(self, pid: int, slot: int = 0) -> None:
        """Note the session in whose transaction the job of a slot runs; 0: in none any more."""
        self._words[_SLOTS + slot * _SLOT_WORDS + _SESSION] = pid

    def skips(self, serial: int) -> bool:
        """Whether a job shall not be begun."""
        words = self._words
        return serial < words[_SKIP_BELOW] or (
            words[_SKIP_COUNT] > 0
            and serial in words[_SKIP_LIST : _SKIP_LIST + words[_SKIP_COUNT]].tolist()
        )

    def order(self, slot: int = 0) -> tuple[int, Order] | None:
        """Return the order in a slot and the serial that it is for."""
        base = _SLOTS + slot * _SLOT_WORDS
        serial = self._words[base + _ORDER_SERIAL]
        return (serial, Order(self._words[base + _ORDER])) if serial else None

    def add(self, record: bytes) -> bool:
        """Note an unreported outcome; False if there is no room for it."""
        end = self._length + len(record) + 1
        if end > ROOM:
            return False
        start = self._outcomes + self._length
        self._page[start : start + len(record) + 1] = record + b","
        self._length = self._words[_LENGTH] = end  # last: a record counts once it is whole
        return True

    def clear(self) -> None:
        """Forget the outcomes, since they were reported."""
        self._length = self._words[_LENGTH] = 0

    def note_progress(self, serial: int, data: bytes, now: float, slot: int = 0) -> None:
        """Note how far a job is, in place of what it said before.

        By one assignment, so that no interrupt leaves half of it.
        """
        entry = _PROGRESS.pack(_checksum(serial, data), len(data), serial, now) + data
        start = self._progress + slot * PROGRESS_ROOM
        self._page[start : start + len(entry)] = entry
        if not self._said:
            self._words[_SAID] = self._said = True

    # Both sides; the parent, once the child is dead

    def unreported(self) -> bytes:
        """Return the outcomes noted, as a JSON array."""
        length = self._words[_LENGTH]
        return b"[" + self._page[self._outcomes : self._outcomes + max(0, length - 1)] + b"]"

    # The parent's side

    def has_unreported(self) -> bool:
        """Whether outcomes wait to be reported."""
        return bool(self._words[_LENGTH])

    def running(self) -> list[Running]:
        """Return what stands in the slots: what runs, or ran last."""
        found = []
        for slot in range(self.slots):
            offset = 8 * (_SLOTS + slot * _SLOT_WORDS)
            serial, began, session, _, _ = _SLOT.unpack_from(self._page, offset)
            if serial:
                found.append(Running(serial, began, session))
        return found

    def progress(self) -> list[Report]:
        """Return what stands in the slots of how far their jobs are, or were."""
        found: list[Report] = []
        if not self._words[_SAID]:  # most never do, and may have a thousand slots
            return found
        for slot in range(self.slots):
            start = self._progress + slot * PROGRESS_ROOM
            for _ in range(READ_TIMES):
                checksum, length, serial, at = _PROGRESS.unpack_from(self._page, start)
                if not serial or length > MAX_PROGRESS:
                    break
                data = self._page[start + _PROGRESS.size : start + _PROGRESS.size + length]
                if _checksum(serial, data) == checksum:
                    found.append(Report(serial, at, data))
                    break
        return found

    def interrupt(self, serial: int, order: Order) -> bool:
        """Leave an order for a job, if it runs; the child looks when it gets the signal ASK."""
        for slot in range(self.slots):
            base = _SLOTS + slot * _SLOT_WORDS
            if self._words[base] == serial:
                self._words[base + _ORDER] = order
                self._words[base + _ORDER_SERIAL] = serial
                return True
        return False

    def skip_below(self, serial: int) -> None:
        """Let no job with a smaller serial begin."""
        self._words[_SKIP_BELOW] = serial

    def skip(self, serials: Sequence[int]) -> None:
        """Let these not begin, and no others that were named before; as many as there is room for."""
        for place, serial in enumerate(serials[:SKIPS]):
            self._words[_SKIP_LIST + place] = serial
        self._words[_SKIP_COUNT] = min(len(serials), SKIPS)

    def close(self) -> None:
        """Give the memory back."""
        self._words.release()
        self._times.release()
        self._page.close()


def _checksum(serial: int, data: bytes) -> int:
    return crc32(data, serial & 0xFFFFFFFF)
