"""When schedules tick, against a calendar that is walked through second by second, or day by day."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import islice, pairwise, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtasks import ConfigurationError, crontab, every
from pgtasks.schedule import (
    GRACE,
    TICKS_AT_ONCE,
    Cron,
    as_spec,
    cron,
    next_ticks,
    parse_spec,
    plan,
    zone_of,
)

# Whole hours and half ones, both hemispheres, a zone that jumps at midnight, one that lost a day, one without.
ZONES = [
    "Europe/Vienna",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Africa/Cairo",
    "Pacific/Apia",
    "Asia/Kolkata",
    "UTC",
]
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=n) for n in (1, 60, 3600, 86400))


class Fields(NamedTuple):
    """The numbers of each field; None: a star."""

    minutes: frozenset[int] | None
    hours: frozenset[int] | None
    days: frozenset[int] | None
    months: frozenset[int] | None
    weekdays: frozenset[int] | None
    seconds: frozenset[int] | None

    def line(self) -> str:
        fields = ["*" if one is None else ",".join(map(str, sorted(one))) for one in self]
        return " ".join(fields[:5] if self.seconds == frozenset({0}) else fields)

    def fits_day(self, day: date, both: bool) -> bool:
        if self.months is not None and day.month not in self.months:
            return False
        in_month = self.days is None or day.day in self.days
        in_week = self.weekdays is None or day.isoweekday() % 7 in self.weekdays
        if self.days is not None and self.weekdays is not None and not both:
            return in_month or in_week
        return in_month and in_week

    def fits(self, wall: datetime, both: bool) -> bool:
        return (
            (self.seconds is None or wall.second in self.seconds)
            and (self.minutes is None or wall.minute in self.minutes)
            and (self.hours is None or wall.hour in self.hours)
            and self.fits_day(wall.date(), both)
        )


def numbers(least: int, most: int) -> st.SearchStrategy[frozenset[int] | None]:
    some = st.frozensets(st.integers(least, most), min_size=1, max_size=4)
    steps = st.integers(1, 20).map(lambda step: frozenset(range(least, most + 1, step)))
    return st.one_of(st.none(), some, steps)


FIELDS = st.builds(
    Fields,
    minutes=numbers(0, 59),
    hours=numbers(0, 23),
    days=st.one_of(st.none(), st.none(), numbers(1, 31)),
    months=st.one_of(st.none(), st.none(), numbers(1, 12)),
    weekdays=st.one_of(st.none(), st.none(), numbers(0, 6)),
    seconds=st.just(frozenset({0})),
)


def changes(zone: tzinfo, year: int) -> list[datetime]:
    """Return the hours of a year in which the clock is set."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + n * HOUR for n in range(366 * 24)]
    offsets = [one.astimezone(zone).utcoffset() for one in hours]
    return [
        hour
        for hour, before, after in zip(hours[1:], offsets, offsets[1:], strict=False)
        if before != after
    ]


def walk(
    fields: Fields, both: bool, zone: tzinfo, after: datetime, until: datetime, step: timedelta
) -> Iterator[datetime]:
    """Look at the clock on the wall at each step, and yield when a line ticks.

    What the wall has shown before does not count again; what it jumps over counts at the jump, all together once.
    """
    moment = after - 2 * DAY if step == MINUTE else after - 2 * HOUR
    latest = moment.astimezone(zone).replace(tzinfo=None, fold=0)
    while moment < until:
        moment += step
        wall = moment.astimezone(zone).replace(tzinfo=None, fold=0)
        ticks = False
        while latest < wall:
            latest += step
            ticks = ticks or fields.fits(latest, both)
        if ticks and after < moment:
            yield moment


@st.composite
def nights(draw: st.DrawFn) -> tuple[str, datetime]:
    """A zone, and a moment near a change of its clock, if it has any in that year."""
    name = draw(st.sampled_from(ZONES))
    year = draw(st.integers(2010, 2040))
    found = changes(ZoneInfo(name), year) or [datetime(year, 2, 28, tzinfo=UTC)]
    return name, draw(st.sampled_from(found))


