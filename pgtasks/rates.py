"""How many in which time: rates of token buckets, and how they are written."""

from __future__ import annotations

import math
import re

import msgspec

from pgtasks.errors import ConfigurationError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds of each letter that a written rate may end in; s, m and h are Celery's."""

MAX_BURST = 1_000_000
SLOWEST = 1 / (366 * 86400.0)
FASTEST = 1_000_000.0
"""Tokens a second beyond which a rate is a slip of the pen."""

WRITTEN = re.compile(r"\s*(?P<count>[0-9]+(?:\.[0-9]+)?)\s*(?:/\s*(?P<unit>[smhd])\s*)?")


class Rate(msgspec.Struct, frozen=True):
    """So many in so many seconds, as a token bucket has it.

    A bucket holds at most ``burst`` tokens and is full at first; it gains ``count`` in ``seconds``, evenly.
    In any stretch of t seconds no more than ``burst + t * count / seconds`` begin.

    Attributes:
        count: how many tokens come in each ``seconds``; a number above 0.
        seconds: the time in which they come.
        burst: how many may begin at once after a pause; None, when it is made: what comes in one
            second, at least 1.
    """

    count: float
    seconds: float = 1.0
    burst: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.count) or self.count <= 0:
            raise ConfigurationError(
                f"the count of a rate is a number above 0, found {self.count!r}: "
                "leave the rate out for no limit, pause for none at all"
            )
        if not _is_number(self.seconds) or self.seconds <= 0:
            raise ConfigurationError(
                f"the seconds of a rate are a number above 0, found {self.seconds!r}"
            )
        if not SLOWEST <= self.per_second <= FASTEST:
            raise ConfigurationError(
                f"a rate is between one in 366 days and {FASTEST:,.0f} in a second, "
                f"found {self.count!r} in {self.seconds!r} s"
            )
        if self.burst is None:
            msgspec.structs.force_setattr(self, "burst", max(1, math.ceil(self.per_second)))
        elif not _is_burst(self.burst):
            raise ConfigurationError(
                f"burst is a whole number from 1 to {MAX_BURST}, found {self.burst!r}"
            )

    @property
    def per_second(self) -> float:
        """How many tokens come in a second."""
        return self.count / self.seconds

    @property
    def tokens(self) -> int:
        """How many tokens a full bucket holds."""
        assert self.burst is not None  # filled in when it was made
        return self.burst

    def __str__(self) -> str:
        return written_rate(self.per_second)


def parse_rate(rate: Rate | str | float, *, burst: int | None = None) -> Rate:
    """Return the rate that was written: "10/s", "100/m", "1000/h", "5000/d", or a number of tokens a second.

    Args:
        rate: as text, as a number, or a Rate already, which is returned as it is.
        burst: how many may begin at once; None: what comes in one second, at least 1, or what the
            Rate says.

    Raises:
        ConfigurationError: this is no rate, or it is 0 or less.
    """
    if isinstance(rate, Rate):
        return rate if burst is None else Rate(rate.count, rate.seconds, burst)
    if isinstance(rate, str):
        match = WRITTEN.fullmatch(rate)
        if match is None:
            raise ConfigurationError(_not_a_rate(rate))
        count = float(match["count"])
        return Rate(int(count) if count.is_integer() else count, UNITS[match["unit"] or "s"], burst)
    if not _is_number(rate):
        raise ConfigurationError(_not_a_rate(rate))
    return Rate(rate, 1.0, burst)


def written_rate(per_second: float) -> str:
    """Return tokens a second as people write them: "100/m"; with the shortest unit that makes a whole number."""
    for unit, seconds in UNITS.items():
        count = per_second * seconds
        if count >= 0.999999 and math.isclose(count, round(count), rel_tol=1e-9):
            return f"{round(count)}/{unit}"
    unit = next((unit for unit, seconds in UNITS.items() if per_second * seconds >= 1), "d")
    return f"{per_second * UNITS[unit]:.6g}/{unit}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_burst(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_BURST


def _not_a_rate(found: object) -> str:
    return (
        "a rate is written 10/s, 100/m, 1000/h or 5000/d, or is a number of tokens a second, "
        f"found {found!r}"
    )
