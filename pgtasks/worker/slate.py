"""A page of memory that a child shares with the parent, to be read after the child's death, too.

The child writes which jobs it runs, before it begins one, and the outcomes that it has not yet reported.
So the parent knows, whatever kills the child, what was running, and loses no outcome of what had finished.
The parent writes orders there: which jobs not to begin, and which running ones to interrupt; then it sends
the signal ASK.

    0..4    child   bytes of unreported outcomes
    8..16   parent  jobs with a smaller serial are not begun any more (a lost lease)
    16..24  parent  how many serials stand in the list that follows
    24..    parent  serials that are not begun (cancelled in the pipe): SKIPS of 8 bytes
    ..      slots of 40 bytes, one for each job that the child runs at once:
                child   serial (0: none yet), when it began (CLOCK_MONOTONIC), pid of its session (0: none)
                parent  the serial that an order is for, the order
    ..      child   the outcomes: JSON records, each followed by a comma

Every field has one writer and is one aligned machine word. A slot may still name a job that has ended: its
outcome stands below or was reported, and the parent goes by that first.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

from pgtasks.worker.messages import Order, Running

ROOM = (1 << 16) - 1024  # for outcomes, in bytes
SKIPS = 32

_LENGTH = struct.Struct("<I")
_WORD = struct.Struct("<Q")
_SKIPPING = struct.Struct("<QQ")
_BEGUN = struct.Struct("<Qd")
_ORDER = struct.Struct("<QQ")
_SLOT = struct.Struct("<QdQQQ")

_SKIP_BELOW = 8
_SKIP_COUNT = 16
_SKIP_LIST = 24
_SLOTS = _SKIP_LIST + SKIPS * _WORD.size


class Slate:
    """The shared page of one child; made before the fork.

    Args:
        slots: how many jobs the child runs at once at most.
    """

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self._outcomes = _SLOTS + slots * _SLOT.size
        self._page = mmap.mmap(-1, self._outcomes + ROOM)
        self._length = 0

    # The child's side

    def begin(self, serial: int, now: float, slot: int = 0) -> None:
        """Note that a job begins."""
        offset = _SLOTS + slot * _SLOT.size
        # Not known to run before its time is.
        struct.pack_into("<d", self._page, offset + 8, now)
        _WORD.pack_into(self._page, offset, serial)

    def set_session(self, pid: int, slot: int = 0) -> None:
        """Note the session in whose transaction the job of a slot runs; 0: in none any more."""
        _WORD.pack_into(self._page, _SLOTS + slot * _SLOT.size + 16, pid)

    def skips(self, serial: int) -> bool:
        """Whether a job shall not be begun."""
        below, count = _SKIPPING.unpack_from(self._page, _SKIP_BELOW)
        return serial < below or (count > 0 and serial in self._skip_list(count))

    def order(self, slot: int = 0) -> tuple[int, Order] | None:
        """Return the order in a slot and the serial that it is for."""
        serial, order = _ORDER.unpack_from(self._page, _SLOTS + slot * _SLOT.size + 24)
        return (serial, Order(order)) if serial else None

    def add(self, record: bytes) -> bool:
        """Note an unreported outcome; False if there is no room for it."""
        end = self._length + len(record) + 1
        if end > ROOM:
            return False
        start = self._outcomes + self._length
        self._page[start : start + len(record) + 1] = record + b","
        self._length = end
        _LENGTH.pack_into(self._page, 0, end)  # last: a record counts once it is whole
        return True

    def clear(self) -> None:
        """Forget the outcomes, since they were reported."""
        self._length = 0
        _LENGTH.pack_into(self._page, 0, 0)

    # Both sides; the parent, once the child is dead

    def unreported(self) -> bytes:
        """Return the outcomes noted, as a JSON array."""
        (length,) = _LENGTH.unpack_from(self._page, 0)
        return b"[" + self._page[self._outcomes : self._outcomes + max(0, length - 1)] + b"]"

    # The parent's side

    def has_unreported(self) -> bool:
        """Whether outcomes wait to be reported."""
        return bool(_LENGTH.unpack_from(self._page, 0)[0])

    def running(self) -> list[Running]:
        """Return what stands in the slots: what runs, or ran last."""
        found = []
        for slot in range(self.slots):
            serial, began, session, _, _ = _SLOT.unpack_from(self._page, _SLOTS + slot * _SLOT.size)
            if serial:
                found.append(Running(serial, began, session))
        return found

    def interrupt(self, serial: int, order: Order) -> bool:
        """Leave an order for a job, if it runs; the child looks when it gets the signal ASK."""
        for slot in range(self.slots):
            offset = _SLOTS + slot * _SLOT.size
            if _WORD.unpack_from(self._page, offset)[0] == serial:
                _WORD.pack_into(self._page, offset + 32, order)
                _WORD.pack_into(self._page, offset + 24, serial)
                return True
        return False

    def skip_below(self, serial: int) -> None:
        """Let no job with a smaller serial begin."""
        _WORD.pack_into(self._page, _SKIP_BELOW, serial)

    def skip(self, serials: Sequence[int]) -> None:
        """Let these not begin, and no others that were named before; as many as there is room for."""
        listed = serials[:SKIPS]
        struct.pack_into(f"<{len(listed)}Q", self._page, _SKIP_LIST, *listed)
        _WORD.pack_into(self._page, _SKIP_COUNT, len(listed))

    def close(self) -> None:
        """Give the memory back."""
        self._page.close()

    def _skip_list(self, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}Q", self._page, _SKIP_LIST)
