"""A cron line on the calendar, and from the clock on the wall to UTC. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Any, cast

from pgtasks.errors import ConfigurationError

SECOND = timedelta(seconds=1)
# After so many years a calendar begins anew, weekdays included: what does not come in them never comes.
CALENDAR_YEARS = 400

# croniter takes more than it keeps: it reads 15W as 15, and R as a number of chance that each worker draws anew.
FIELD = re.compile(r"(?:[0-9*/,?#-]|L(?![A-Z])|[A-Z]{3})+")
ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week", "second")


class DaysAndTimes:
    """A cron line without time zone: on which days, at which times of them.

    Args:
        fields: what croniter makes of the line: numbers, or "*", for each field.
        nth: day of the week -> which of that month: numbers, or "l" for the last.
        both: where both days are restricted both must fit.
        line: for messages.
    """

    def __init__(
        self,
        fields: Sequence[Sequence[int | str]],
        nth: Mapping[int, Any],
        both: bool,
        line: str,
    ) -> None:
        self._minutes = _numbers(fields[0], range(60))
        self._hours = _numbers(fields[1], range(24))
        self._days = None if fields[2][0] == "*" else set(fields[2])
        self._months = set(_numbers(fields[3], range(1, 13)))
        self._weekdays = None if fields[4][0] == "*" else set(cast("Sequence[int]", fields[4]))
        self._seconds = _numbers(fields[5], range(60)) if len(fields) > 5 else [0]
        self._nth = nth
        self._both = both
        self._line = line
        self._first = time(self._hours[0], self._minutes[0], self._seconds[0])
        self._days_of = lru_cache(8)(self._find_days)  # (year, month)

    def after(self, moment: datetime) -> datetime:
        """Return the first that comes after a time on the wall; ConfigurationError if none does."""
        moment += SECOND
        day = moment.date()
        if day.day in self._days_of(day.year, day.month):
            found = self._time_from(moment.hour, moment.minute, moment.second)
            if found is not None:
                return datetime.combine(day, found)
        year, month, least = day.year, day.month, day.day + 1
        for _ in range(12 * CALENDAR_YEARS + 1):
            if month in self._months:
                days = self._days_of(year, month)
                place = bisect_left(days, least)
                if place < len(days):
                    return datetime.combine(date(year, month, days[place]), self._first)
            year, month, least = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
            if year > 9998:
                break
        raise ConfigurationError(f"cron line {self._line!r} never comes: no month has such a day")

    def _time_from(self, hour: int, minute: int, second: int) -> time | None:
        """Return the first time of a day from this one on."""
        for one in self._hours[bisect_left(self._hours, hour) :]:
            if one > hour:
                return time(one, self._minutes[0], self._seconds[0])
            for other in self._minutes[bisect_left(self._minutes, minute) :]:
                if other > minute:
                    return time(one, other, self._seconds[0])
                place = bisect_left(self._seconds, second)
                if place < len(self._seconds):
                    return time(one, other, self._seconds[place])
        return None

    def _find_days(self, year: int, month: int) -> list[int]:
        """Return the days of a month that fit."""
        if month not in self._months:
            return []
        first = date(year, month, 1)
        weekday = first.weekday()  # Monday is 0
        last = ((first + timedelta(days=31)).replace(day=1) - first).days
        if self._days is None and self._weekdays is None:
            return list(range(1, last + 1))
        of_month = {
            day for day in range(1, last + 1) if self._days is None or self._is_day(day, last)
        }
        of_week = {
            day
            for day in range(1, last + 1)
            if self._weekdays is None or self._is_weekday(day, (weekday + day) % 7, last)
        }
        either = self._days is not None and self._weekdays is not None and not self._both
        return sorted(of_month | of_week if either else of_month & of_week)

    def _is_day(self, day: int, last: int) -> bool:
        assert self._days is not None
        return day in self._days or (day == last and "l" in self._days)

    def _is_weekday(self, day: int, weekday: int, last: int) -> bool:
        """Whether a day fits; Sunday is 0."""
        assert self._weekdays is not None
        if weekday not in self._weekdays:
            return False
        which = self._nth.get(weekday)
        return not which or (day - 1) // 7 + 1 in which or ("l" in which and day + 7 > last)


def _numbers(field: Sequence[int | str], whole: range) -> list[int]:
    return list(whole) if field[0] == "*" else sorted({int(one) for one in field})


@lru_cache(10_000)
def read_line(line: str, both: bool) -> DaysAndTimes:
    """Read a line; ConfigurationError if it is none."""
    fields = line.split()
    if line.lower() not in ALIASES:
        if len(fields) not in (5, 6):
            raise ConfigurationError(
                "a cron line has five fields (minute hour day-of-month month day-of-week), and the second as the "
                f"sixth if it has one, found {len(fields)} in {line!r:.80}"
            )
        for name, field in zip(FIELDS, fields, strict=False):
            if not FIELD.fullmatch(field.upper()):
                raise ConfigurationError(
                    f"the {name} of cron line {line!r:.80} is no field: expected numbers, names, * - , / # or L, "
                    f"found {field!r:.80}"
                )
    from croniter import CroniterError, croniter  # 0.05 s, and not every program has a cron line

    try:
        expanded, nth = croniter.expand(line.lower())
    except (CroniterError, ValueError, LookupError) as error:
        raise ConfigurationError(f"{line!r:.80} is no cron line: {error!s:.200}") from None
    return DaysAndTimes(expanded, nth, both, line)


# From the wall to UTC


def instant_of(naive: datetime, zone: tzinfo) -> datetime:
    """Return when a clock on the wall shows this first; if it never does, when it jumps over that."""
    found = naive.replace(tzinfo=zone).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None, fold=0) == naive:
        return found
    # In a gap the two readings lie around the jump: that by the new offset before it, that by the old one after.
    other = naive.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return _change_between(min(found, other), max(found, other), zone)


def end_of_repeated(naive: datetime, zone: tzinfo) -> datetime:
    """Return until when, on the wall, the clock shows for the second time what it showed before."""
    first = naive.replace(tzinfo=zone)
    second = naive.replace(tzinfo=zone, fold=1)
    change = _change_between(first.astimezone(UTC), second.astimezone(UTC), zone)
    offset = first.utcoffset()
    assert offset is not None
    return (change + offset).replace(tzinfo=None)


def _change_between(low: datetime, high: datetime, zone: tzinfo) -> datetime:
    """Return the first moment after low, and up to high, at which the offset of high holds."""
    new = high.astimezone(zone).utcoffset()
    while high - low > SECOND:
        middle = low + (high - low) // SECOND // 2 * SECOND
        if middle.astimezone(zone).utcoffset() == new:
            high = middle
        else:
            low = middle
    return high
