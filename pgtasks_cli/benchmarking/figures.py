"""What was measured, as data: figures, the targets that they are held against, and the report of a run."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import psutil

from pgtasks.version import VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure shall reach."""

    sense: Literal["at least", "at most"]
    value: float

    def met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        return value >= self.value if self.sense == "at least" else value <= self.value


def _at_least(value: float) -> Target:
    return Target(sense="at least", value=value)


def _at_most(value: float) -> Target:
    return Target(sense="at most", value=value)


# For 2 cores, PostgreSQL on the same box, default durability. By the figure's key.
TARGETS: Mapping[str, Target] = {
    "canvas.chord_written": _at_most(3),
    "canvas.chord_of_group": _at_least(0.9),
    "claim.hot_ratio": _at_least(0.97),
    "drain.rate": _at_least(18_000),
    "drain.of_raw": _at_least(0.7),
    "drain.hot_ratio": _at_least(0.97),
    "enqueue.group_rate": _at_least(60_000),
    "enqueue.delay_of_bare": _at_least(0.85),
    "flow.limited_rate": _at_least(5_000),
    "flow.tenant_start": _at_most(2),
    "latency.start_p50": _at_most(3),
    "latency.start_p99": _at_most(15),
    "latency.round_trip_p50": _at_most(8),
    "schedules.cpu": _at_most(1),
    "startup.first_job": _at_most(0.6),
    "startup.idle_memory": _at_most(70),
    "startup.import": _at_most(60),
    "unique.drain_of_plain": _at_least(0.7),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured.

    Attributes:
        key: what it is called in JSON: the measure, a dot, the figure.
        what: what it is called in the table.
        value: the figure; None if it cannot be had on this machine.
        unit: what it counts.
        runs: what the value is the median of, in the order of the runs; empty: measured once.
    """

    key: str
    what: str
    value: float | None
    unit: str
    runs: Sequence[float] = ()

    @property
    def target(self) -> Target | None:
        """What it shall reach, if anything."""
        return TARGETS.get(self.key)

    @property
    def met(self) -> bool | None:
        """Whether it does; None: there is no target, or no value."""
        if self.target is None or self.value is None:
            return None
        return self.target.met(self.value)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON carries it."""
        target = None if self.target is None else asdict(self.target)
        return {**asdict(self), "runs": list(self.runs), "target": target, "met": self.met}


def median(key: str, what: str, runs: Sequence[float | None], unit: str) -> Figure:
    """Return the median of some runs as a figure; runs without a value do not count."""
    values = [run for run in runs if run is not None]
    value = statistics.median(values) if values else None
    return Figure(key=key, what=what, value=value, unit=unit, runs=values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The PostgreSQL that was measured with."""

    version: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one run found, and where."""

    server: Server
    tiny: bool
    figures: Sequence[Figure]
    date: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON carries it."""
        return {
            "pgtasks": VERSION,
            "date": self.date.isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": psutil.cpu_count() or 1,
            "memory": psutil.virtual_memory().total,
            "postgresql": asdict(self.server),
            "tiny": self.tiny,
            "figures": [figure.as_json() for figure in self.figures],
        }
