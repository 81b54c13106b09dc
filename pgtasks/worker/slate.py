"""A page of memory that a child shares with the parent, to be read after the child's death.

The child writes how many jobs it has begun, before it begins one, and the outcomes that it has not yet
reported. So the parent knows, whatever kills the child, which job was running, and loses no outcome of
those that had finished: only the running job is charged.

    0..8    jobs begun so far
    8..12   bytes of unreported outcomes
    16..    the outcomes: JSON records, each followed by a comma

The child is the only writer. While it lives the parent reads the two numbers only (each is one aligned
machine word), and the outcomes once it is dead.
"""

from __future__ import annotations

import mmap
import struct

SIZE = 1 << 16
START = 16
ROOM = SIZE - START

_BEGUN = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")


class Slate:
    """The shared page of one child; made before the fork."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, SIZE)
        self._begun = 0
        self._length = 0

    def begin(self) -> None:
        """Note that one more job begins (child)."""
        self._begun += 1
        _BEGUN.pack_into(self._page, 0, self._begun)

    def add(self, record: bytes) -> bool:
        """Note an unreported outcome (child); False if there is no room for it."""
        end = self._length + len(record) + 1
        if end > ROOM:
            return False
        self._page[START + self._length : START + end] = record + b","
        self._length = end
        _LENGTH.pack_into(self._page, 8, end)  # last: a record counts once it is whole
        return True

    def unreported(self) -> bytes:
        """Return the outcomes noted as a JSON array (child; parent, once the child is dead)."""
        (length,) = _LENGTH.unpack_from(self._page, 8)
        return b"[" + self._page[START : START + max(0, length - 1)] + b"]"

    def clear(self) -> None:
        """Forget the outcomes, since they were reported (child)."""
        self._length = 0
        _LENGTH.pack_into(self._page, 8, 0)

    def has_unreported(self) -> bool:
        """Whether outcomes wait to be reported (parent)."""
        return bool(_LENGTH.unpack_from(self._page, 8)[0])

    def begun(self) -> int:
        """Return how many jobs the child has begun (parent)."""
        return int(_BEGUN.unpack_from(self._page, 0)[0])

    def close(self) -> None:
        """Give the memory back (parent)."""
        self._page.close()