@pytest.mark.parametrize(
    "examples", [15, pytest.param(250, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_line_ticks_as_the_clock_on_the_wall_says_through_nights_when_it_is_set(examples):
    @settings(max_examples=examples, deadline=None)
    @given(fields=FIELDS, both=st.booleans(), night=nights(), before=st.integers(0, 36 * 60))
    def check(fields, both, night, before):
        ticks_as_the_wall_says(fields, both, night, before)

    check()


def ticks_as_the_wall_says(fields, both, night, before):
    name, change = night
    after = change - before * MINUTE
    until = after + 2 * DAY
    try:
        spec = cron(fields.line(), both=both)
    except ConfigurationError:
        assert fields.days is not None  # the 30th of February and the like, and no other
        assert not any(fields.fits_day(date(2000, 1, 1) + n * DAY, both) for n in range(366 * 29))
        return

    found = list(takewhile(lambda one: one <= until, next_ticks(spec, name, after)))

    assert found == list(walk(fields, both, ZoneInfo(name), after, until, MINUTE))


@settings(max_examples=6, deadline=None)
@given(seconds=numbers(0, 59), minutes=numbers(0, 59), night=nights(), before=st.integers(0, 3600))
def test_the_sixth_field_is_the_second(seconds, minutes, night, before):
    name, change = night
    fields = Fields(minutes, None, None, None, None, seconds)
    after = change - before * SECOND
    until = after + 2 * HOUR

    ticks = next_ticks(cron(fields.line()), name, after)

    assert list(takewhile(lambda one: one <= until, ticks)) == list(
        walk(fields, False, ZoneInfo(name), after, until, SECOND)
    )


@settings(max_examples=12, deadline=None)
@given(fields=FIELDS, both=st.booleans(), start=st.dates(date(1995, 1, 1), date(2399, 1, 1)))
def test_days_are_those_of_the_calendar_with_its_leap_days(fields, both, start):
    fields = fields._replace(minutes=frozenset({30}), hours=frozenset({12}))
    after = datetime(start.year, start.month, start.day, 20, tzinfo=UTC)
    until = start + 9 * 366 * DAY  # over the year 2100 and such, which have no leap day
    days = [start + n * DAY for n in range(1, (until - start).days + 1)]
    expected = [day for day in days if fields.fits_day(day, both)]
    try:
        spec = cron(fields.line(), both=both)
    except ConfigurationError:
        assert expected == []
        return

    found = takewhile(lambda one: one.date() <= until, next_ticks(spec, "UTC", after))

    assert [one.date() for one in found] == expected


@pytest.mark.parametrize(
    "line",
    [
        "0 0 l * *",
        "0 0 l,15 2 *",
        "30 6 * * fri#2",
        "30 6 * * l5",
        "0 22-2 * jan-mar/2 sun",
        "50-10/5 * * * *",
        "@weekly",
        "0 0 29 2 *",
        "0 12 1 * mon",
        "0 0 * * 7",
        "* * * * * 5/20",
    ],
)
def test_words_and_signs_mean_what_they_mean_in_croniter(line):
    after = datetime(2027, 12, 30, 23, 59, 30, tzinfo=UTC)
    theirs = croniter(line, after)

    ticks = next_ticks(cron(line), "UTC", after)

    assert [next(ticks) for _ in range(60)] == [theirs.get_next(datetime) for _ in range(60)]


@pytest.mark.parametrize(
    ("line", "zone", "day", "expected"),
    [
        # 02:30 does not come on 29 March 2026 in Vienna, where 03:00 follows 02:00: once, right after.
        ("30 2 * * *", "Europe/Vienna", (2026, 3, 29), ["03:00+0200"]),
        ("10,30,50 2 * * *", "Europe/Vienna", (2026, 3, 29), ["03:00+0200"]),
        # 02:30 comes twice on 25 October 2026: the first time.
        ("30 2 * * *", "Europe/Vienna", (2026, 10, 25), ["02:30+0200"]),
        ("0 */1 * * *", "America/New_York", (2026, 11, 1), None),
        # The clock goes from 02:00 back to 01:30 on Lord Howe, and in October from 02:00 to 02:30.
        ("45 1 * * *", "Australia/Lord_Howe", (2026, 4, 5), ["01:45+1100"]),
        ("15 2 * * *", "Australia/Lord_Howe", (2026, 10, 4), ["02:30+1100"]),
        # The 30th of December 2011 was left out on Samoa.
        ("0 12 30 12 *", "Pacific/Apia", (2011, 12, 31), ["00:00+1400"]),
    ],
)
def test_a_skipped_hour_runs_once_after_it_and_a_repeated_one_once(line, zone, day, expected):
    year, month, of_month = day
    start = datetime(year, month, of_month, tzinfo=ZoneInfo(zone)).astimezone(UTC) - SECOND
    end = start + 25 * HOUR

    ticks = list(takewhile(lambda one: one <= end, next_ticks(cron(line), zone, start)))

    shown = [one.astimezone(ZoneInfo(zone)).strftime("%H:%M%z") for one in ticks]
    if expected is None:  # 24 times in 25 hours
        assert len(ticks) == 24
        assert max(b - a for a, b in pairwise(ticks)) == 2 * HOUR
    else:
        assert shown[: len(expected)] == expected
        assert len(shown) <= len(expected) + 1


@given(seconds=st.floats(0.1, 1e6), moment=st.integers(10**15, 7 * 10**15))
def test_an_interval_is_counted_from_one_anchor_by_all(seconds, moment):
    spec, after = (
        every(seconds),
        datetime(1970, 1, 1, tzinfo=UTC) + moment * timedelta(microseconds=1),
    )

    first, second = islice(next_ticks(spec, "Europe/Vienna", after), 2)

    length = timedelta(microseconds=spec.microseconds)
    assert after < first <= after + length
    assert second - first == length
    assert (first - datetime(1970, 1, 1, tzinfo=UTC)) % length == timedelta(0)


# Catching up

SPECS = ["* * * * *", "every 7s", "*/15 * * * *", "30 2 * * *", "every 1d"]


@settings(max_examples=40, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    zone=st.sampled_from(["UTC", "Europe/Vienna"]),
    catch_up=st.sampled_from(["skip", "one", "all"]),
    start=st.floats(0, 2 * 86400),
    waits=st.lists(st.floats(0, 4000) | st.floats(-4000, 0) | st.floats(0, 90), max_size=12),
)
def test_no_tick_is_lost_or_doubled_however_late_one_looks_and_wherever_the_clock_steps(
    spec, zone, catch_up, start, waits
):
    now = latest = datetime(2026, 3, 28, tzinfo=UTC) + timedelta(seconds=start)
    next_at = plan(spec, zone, catch_up, None, now).next_at
    first = next_at
    enqueued: list[datetime] = []
    for wait in waits:
        now += timedelta(seconds=wait)
        latest = max(latest, now)
        while True:
            found = plan(spec, zone, catch_up, next_at, now)
            assert len(found.ticks) <= TICKS_AT_ONCE
            assert all(next_at <= tick <= now for tick in found.ticks)
            late = now - timedelta(seconds=GRACE)
            if catch_up == "one" and next_at <= late:
                assert found.ticks == (next_at,)
            if catch_up == "skip":
                assert all(tick > late for tick in found.ticks)
            if found.next_at == next_at:
                break
            enqueued += found.ticks
            next_at = found.next_at

    every_tick = takewhile(
        lambda one: one <= latest, next_ticks(parse_spec(spec), zone, first - SECOND / 1e6)
    )
    expected = list(every_tick)
    assert next_at > latest
    assert enqueued == sorted(set(enqueued))
    assert set(enqueued) <= set(expected)
    if catch_up == "all" or max(waits, default=0) < GRACE:
        assert enqueued == expected


def test_what_is_dropped_is_said():
    now = datetime(2026, 1, 1, 12, 0, 5, tzinfo=UTC)
    before = now - 10 * MINUTE - 5 * SECOND

    assert plan("* * * * *", "UTC", "skip", before, now).dropped
    assert plan("* * * * *", "UTC", "one", before, now).dropped
    assert not plan("* * * * *", "UTC", "all", before, now).dropped
    assert not plan("every 1d", "UTC", "one", before, now).dropped  # one was missed, and has a job
    assert not plan("* * * * *", "UTC", "skip", now - 5 * SECOND, now).dropped


# What cannot be a schedule


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("61 * * * *", "'61 \\* \\* \\* \\*' is no cron line: .*out of range"),
        ("* * *", "five fields .*and the second as the sixth.*, found 3"),
        ("* * * * * * *", "found 7"),
        ("", "a cron line or 'every 30s'"),
        ("* " * 600, "at most 1000 characters"),
        ("* * * * * 60", "out of range"),
        ("0 0 15W * *", "the day-of-month of cron line .* is no field: .* found '15W'"),
        ("R * * * *", "the minute of cron line"),
        ("H * * * *", "the minute of cron line"),
        ("L" * 199 + "R * * * *", "is no .{1,400}$"),
        ("*/0 * * * *", "is no cron line"),
        ("0-99999999999 * * * *", "is no cron line"),
        ("@reboot", "five fields"),
        ("0 0 30 2 *", "never comes: no month has such a day"),
        ("crontab 0 0 31 4,6 *", "never comes"),
        ("every now and then", "expected 'every' and a duration such as 30s"),
        ("every 0s", r"every\(\) takes a number of seconds or a timedelta, from 0.1 to 31622400"),
        (0, r"found 0$"),
        (-5.0, "found -5.0"),
        (float("nan"), "found nan"),
        (True, "found True"),
        (timedelta(days=900), "found datetime.timedelta"),
        (None, r"a schedule is a cron line such as '\*/5 \* \* \* \*', .* found None"),
        (["* * * * *"], "a schedule is a cron line"),
    ],
)
def test_what_is_no_schedule_is_refused_with_a_reason(spec, message):
    with pytest.raises(ConfigurationError, match=message):
        as_spec(spec)


@pytest.mark.parametrize("name", ["Europe/Wien", "", "../../etc/passwd", "/etc", "Europe", None, 7])
def test_what_is_no_time_zone_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"there is no time zone .*'Europe/Vienna'"):
        zone_of(name)


