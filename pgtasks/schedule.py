"""When a schedule ticks: cron lines, intervals, time zones, and which missed ticks are caught up. Pure.

A cron line has five fields, and may have a sixth at its end, as croniter has it:

    minute  hour  day-of-month  month  day-of-week  [second]

``*/10 * * * *`` is every ten minutes, ``* * * * * */10`` every ten seconds. Days of the week go from 0 (Sunday) to 6,
7 is Sunday, too; months and days may be names. ``L`` is the last day of a month, ``fri#2`` its second Friday, ``L5``
its last. Where both days are restricted either is enough, as in cron; in Celery's ``crontab(…)`` both must fit.

Daylight saving: a line is read on the clock on the wall. What lies in an hour that is skipped ticks once, at the
moment after it; what lies in an hour that is repeated ticks once, in the first of both. Intervals (`every`) know no
wall: they are counted from 1970-01-01 00:00 UTC, so that all workers agree, and go through such nights unmoved.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache, lru_cache
from typing import Any, Literal, cast

import msgspec

from pgtasks.errors import ConfigurationError

CatchUp = Literal["skip", "one", "all"]
CATCH_UP = ("skip", "one", "all")

# Seconds that a tick may be late before it counts as missed: as long as a worker takes to be restarted.
GRACE = 30.0
# How many ticks of one schedule are made up for in one step. The rest follows in the next.
TICKS_AT_ONCE = 100

SHORTEST, LONGEST = 0.1, 366 * 86400.0  # of an interval, in seconds
MAX_SPEC = 1000  # characters; the schema has the same limit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND, SECOND, DAY = timedelta(microseconds=1), timedelta(seconds=1), timedelta(days=1)
# After so many years a calendar begins anew, weekdays included: what does not come in them never comes.
CALENDAR_YEARS = 400

DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|sec|m|min|h|d|w)?")
UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# croniter takes more than it keeps: it reads 15W as 15, and R as a number of chance that each worker draws anew.
FIELD = re.compile(r"(?:[0-9*/,?#-]|L(?![A-Z])|[A-Z]{3})+")
ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week", "second")


class Every(msgspec.Struct, frozen=True):
    """An interval, counted from 1970-01-01 00:00 UTC; made by `every`.

    Attributes:
        microseconds: its length.
    """

    microseconds: int

    def __str__(self) -> str:
        seconds = f"{self.microseconds / 1e6:.6f}".rstrip("0").rstrip(".")
        return f"every {seconds}s"

    def after(self, moment: datetime, zone: tzinfo) -> datetime:
        """Return the first tick after a moment; the time zone does not matter."""
        passed = (moment - EPOCH) // MICROSECOND
        return EPOCH + (passed // self.microseconds + 1) * self.microseconds * MICROSECOND


class Cron(msgspec.Struct, frozen=True):
    """A cron line, see above.

    Attributes:
        line: five fields or six.
        both: where both days are restricted both must fit, as in Celery.
    """

    line: str
    both: bool = False

    def __str__(self) -> str:
        return f"crontab {self.line}" if self.both else self.line

    def after(self, moment: datetime, zone: tzinfo) -> datetime:
        """Return the first tick after a moment; ConfigurationError if there is none."""
        days = _days_and_times(self.line, self.both)
        local = moment.astimezone(zone)
        naive = local.replace(tzinfo=None, microsecond=0, fold=0)
        if local.fold:  # all of this hour was there before
            naive = _end_of_repeated(naive, zone) - SECOND
        while True:
            naive = days.after(naive)
            tick = _instant(naive, zone)
            if tick > moment:
                return tick


Spec = Cron | Every


def every(seconds: float | timedelta) -> Every:
    """Tick at a fixed interval, in seconds or as a timedelta: ``every(30)``, ``every(timedelta(hours=6))``.

    The ticks are aligned to 1970-01-01 00:00 UTC, so ``every(3600)`` ticks on the hour, in UTC.

    Raises:
        ConfigurationError: that is no interval.
    """
    found = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if type(found) not in (int, float) or not SHORTEST <= found <= LONGEST:
        raise ConfigurationError(
            f"every() takes a number of seconds or a timedelta, from {SHORTEST:g} to {LONGEST:.0f} (366 days), "
            f"found {seconds!r}"
        )
    return Every(round(found * 1_000_000))


def cron(line: str, *, both: bool = False) -> Cron:
    """Read a cron line of five fields, or six with the seconds at the end.

    Args:
        line: minute, hour, day of month, month, day of week, and second if it is not 0.
        both: where both days are restricted both must fit.

    Raises:
        ConfigurationError: it is none, or it never comes, as the 30th of February.
    """
    line = " ".join(line.split())
    _days_and_times(line, both).after(datetime(2000, 1, 1))  # noqa: DTZ001 (a time on the wall)
    return Cron(line, both)


def parse_spec(text: object) -> Spec:
    """Read what `str` makes of a schedule: a cron line, ``every 30s``, ``every 2h``, ``crontab 0 0 1 * mon``.

    Raises:
        ConfigurationError: it is none of these.
    """
    if not isinstance(text, str) or not 0 < len(text) <= MAX_SPEC:
        raise ConfigurationError(
            f"a schedule is a cron line or 'every 30s', of at most {MAX_SPEC} characters, found {text!r:.80}"
        )
    word, _, rest = " ".join(text.split()).partition(" ")
    match word.lower():
        case "every":
            found = DURATION.fullmatch(rest.lower())
            if found is None:
                raise ConfigurationError(
                    f"expected 'every' and a duration such as 30s, 5m, 2h or 1d, found {text!r:.80}"
                )
            return every(float(found[1]) * UNITS[found[2] or ""])
        case "crontab":
            return cron(rest, both=True)
        case _:
            return cron(text)


def as_spec(value: object) -> Spec:
    """Return what a program may say for a schedule: a cron line, seconds, a timedelta, `every`, `crontab`.

    Raises:
        ConfigurationError: it is none of these.
    """
    match value:
        case Cron() | Every():
            return value
        case str():
            return parse_spec(value)
        case timedelta() | int() | float():
            return every(value)
        case _:
            raise ConfigurationError(
                "a schedule is a cron line such as '*/5 * * * *', a number of seconds, a timedelta, every(…) or "
                f"crontab(…), found {value!r:.200}"
            )


@cache
def zone_of(name: str) -> tzinfo:
    """Return the time zone of that name; ConfigurationError if there is none."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, available_timezones

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError, TypeError):
        if not available_timezones():
            raise ConfigurationError(
                f"time zone {name!r} cannot be looked up, this machine has no time zones: run 'pip install tzdata'"
            ) from None
        raise ConfigurationError(
            f"there is no time zone {name!r:.80}: expected an IANA name such as 'Europe/Vienna' or 'UTC'"
        ) from None


