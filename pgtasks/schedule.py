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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from itertools import islice
from typing import Any, Literal

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
MICROSECOND = timedelta(microseconds=1)

DURATION = r"(\d+(?:\.\d+)?) ?(s|sec|m|min|h|d|w)?"
UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


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
        from pgtasks.cron import SECOND, end_of_repeated, instant_of, read_line

        days = read_line(self.line, self.both)
        local = moment.astimezone(zone)
        naive = local.replace(tzinfo=None, microsecond=0, fold=0)
        if local.fold:  # all of this hour was there before
            naive = end_of_repeated(naive, zone) - SECOND
        while True:
            naive = days.after(naive)
            tick = instant_of(naive, zone)
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
    from pgtasks.cron import read_line

    line = " ".join(line.split())
    read_line(line, both).after(datetime(2000, 1, 1))  # noqa: DTZ001 (a time on the wall)
    return Cron(line, both)


Field = str | int | Iterable[int]


def crontab(
    minute: Field = "*",
    hour: Field = "*",
    day_of_week: Field = "*",
    day_of_month: Field = "*",
    month_of_year: Field = "*",
) -> Cron:
    """Describe a schedule as Celery does: ``crontab(minute=0, hour="*/3", day_of_week="mon-fri")``.

    Each argument is a number, a collection of numbers, or text such as ``*/15``, ``1-7,15``, ``fri-mon``. A day
    must fit both ``day_of_week`` and ``day_of_month``: in Celery it does, in a cron line either is enough.

    Raises:
        ConfigurationError: a field is none, or no day fits.
    """
    from pgtasks.crontab import field_of

    day = field_of("day_of_month", day_of_month)
    weekday = field_of("day_of_week", day_of_week)
    line = (
        f"{field_of('minute', minute)} {field_of('hour', hour)} {day} "
        f"{field_of('month_of_year', month_of_year)} {weekday}"
    )
    return cron(line, both="*" not in (day, weekday))


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
            found = re.fullmatch(DURATION, rest.lower())
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


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as it stands in the database.

    Attributes:
        spec: a cron line, ``every 30s``, or ``crontab …``; see `pgtasks.schedule`.
        next_at: the next tick; None: not computed yet.
        last_at: the last tick that was enqueued, and ``last_job_id`` its job.
        declared_by: "code", or "hand".
        undeclared_at: since when no live worker has it in its code: it does not tick.
        overrides: what was edited of one from code.
        error: why it does not tick.
        now: the database's clock when this was read.
    """

    name: str
    task: str
    args_json: str
    kwargs_json: str
    queue: str | None
    priority: int | None
    expires: float | None
    options: Mapping[str, Any] | None
    origin: str | None
    spec: str
    timezone: str
    catch_up: str
    next_at: datetime | None
    last_at: datetime | None
    last_job_id: str | None
    paused_at: datetime | None
    paused_by: str | None
    declared_by: str
    app: str | None
    undeclared_at: datetime | None
    overrides: Mapping[str, Any] | None
    error: str | None
    now: datetime

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Schedule:
        """Build one from the columns of list_schedules."""
        return cls(**dict(zip(cls.__struct_fields__, row, strict=True)))

    @property
    def state(self) -> str:
        """One word: paused, undeclared (in no live worker's code), error, or active."""
        if self.paused_at is not None:
            return "paused"
        if self.undeclared_at is not None:
            return "undeclared"
        return "active" if self.problem is None else "error"

    @property
    def problem(self) -> str | None:
        """Why it does not tick, as the database says or the row itself shows; None: it does."""
        try:
            plan(self.spec, self.timezone, self.catch_up, None, self.now)
        except ConfigurationError as error:
            return str(error)
        return self.error

    def next_ticks(self, count: int = 5) -> list[datetime]:
        """Return the next ticks, in UTC, as if it were active; none if the row cannot be read."""
        try:
            # After a step back of the clock the next one is not the first that the calendar has.
            waits = self.next_at is not None and self.paused_at is None
            after = (
                max(self.now, self.next_at - MICROSECOND) if waits and self.next_at else self.now
            )
            return list(islice(next_ticks(parse_spec(self.spec), self.timezone, after), count))
        except ConfigurationError:
            return []


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
