"""Types of options: durations, moments, JSON, lists of names."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    ParamType = click.ParamType[Any, Any]
else:
    ParamType = click.ParamType  # not generic before click 8.5

UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w|)", re.IGNORECASE)

# Powers of 1024; without a unit it is KiB, as Celery's --max-memory-per-child has it.
MEMORY_UNITS = {"b": 0, "": 1, "k": 1, "m": 2, "g": 3}
MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMG])(?:i?B)?|(B?))", re.IGNORECASE)


class Duration(ParamType):
    """Seconds, also as 90s, 10m, 2h, 7d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = DURATION.fullmatch(value.strip())
        if match is None:
            self.fail(
                f"expected seconds or a duration like 90s, 10m, 2h or 7d, found {value!r}",
                param,
                ctx,
            )
        return float(match[1]) * UNITS[match[2].lower()]


class Memory(ParamType):
    """Bytes, said as KiB, or with a unit: 200MB, 1GiB. A unit is 1024 of the one before, as in PostgreSQL."""

    name = "KiB|size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        match = MEMORY.fullmatch(value.strip())
        if match is None:
            self.fail(
                f"expected a number of KiB, or one with its unit like 200MB or 1GiB, found {value!r}",
                param,
                ctx,
            )
        return int(float(match[1]) * 1024 ** MEMORY_UNITS[(match[2] or match[3]).lower()])


class Moment(ParamType):
    """An ISO 8601 time; without an offset it is of this machine's time zone."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return an aware datetime."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value.strip()).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"expected a time like 2026-08-01T12:00+02:00, found {value!r}", param, ctx)


class Ago(ParamType):
    """A moment in the past: a duration before now, or an ISO 8601 time."""

    name = "duration|time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return an aware datetime."""
        if isinstance(value, datetime):
            return value
        if DURATION.fullmatch(value.strip()):
            try:
                return datetime.now(UTC) - timedelta(seconds=Duration().convert(value, param, ctx))
            except OverflowError:
                self.fail(f"{value!r} is before all time", param, ctx)
        return Moment().convert(value, param, ctx)


class Later(ParamType):
    """Seconds or a duration from now, or an ISO 8601 time."""

    name = "duration|time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | datetime:
        """Return seconds, or an aware datetime."""
        if isinstance(value, datetime | float):
            return value
        if DURATION.fullmatch(value.strip()):
            return Duration().convert(value, param, ctx)
        return Moment().convert(value, param, ctx)


class Json(ParamType):
    """A JSON value of one kind.

    Args:
        kind: list or dict.
    """

    def __init__(self, kind: type[list[Any]] | type[dict[str, Any]]) -> None:
        self.kind = kind
        self.name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the decoded value."""
        from pgtasks import codec
        from pgtasks.errors import DecodingError

        if isinstance(value, self.kind):
            return value
        what = "array" if self.kind is list else "object"
        try:
            decoded = codec.decode(value, param.name or "value" if param else "value")
        except DecodingError as error:
            self.fail(f"expected a JSON {what}, found {value!r}: {error}", param, ctx)
        if not isinstance(decoded, self.kind):
            self.fail(f"expected a JSON {what}, found {value!r}", param, ctx)
        return decoded


class Names(ParamType):
    """Names, separated by commas."""

    name = "name,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())


class WeightedNames(ParamType):
    """Names, separated by commas, each with its weight if it is not 1: mail:3,default."""

    name = "name[:weight],…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int]:
        """Return the names and their weights, in order."""
        if isinstance(value, dict):
            return value
        weights: dict[str, int] = {}
        for part in Names().convert(value, param, ctx):
            name, colon, weight = part.partition(":")
            if colon and not (weight.isascii() and weight.isdigit() and int(weight) >= 1):
                self.fail(
                    f"the weight of queue {name!r} is a whole number from 1, found {weight!r}: expected {name}:3",
                    param,
                    ctx,
                )
            if name in weights:
                self.fail(f"queue {name!r} stands there twice", param, ctx)
            weights[name] = int(weight) if colon else 1
        return weights
