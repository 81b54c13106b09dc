"""Lanes: jobs that are claimed together and wait together for a child. Pure.

Most apps have one. Coroutines have a lane of their own if children run many of them at once, so that a
backlog of them does not keep others from being claimed; and so have the tasks that are at_most_once: their
jobs are claimed one for each free place, and never wait in the parent. A task with a rate of its own in each worker
(Celery's rate_limit) has one too: of its jobs no more are claimed than may begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from pgtasks.worker.intake import Intake
from pgtasks.worker.messages import ClaimedRow, Held, LaneKind, TaskFacts
from pgtasks.worker.pace import Pace

if TYPE_CHECKING:
    from pgtasks.options import WorkerOptions


def lane_kinds(tasks: Mapping[str, TaskFacts]) -> list[LaneKind]:
    """Return the lanes that these tasks need; the first is there in any case."""
    kinds: dict[tuple[bool, bool], list[str]] = {(False, False): []}
    rated = []
    for name, facts in sorted(tasks.items()):
        if facts.rate is not None:
            rated.append(LaneKind((name,), facts.asynchronous, facts.at_most_once, facts.rate))
            continue
        kinds.setdefault((facts.asynchronous, facts.at_most_once), []).append(name)
    if len(kinds) + len(rated) > 1 and not kinds[False, False]:
        del kinds[False, False]
    return [LaneKind(tuple(names), *key) for key, names in sorted(kinds.items())] + rated


class Lane:
    """What waits, how it is asked for, and how long it takes.

    Args:
        number: its place among the lanes.
        kind: which jobs.
        options: the worker's.
        queues: which queues it serves.
        now: monotonic seconds.
    """

    def __init__(
        self, number: int, kind: LaneKind, options: WorkerOptions, queues: Sequence[str], now: float
    ) -> None:
        self.kind = kind
        self.waiting: deque[Held] = deque()
        self.waiting_since = now
        self.in_pipes = 0
        self.pace = Pace()
        self.intake = Intake(
            queues,
            options.poll_interval,
            options.listen,
            now,
            number,
            kind.at_most_once or kind.rate is not None,
            options.weights,
        )
        self._tokens, self._refilled_at = float(kind.rate.tokens) if kind.rate else 0.0, now
        # How many of its jobs run at once in one child.
        self.places = options.async_concurrency if kind.asynchronous else options.threads
        self._prefetch = options.prefetch
        self._batch = options.claim_batch

    def take(self, jobs: list[Held], now: float) -> None:
        """Add claimed jobs to those that wait, in order of priority and age."""
        if not self.waiting:
            self.waiting_since = now
        if jobs and self.waiting and line(self.waiting[-1].row) > line(jobs[0].row):
            both = sorted(chain(self.waiting, jobs), key=lambda held: line(held.row))
            self.waiting = deque(both)
        else:
            self.waiting.extend(jobs)

    def take_back(self, jobs: Iterable[Held], now: float) -> None:
        """Put jobs before all others again: they lay in the pipe of a child that is gone."""
        if not self.waiting:
            self.waiting_since = now
        self.waiting.extendleft(reversed(list(jobs)))

    def give_up(self) -> list[Held]:
        """Return everything that waits; nothing waits any more."""
        jobs = list(self.waiting)
        self.waiting.clear()
        return jobs

    def held(self) -> int:
        """Return how many of its jobs have no outcome yet."""
        return len(self.waiting) + self.in_pipes

    def target(self, children: int) -> int:
        """Return how many jobs to hold: what runs, and what the pace says beyond."""
        ahead = self.places * self.pace.ahead(self._prefetch)
        return children * (self.places + min(ahead, self._prefetch))

    def want(self, children: int, free: int) -> int:
        """Return how many jobs to claim now.

        Half a batch or more; fewer only if nothing waits. Of an at_most_once lane: what is free.

        Args:
            children: how many children there shall be.
            free: how many jobs of this lane could begin at once.
        """
        if self.kind.at_most_once:
            return min(free - len(self.waiting), self._batch)
        target = self.target(children)
        want = min(target - self.held(), self._batch)
        worth_it = want >= min(target, self._batch) // 2 or not self.waiting
        return want if worth_it else 0

    def allowed(self, want: int, now: float) -> int:
        """Return how many of the jobs that it wants its rate allows."""
        return want if self.kind.rate is None else min(want, int(self._refill(now)))

    def spend(self, jobs: int, now: float) -> None:
        """Take note that so many were claimed."""
        if self.kind.rate is not None:
            self._tokens = self._refill(now) - jobs

    def next_token(self, now: float) -> float:
        """Return the moment at which its rate allows a job again that it waits for; infinity: it waits for none."""
        if self.kind.rate is None or not self.intake.hot or self._refill(now) >= 1.0:
            return float("inf")
        return now + (1.0 - self._tokens) / self.kind.rate.per_second

    def _refill(self, now: float) -> float:
        assert self.kind.rate is not None
        came = max(0.0, now - self._refilled_at) * self.kind.rate.per_second
        # A hair more: what came in steps may lack the last bit of a token.
        self._tokens = min(self._tokens + came + 1e-9, float(self.kind.rate.tokens))
        self._refilled_at = now
        return self._tokens


def line(row: ClaimedRow) -> tuple[int, int]:
    """Order jobs as they stand in line: higher priority first, then older."""
    return -row.priority, row.seq