@given(text=st.text(max_size=40) | st.text("*/,-#L?0123456789 abdefjmnorstuwy@", max_size=30))
def test_any_text_is_a_schedule_or_refused(text):
    try:
        spec = parse_spec(text)
    except ConfigurationError:
        return
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("every 90", "every 90s"),
        ("Every 1.5 min", "every 90s"),
        ("every 2h", "every 7200s"),
        ("every 0.25s", "every 0.25s"),
        ("  */5  *  * * * ", "*/5 * * * *"),
        ("crontab 0 0 13 * fri", "crontab 0 0 13 * fri"),
    ],
)
def test_a_schedule_has_one_spelling(text, canonical):
    assert str(parse_spec(text)) == canonical


# Celery's crontab


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "* * * * *"),
        ({"minute": 0, "hour": "*/8"}, "0 0,8,16 * * *"),
        ({"minute": "0,30", "day_of_week": "mon-wed"}, "0,30 * * * 1,2,3"),
        ({"day_of_week": "fri-mon"}, "* * * * 0,1,5,6"),
        ({"day_of_week": "Sunday"}, "* * * * 0"),
        ({"month_of_year": "*/3"}, "* * * 1,4,7,10 *"),
        ({"month_of_year": "nov-jan"}, "* * * 1,11,12 *"),
        ({"minute": "10-59/20"}, "10,30,50 * * * *"),
        ({"hour": {3, 1}}, "* 1,3 * * *"),
        ({"minute": range(60)}, "* * * * *"),
        ({"day_of_month": "1-3", "day_of_week": 0}, "crontab * * 1,2,3 * 0"),
    ],
)
def test_crontab_means_what_it_means_in_celery(fields, line):
    assert str(crontab(**fields)) == line


@pytest.mark.parametrize(
    "fields",
    [
        {"minute": 60},
        {"minute": "*/0"},
        {"minute": ""},
        {"hour": []},
        {"hour": "noon"},
        {"hour": 1.5},
        {"day_of_week": 7},
        {"day_of_month": 0},
        {"day_of_month": True},
        {"day_of_month": 31, "month_of_year": [2, 4]},
    ],
)
def test_crontab_refuses_what_celery_refuses(fields):
    with pytest.raises(ConfigurationError, match=r"crontab\(|never comes"):
        crontab(**fields)


def test_both_days_must_fit_in_crontab_and_either_is_enough_in_a_line():
    after = datetime(2026, 1, 1, tzinfo=UTC)
    friday_13th = crontab(minute=0, hour=0, day_of_month=13, day_of_week="fri")

    both = next_ticks(friday_13th, "UTC", after)
    either = next_ticks(Cron("0 0 13 * fri"), "UTC", after)

    assert [next(both).date().isoformat() for _ in range(2)] == ["2026-02-13", "2026-03-13"]
    assert next(either).date().isoformat() == "2026-01-02"
