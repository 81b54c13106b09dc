"""Ids of jobs and bundles: UUIDv7 (RFC 9562), made by the client.

    48 bits  Unix time in ms
     4 bits  version, 7
    12 bits  fraction of that millisecond, in 1/4096 (method 3 of section 6.2)
     2 bits  variant
    62 bits  random

They sort by time, so inserts go to the right end of an index. They are text of one form only,
lower case with hyphens. Random tails are made in bulk, since a call of `os.urandom` costs more than
all the rest.
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime, timedelta

__all__ = ["id_time", "new_id", "new_ids", "parse_id"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BULK = 256  # a refill costs 60 µs then, and 8 kB; beyond that new_id() gets no faster
_WITH_VARIANT = bytes((byte & 0x3F) | 0x80 for byte in range(256))
_FORM = re.compile("[0-9a-f]{8}(-?)[0-9a-f]{4}(-?)[0-9a-f]{4}(-?)[0-9a-f]{4}(-?)[0-9a-f]{12}")

# Random tails not yet used. Any thread pops and refills: both are atomic on a list. A forked child
# must not use its parent's.
_tails: list[str] = []
os.register_at_fork(after_in_child=_tails.clear)


def new_id() -> str:
    """Return a new id."""
    try:
        tail = _tails.pop()
    except IndexError:
        tail, *rest = _random_tails(_BULK)
        _tails.extend(rest)
    return _join(_ticks(), tail)


def new_ids(n: int) -> list[str]:
    """Return n new ids, each greater than the one before."""
    start = _ticks()
    # One tick (0.24 µs) apart: no more than it takes to make one, so they stay behind the clock.
    return [_join(start + i, tail) for i, tail in enumerate(_random_tails(n))]


def parse_id(text: str) -> str:
    """Return the id in its one form; hyphens may be missing, case does not matter.

    Raises:
        ValueError: the text is no UUID.
    """
    lower = str(text).lower()  # str(): a uuid.UUID is welcome
    match = _FORM.fullmatch(lower)
    if match is None or len(set(match.groups())) > 1:
        raise ValueError(f"expected a UUID, found {text!r}")
    digits = lower.replace("-", "")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def id_time(id: str) -> datetime | None:
    """Return when an id was made, to the millisecond.

    None if it does not say: it is of another version, or its time is past the year 9999.
    """
    if id[14] != "7" or id[19] not in "89ab":
        return None
    try:
        return _EPOCH + timedelta(milliseconds=int(id[:8] + id[9:13], 16))
    except OverflowError:
        return None


def _ticks() -> int:
    """Return Unix time in 1/4096 ms: the 60 bits of an id's time, in order."""
    return time.time_ns() * 64 // 15_625


def _join(ticks: int, tail: str) -> str:
    digits = hex(ticks | 1 << 60)  # "0x1" and 15 digits: half the price of formatting with zeros
    return f"{digits[3:11]}-{digits[11:15]}-7{digits[15:]}-{tail}"


def _random_tails(n: int) -> list[str]:
    raw = bytearray(os.urandom(8 * n))
    raw[::8] = raw[::8].translate(_WITH_VARIANT)
    digits = raw.hex()
    return [f"{digits[i : i + 4]}-{digits[i + 4 : i + 16]}" for i in range(0, 16 * n, 16)]
