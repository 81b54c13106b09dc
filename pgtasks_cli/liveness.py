"""Whether a worker is alive, by what it said at its last beat.

A beat alone does not show that jobs are taken, so two ages count: that of the beat, and that of the last claim
or look for jobs that the database answered. Both are seconds by the database's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pgtasks.options import WorkerOptions

if TYPE_CHECKING:
    from pgtasks.job import WorkerInfo

NOBODY_ANSWERED = 69  # Celery's
# Of a worker that does not say: one that has not beaten yet, or of an earlier release.
LEASE = WorkerOptions().lease


class NobodyError(click.ClickException):
    """No worker was heard of."""

    exit_code = NOBODY_ANSWERED


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of one worker's health.

    Attributes:
        beat_age: seconds since its last beat.
        beat_limit: how many there may be.
        claim_age: seconds since its last claim or look; None: it does not say.
        claim_limit: how many there may be; None: that is not judged.
    """

    worker: WorkerInfo
    beat_age: float
    beat_limit: float
    claim_age: float | None
    claim_limit: float | None

    @property
    def alive(self) -> bool:
        """Whether both ages are within their limits."""
        return self.beat_age <= self.beat_limit and (
            self.claim_age is None or self.claim_limit is None or self.claim_age <= self.claim_limit
        )

    def text(self) -> str:
        """Return both ages, and which limit they are over."""
        beat = _since("beat", self.beat_age, self.beat_limit)
        return f"{beat}, {_since('claim', self.claim_age, self.claim_limit)}"

    def document(self) -> dict[str, Any]:
        """Return this as JSON has it."""
        worker = self.worker
        return {
            "name": worker.name,
            "alive": self.alive,
            "state": worker.state,
            "id": worker.id,
            "host": worker.host,
            "pid": worker.pid,
            "beat_age": round(self.beat_age, 3),
            "beat_limit": self.beat_limit,
            "claim_age": None if self.claim_age is None else round(self.claim_age, 3),
            "claim_limit": self.claim_limit,
        }


def judge(worker: WorkerInfo, max_age: float | None = None) -> Verdict:
    """Return the verdict on one worker.

    Args:
        worker: as it described itself.
        max_age: the limit of both ages; None: the worker's own lease, and for claims, if it polls less
            often than that, two of its polls.
    """
    lease = lease_of(worker)
    polls = 2 * (_number(worker.stats.get("poll_interval")) or 0.0)
    return Verdict(
        worker=worker,
        beat_age=worker.beat_age,
        beat_limit=lease if max_age is None else max_age,
        claim_age=claim_age(worker),
        # One that drains takes no jobs any more, and is well.
        claim_limit=None
        if worker.state == "draining"
        else max(lease, polls)
        if max_age is None
        else max_age,
    )


def lease_of(worker: WorkerInfo) -> float:
    """Return how long a worker may be silent."""
    return _number(worker.stats.get("lease")) or LEASE


def claim_age(worker: WorkerInfo) -> float | None:
    """Return how long ago a worker last claimed or looked; since it started, if it never did; None: unknown."""
    if "claimed_ago" not in worker.stats:
        return None
    ago = _number(worker.stats["claimed_ago"])
    if ago is None:
        ago = (worker.beat_at - worker.started_at).total_seconds()
    return max(0.0, ago) + worker.beat_age


def is_online(worker: WorkerInfo) -> bool:
    """Whether a worker was heard of within its lease."""
    return worker.beat_age <= lease_of(worker)


def current(workers: Sequence[WorkerInfo]) -> list[WorkerInfo]:
    """Return the workers without those that one of the same name and host, started after their last beat, replaced.

    After a crash the row of the dead one stays until its jobs are rescued, and says nothing of the new one.
    """
    return [
        one
        for one in workers
        if not any(
            (other.name, other.host) == (one.name, one.host) and other.started_at > one.beat_at
            for other in workers
        )
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _since(what: str, age: float | None, limit: float | None) -> str:
    if age is None:
        return f"last {what} unknown"
    over = f" (over {limit:g} s)" if limit is not None and age > limit else ""
    return f"last {what} {max(0.0, age):.1f} s ago{over}"
