"""The fields of Celery's ``crontab(minute=…, hour=…, …)``, as cron writes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pgtasks.errors import ConfigurationError

if TYPE_CHECKING:
    from pgtasks.schedule import Field

PART = re.compile(
    r"(?:(?P<all>\*)|(?P<first>[a-z0-9]+)(?:-(?P<last>[a-z0-9]+))?)(?:/(?P<step>\d+))?"
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Least, most, names.
FIELDS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "minute": (0, 59, ()),
    "hour": (0, 23, ()),
    "day_of_week": (0, 6, WEEKDAYS),
    "day_of_month": (1, 31, ()),
    "month_of_year": (1, 12, MONTHS),
}


def field_of(name: str, value: Field) -> str:
    """Return a field as cron writes it; ConfigurationError if it is none."""
    least, most, names = FIELDS[name]
    found: set[int] = set()
    match value:
        case str():
            for part in value.lower().replace(" ", "").split(","):
                found |= _part(name, value, part, least, most, names)
        case int():
            found.add(value)
        case _:
            found.update(_collection(name, value))
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
