"""Celery's ``crontab(minute=…, hour=…, …)``, as a cron line. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pgtasks.errors import ConfigurationError
from pgtasks.schedule import Cron, cron

Field = str | int | Iterable[int]

PART = re.compile(
    r"(?:(?P<all>\*)|(?P<first>[a-z0-9]+)(?:-(?P<last>[a-z0-9]+))?)(?:/(?P<step>\d+))?"
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


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
    fields = [
        _field("minute", minute, 0, 59),
        _field("hour", hour, 0, 23),
        _field("day_of_month", day_of_month, 1, 31),
        _field("month_of_year", month_of_year, 1, 12, MONTHS),
        _field("day_of_week", day_of_week, 0, 6, WEEKDAYS),
    ]
    return cron(" ".join(fields), both=fields[2] != "*" and fields[4] != "*")


def _field(name: str, value: Field, least: int, most: int, names: tuple[str, ...] = ()) -> str:
    """Return a field as cron writes it."""
    found: set[int] = set()
    match value:
        case str():
            for part in value.lower().replace(" ", "").split(","):
                found |= _part(name, value, part, least, most, names)
        case int():
            found.add(value)
        case _:
            found.update(_collection(name, value))
    if found == {7} and names == WEEKDAYS:  # Celery knows no 7, cron does
        found = {0}
    if not found or not all(type(one) is int and least <= one <= most for one in found):
        raise _wrong(name, value, least, most)
    if len(found) == most - least + 1:
        return "*"
    return ",".join(map(str, sorted(found)))


def _collection(name: str, value: object) -> list[int]:
    if not isinstance(value, Iterable):
        raise ConfigurationError(
            f"crontab({name}=…) is a number, text or a collection of numbers, found {value!r}"
        )
    return list(value)


def _part(
    name: str, value: str, part: str, least: int, most: int, names: tuple[str, ...]
) -> set[int]:
    """Return what one part of a field stands for; a range may go over the end: fri-mon."""
    match = PART.fullmatch(part)
    if match is None:
        raise _wrong(name, value, least, most)
    step = int(match["step"] or 1)
    if match["all"]:
        first, last = least, most
    else:
        first = _number(match["first"], least, names)
        last = first if match["last"] is None else _number(match["last"], least, names)
        if match["step"] and match["last"] is None:
            last = most
    if not (least <= first <= most and least <= last <= most and step >= 1):
        raise _wrong(name, value, least, most)
    whole = (
        list(range(first, last + 1))
        if first <= last
        else [*range(first, most + 1), *range(least, last + 1)]
    )
    return set(whole[::step])


def _number(text: str, least: int, names: tuple[str, ...]) -> int:
    """Return the number of a name or of digits; -1 for anything else."""
    if text.isdecimal():
        return int(text)
    short = text[:3]
    return names.index(short) + least if short in names else -1


def _wrong(name: str, value: object, least: int, most: int) -> ConfigurationError:
    return ConfigurationError(
        f"crontab({name}=…) takes numbers from {least} to {most}, such as {least}, '*/5', '{least}-{most}' or "
        f"[{least}, {most}], found {value!r:.200}"
    )
