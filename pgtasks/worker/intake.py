"""Which queue to ask, when, and from where on: the ledger's part that knows no job. Pure.

A queue is *hot* while it may have something ready. Claims of a hot queue start at its cursors: for each
priority the last seq that was claimed. A cursor is a hint, since seq order is not commit order; a *sweep*,
a claim without cursors, finds what appeared behind. It comes when a queue looks empty, and about once a
second otherwise, as long as it costs little. With each comes a *survey*, the priorities that have something
ready: where a sweep found nothing of ours, jobs of unknown tasks may stand, and a cursor keeps every claim
from reading them again.

When no queue is hot, the worker looks at all of them with one statement, after growing pauses. Before they
grow long it asks enqueuers for NOTIFY, and looks once more when that is committed; a worker that is busy
all the time takes the wish back, for NOTIFY costs enqueuers dearly.

Of a limited queue the worker takes no more than its children can begin: what it holds, others cannot run. When
one of its jobs has ended, a place is free, or will be: it is asked at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

from pgtasks.worker.messages import (
    HIGHEST,
    LOWEST,
    Claim,
    ClaimedRow,
    Look,
    Promote,
    SetIdle,
)
from pgtasks.worker.shares import Shares

# Polling: the first look after work ran out, and how the pause grows.
FIRST_POLL = 0.002
POLL_GROWTH = 1.5
# From this pause on the worker asks enqueuers for NOTIFY; below, it polls fast enough.
IDLE_POLL = 0.03
# So many claims with jobs within a second mean busy: NOTIFY is not asked for any longer.
BUSY_CLAIMS = 50

# Between two looks while busy: scheduled jobs and queues that filled up are found by these.
LOOK_INTERVAL = 0.5
# Between two sweeps of one queue.
SWEEP_INTERVAL = 1.0
# How much of the time sweeps may take; and looks while busy.
SHARE = 0.05

MAX_QUEUES_A_ROUND = 8
MAX_CURSORS = 32  # a queue; priorities beyond lie in the gaps
MAX_SURVEYED = 16  # so that those of a survey do not drive out the others

Question = Look | Claim | Promote | SetIdle


class Intake:
    """Decides what to ask the database for.

    Args:
        queues: which queues to serve.
        poll_interval: the longest pause between two looks, in seconds.
        listen: whether to ask for NOTIFY.
        now: monotonic seconds.
        lane: whose jobs it asks for; the first lane also promotes and listens, for all.
        exact: never to claim more than what is wanted, in all queues together.
        weights: of queues that shall have more than 1.
    """

    def __init__(
        self,
        queues: Sequence[str],
        poll_interval: float,
        listen: bool,
        now: float,
        lane: int = 0,
        exact: bool = False,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        self.limited: frozenset[str] = frozenset()  # queues of which only so much may be held
        self._shares = Shares(weights or {})
        self._lane = lane
        self._exact = exact
        self._queues = tuple(queues)
        self._poll_interval = poll_interval
        self._listen = listen
        self.hot: dict[str, None] = {}  # in turn
        self.cursors: dict[str, dict[int, int]] = {}  # queue -> priority -> seq
        self.due: dict[str, float] = {}  # queue -> when its next scheduled job is due
        self.poll = FIRST_POLL
        self.idle = False
        self.next_look = now
        # queue -> priorities with something ready -> the last seq there
        self._surveyed: dict[str, Mapping[int, int]] = {}
        self._next_sweep: dict[str, float] = {}
        self._sweep_allowed: dict[str, float] = {}  # before that it would cost too much
        self._busy_since = now
        self._busy_claims = 0
        # What is under way
        self.claiming = 0
        self._looking = False
        self._promoting: set[str] = set()
        self._setting_idle = False

    # What happened

    def connected(self, now: float) -> None:
        """Begin anew: nothing is under way, and nothing is known."""
        self.claiming, self._looking, self._setting_idle = 0, False, False
        self._promoting.clear()
        self.cursors.clear()
        self._surveyed.clear()
        self._next_sweep.clear()
        self.idle = False
        self._look_soon(now)

    def woken(self, queue: str | None, now: float) -> None:
        """Take note that something was enqueued in this queue, or in some queue."""
        for one in self._queues if queue is None else (queue,):
            self._heat(one)
        self._look_soon(now)  # it may be scheduled

    def claimed(self, order: Claim, rows: Sequence[ClaimedRow], cost: float, now: float) -> None:
        """Take note of the answer to a claim, which took ``cost`` seconds."""
        self.claiming -= 1
        if order.sweep:
            self._sweep_allowed[order.queue] = now + cost / SHARE
            self._next_sweep[order.queue] = now + max(SWEEP_INTERVAL, cost / SHARE)
        self._advance(order, rows)
        if rows:
            self._count_claim(now)
            self.poll = FIRST_POLL
        else:  # what a look sees may be locked, or lie behind the cursor
            self.poll = min(self.poll * POLL_GROWTH, self._poll_interval)
        if len(rows) < order.limit:
            if order.sweep or now < self._next_sweep.get(order.queue, 0.0):
                self.hot.pop(order.queue, None)
                self.next_look = min(self.next_look, now + self.poll)
            else:
                self._next_sweep[order.queue] = now  # it looks empty: sweep before saying so

    def surveyed(self, queue: str, priorities: Mapping[int, int]) -> None:
        """Take note of which priorities have something ready just before a sweep, and the last seq of each."""
        self._surveyed[queue] = priorities

    def looked(
        self, found: Mapping[str, tuple[bool | None, float | None]], cost: float, now: float
    ) -> None:
        """Take note of what a look found: queue -> (something is ready, seconds until the next is due).

        It was not asked whether something is ready (None) where that was sure.
        """
        self._looking = False
        for queue, (ready, due_in) in found.items():
            if ready and queue not in self.hot:
                self._heat(queue)
                # It may lie behind the cursor.
                self._next_sweep[queue] = min(
                    self._next_sweep.get(queue, now), self._sweep_allowed.get(queue, now)
                )
            if due_in is None or self._lane:
                self.due.pop(queue, None)
            else:
                self.due[queue] = now + due_in
        cooled = any(ready is None and queue not in self.hot for queue, (ready, _) in found.items())
        if self.hot and not cooled:
            self.next_look = now + max(LOOK_INTERVAL, min(cost / SHARE, self._poll_interval))
        else:
            self.poll = min(self.poll * POLL_GROWTH, self._poll_interval)
            self.next_look = now + self.poll

    def promoted(self, queue: str, now: float) -> None:
        """Take note that due jobs of a queue were made ready."""
        self._promoting.discard(queue)
        self._heat(queue)
        self.next_look = min(self.next_look, now)

    def idle_set(self, idle: bool, now: float) -> None:
        """Take note that the wish for NOTIFY was committed: look once more."""
        self._setting_idle = False
        if idle:
            self.next_look = now

    def refused(self, question: Question, now: float) -> None:
        """Take note that a question came to nothing; ask again after a pause."""
        match question:
            case Look():
                self._looking = False
            case Claim(queue):
                self.claiming -= 1
                self.hot.pop(queue, None)
            case Promote(queue):
                self._promoting.discard(queue)
            case SetIdle(idle):
                self._setting_idle = False
                self.idle = not idle
            case _:
                assert_never(question)
        self.poll = max(self.poll, IDLE_POLL)
        self.next_look = now + self.poll

    def freed(self, queue: str, now: float) -> None:
        """Take note that a job of this queue ended: if the queue is limited, there may be room for another."""
        if queue in self.limited:
            self.woken(queue, now)

    def scheduled(self, queue: str, due: float) -> None:
        """Take note that a job of this queue becomes due at this moment."""
        self.due[queue] = min(self.due.get(queue, due), due)

    # What to ask

    def questions(self, want: int, now: float, room: int = 0) -> Iterator[Question]:
        """Yield what to ask now.

        Args:
            want: how many jobs a claim shall bring.
            now: monotonic seconds.
            room: how many of them may be of limited queues.
        """
        for queue, due in self.due.items():
            if due <= now and queue not in self._promoting:
                self._promoting.add(queue)
                self.due[queue] = now + LOOK_INTERVAL  # until the look that follows says
                yield Promote(queue)
        if want > 0 and self.hot and not self.claiming:
            yield from self._claims(want, now, room)
        if not self._looking and now >= self.next_look:
            self._looking = True
            yield Look(self._lane, tuple(self.hot))
        if self._listen and not self._lane and not self._setting_idle:
            busy = self._busy_claims >= BUSY_CLAIMS and now - self._busy_since <= 1.0
            if not self.idle and not busy and self.poll >= IDLE_POLL and not self.hot:
                self.idle = self._setting_idle = True
                yield SetIdle(True)
            elif self.idle and busy:
                self.idle, self._setting_idle = False, True
                yield SetIdle(False)

    def next_wake(self) -> float:
        """Return the moment of the next question that no event brings about."""
        moments = [due for queue, due in self.due.items() if queue not in self._promoting]
        if not self._looking:
            moments.append(self.next_look)
        return min(moments, default=float("inf"))

    def _claims(self, want: int, now: float, room: int) -> Iterator[Claim]:
        queues = [one for one in self.hot if room > 0 or one not in self.limited]
        for queue, share in self._shares.divide(queues, want, MAX_QUEUES_A_ROUND):
            limit = min(share, want) if self._exact else share
            if queue in self.limited:
                limit = min(limit, room)
                room -= limit
            if limit <= 0:
                continue
            want -= limit
            self.hot.pop(queue)
            self.hot[queue] = None  # to the end of the turn
            self.claiming += 1
            yield self._order(queue, limit, now)

    def _order(self, queue: str, limit: int, now: float) -> Claim:
        """Build a claim: from the cursors and the gaps between them, or a sweep when one is due."""
        cursors = self.cursors.get(queue)
        if not cursors or now >= self._next_sweep.get(queue, 0.0):
            return Claim(queue, limit, sweep=True, lane=self._lane)
        ranges: list[tuple[int, int, int | None]] = []
        top = HIGHEST
        for priority in sorted(cursors, reverse=True):
            if priority < top:
                ranges.append((top, priority + 1, None))
            ranges.append((priority, priority, cursors[priority]))
            top = priority - 1
        if top >= LOWEST:
            ranges.append((top, LOWEST, None))
        high, low, after = zip(*ranges, strict=True)
        return Claim(queue, limit, high, low, after, lane=self._lane)

    def _advance(self, order: Claim, rows: Sequence[ClaimedRow]) -> None:
        """Move the cursors behind what was claimed; a sweep that stopped at its limit sets them back."""
        cursors = self.cursors.setdefault(order.queue, {})
        newest: dict[int, int] = {}
        for row in rows:
            if row.seq > newest.get(row.priority, 0):
                newest[row.priority] = row.seq
        stopped_short = order.sweep and len(rows) >= order.limit
        for priority, seq in newest.items():
            cursors[priority] = seq if stopped_short else max(seq, cursors.get(priority, 0))
        if order.sweep:
            # What it passed and left there is not ours, or runs: it need not be read again.
            lowest = min(newest) if stopped_short else LOWEST - 1
            for priority, seq in self._surveyed.pop(order.queue, {}).items():
                if priority > lowest:
                    cursors[priority] = max(seq, cursors.get(priority, 0))
        while len(cursors) > MAX_CURSORS:
            del cursors[min(cursors)]

    def _count_claim(self, now: float) -> None:
        if now - self._busy_since > 1.0:
            self._busy_since, self._busy_claims = now, 0
        self._busy_claims += 1

    def _heat(self, queue: str) -> None:
        if queue in self._queues:
            self.hot.setdefault(queue)

    def _look_soon(self, now: float) -> None:
        self.poll = FIRST_POLL
        self.next_look = min(self.next_look, now)