def check_catch_up(value: object) -> None:
    """Raise ConfigurationError for what is no way to catch up."""
    if value not in CATCH_UP:
        raise ConfigurationError(
            f"catch_up is 'skip' (drop what was missed), 'one' (one job for all of it) or 'all', found {value!r}"
        )


# What is due


class Plan(msgspec.Struct, frozen=True):
    """What is to be done about a schedule now.

    Attributes:
        ticks: what is enqueued, a job each.
        next_at: the first tick after these.
        dropped: whether ticks before these were missed, and get no job of their own.
    """

    ticks: Sequence[datetime]
    next_at: datetime
    dropped: bool = False


def plan(spec: str, timezone: str, catch_up: str, next_at: datetime | None, now: datetime) -> Plan:
    """Decide which ticks are due, and which comes next.

    Args:
        spec: as it stands in the row, which anybody may have written.
        timezone: like spec.
        catch_up: like spec.
        next_at: the first tick that was not enqueued; None: not computed yet.
        now: the database's clock.

    A tick that is late by `GRACE` or more was missed. ``skip`` drops those; ``one`` enqueues one job, of the first
    of them, for all that is due; ``all`` enqueues a job for each, at most `TICKS_AT_ONCE` in one step.

    Raises:
        ConfigurationError: the row cannot be read, or nothing comes next.
    """
    when, zone = parse_spec(spec), zone_of(timezone)
    check_catch_up(catch_up)
    if next_at is None:
        return Plan((), when.after(now, zone))
    if next_at > now:
        return Plan((), next_at)
    limit = now - timedelta(seconds=GRACE)
    missed = next_at <= limit
    if missed and catch_up == "one":
        return Plan((next_at,), when.after(now, zone), dropped=when.after(next_at, zone) <= now)
    first = when.after(limit, zone) if missed and catch_up == "skip" else next_at
    ticks: list[datetime] = []
    while first <= now and len(ticks) < TICKS_AT_ONCE:
        ticks.append(first)
        first = when.after(first, zone)
    return Plan(ticks, first, dropped=missed and catch_up == "skip")


def next_ticks(spec: Spec, timezone: str, after: datetime) -> Iterator[datetime]:
    """Yield the ticks after a moment, in UTC; they end where the calendar does."""
    zone = zone_of(timezone)
    while True:
        try:
            after = spec.after(after, zone)
        except ConfigurationError:
            return
        yield after


# A cron line on the calendar


class _DaysAndTimes:
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
        weekday, last = monthrange(year, month)  # of the first; Monday is 0
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
def _days_and_times(line: str, both: bool) -> _DaysAndTimes:
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
        raise ConfigurationError(f"{line!r:.80} is no cron line: {error}") from None
    return _DaysAndTimes(expanded, nth, both, line)


# From the wall to UTC


def _instant(naive: datetime, zone: tzinfo) -> datetime:
    """Return when a clock on the wall shows this first; if it never does, when it jumps over that."""
    found = naive.replace(tzinfo=zone).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None, fold=0) == naive:
        return found
    # In a gap the two readings lie around the jump: that by the new offset before it, that by the old one after.
    other = naive.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return _change_between(min(found, other), max(found, other), zone)


def _end_of_repeated(naive: datetime, zone: tzinfo) -> datetime:
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
