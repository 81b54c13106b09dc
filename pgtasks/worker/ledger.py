"""The parent's record of claimed jobs and who has them. Pure: events in, commands out, no clock.

The parent tells what happened (`handle`) and performs what is asked for (`commands`); nothing else
decides anything. A job that this worker claimed is, until it leaves the ledger, in exactly one place:

    waiting ──Send──► in a child's pipe ──Reported──► outcomes ──Finish──► being written ──► gone
       │                    │ ChildDied                    ▲                      │ refused or lost
       │◄── not begun ──────┤                              └──────────────────────┘
       └──Release           └─ begun ──Crash

Promises, which the property tests drive through any order of events
    - every claimed job leaves: finished, released, or charged a crash; once, while the connection holds
    - a job is in one child at most, and never sent again after an outcome
    - only the job that a dead child had begun is charged; if several were begun, none is, and each is
      run again alone
    - nothing is claimed while draining, and what had not been sent is released

How many jobs are claimed ahead and lie in a pipe follows the measured duration of their task: many of
microseconds, none extra of long ones. An unmeasured task counts as long. An estimate rises at once and
falls slowly, so that a task that is sometimes long is treated as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import assert_never

from pgtasks.options import MAX_CRASHES, WorkerOptions
from pgtasks.worker.messages import (
    HIGHEST,
    LOWEST,
    Batch,
    ChildDied,
    ChildStarted,
    Claim,
    Claimed,
    ClaimedRow,
    CloseChild,
    Command,
    Connected,
    Crash,
    Disconnected,
    Ended,
    Event,
    Finish,
    Held,
    IdleSet,
    KillChild,
    LeaseLost,
    Look,
    Looked,
    Promote,
    Promoted,
    Refused,
    Release,
    ReleaseLost,
    Reported,
    Send,
    SetIdle,
    Spawn,
    StopAsked,
    Unreturned,
    Unwritten,
    Woken,
    Written,
)

# How much work, in seconds, is claimed ahead of the children, and how much lies in one pipe. A claim
# and its reply take 3 to 10 ms under load, so 50 ms never run dry (benchmarks/drain.py).
AHEAD = 0.05
IN_PIPE = 0.01

# A finish waits so long for more outcomes, while short jobs are under way.
FLUSH_DELAY = 0.004
FLUSH_BATCH = 500

# A finish that the server refused for a passing reason (deadlock, time-out) is tried again after this.
WRITE_AGAIN = 0.1

# Polling: the first look after work ran out, and how the interval grows.
FIRST_POLL = 0.002
POLL_GROWTH = 1.5
# From this interval on the worker asks enqueuers for NOTIFY; below, it polls fast enough.
IDLE_POLL = 0.03
# So many claims with jobs within a second mean busy: NOTIFY is not asked for any longer.
BUSY_CLAIMS = 50

# Between two looks while busy: scheduled jobs and queues that filled up are found by these.
LOOK_INTERVAL = 0.5
# Between two claims without cursor of one queue, and how little of the time they may take.
SWEEP_INTERVAL = 1.0
SWEEP_SHARE = 0.05

# A job that waits in the parent longer than this is given back, for others to take.
WAIT_LIMIT = 5.0

PROMOTE_LIMIT = 1000
MAX_QUEUES_A_ROUND = 8
MAX_CURSORS = 32


class Phase(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(slots=True)
class _Child:
    """What the ledger knows of one child."""

    pipe: dict[int, Held] = field(default_factory=dict)  # sent and not reported, in order
    load: float = 0.0  # estimated seconds of work in the pipe
    reported: int = 0  # outcomes so far
    closing: bool = False


class Ledger:
    """Decides what a worker does next.

    Args:
        options: the worker's.
        queues: which queues it serves.
        now: monotonic seconds.
    """

    def __init__(self, options: WorkerOptions, queues: Sequence[str], now: float) -> None:
        self.options = options
        self.queues = tuple(queues)
        self.phase = Phase.STARTING
        self.connected = False

        self.waiting: deque[Held] = deque()
        self.waiting_since = now
        self.children: dict[int, _Child] = {}
        self.outcomes: list[Ended] = []
        self.first_outcome_at = 0.0
        self.parts: deque[Batch] = deque()  # batches to write again, or in halves
        self.claims: dict[str, int] = {}  # token -> jobs that have not left
        self.ended_claims: list[str] = []
        self.to_release: list[Held] = []
        self.to_crash: list[Held] = []
        self.serial = 0

        self.estimates: dict[str, float] = {}  # seconds a job, by task
        self.pace: float | None = None  # seconds a job, over all
        self.short_in_pipes = 0

        self.hot: dict[str, None] = {}  # queues that may have something ready, in turn
        self.cursors: dict[str, dict[int, int]] = {}
        self.next_sweep: dict[str, float] = {}
        self.due: dict[str, float] = {}
        self.poll = FIRST_POLL
        self.next_look = now
        self.idle = False
        self.busy_since = now
        self.busy_claims = 0

        self.claiming = 0
        self.looking = False
        self.writing = False
        self.write_after = now
        self.promoting: set[str] = set()
        self.setting_idle = False
        self.must_release_lost = False

        self.spawning = 0
        self.drain_deadline: float | None = None
        self.killing = False
        self.late = 0
        self.finished: dict[str, int] = {}  # by task
        self.ended_by_kind: dict[str, int] = {}

    # Events

    def handle(self, event: Event, now: float) -> None:
        """Take note of what happened."""
        match event:
            case Reported():
                self._reported(event, now)
            case Claimed():
                self._claimed(event, now)
            case Written():
                self._written(event)
            case Unwritten():
                self._unwritten(event, now)
            case Looked():
                self._looked(event, now)
            case Promoted(queue):
                self.promoting.discard(queue)
                self._heat(queue)
                self.next_look = min(self.next_look, now)
            case IdleSet(idle):
                self.setting_idle = False
                if idle:
                    self.next_look = now
            case Unreturned(returned):
                jobs = self.to_release if isinstance(returned, Release) else self.to_crash
                jobs += returned.jobs
                self.ended_claims += returned.claims
            case Refused(command):
                self._refused(command, now)
            case Woken(queue):
                for one in self.queues if queue is None else (queue,):
                    self._heat(one)
                self.poll = FIRST_POLL
                self.next_look = min(self.next_look, now)
            case ChildStarted(child):
                self.spawning -= 1
                self.children[child] = _Child()
            case ChildDied():
                self._child_died(event, now)
            case Connected():
                self._connected(now)
            case Disconnected():
                self.connected = False
            case StopAsked(at_once):
                self._stop_asked(at_once, now)
            case LeaseLost():
                self._lease_lost()
            case _:
                assert_never(event)

    def _reported(self, event: Reported, now: float) -> None:
        child = self.children[event.child]
        if not self.outcomes:
            self.first_outcome_at = now
        for serial, kind, result, error, delay, started, stopped in event.records:
            held = child.pipe.pop(serial, None)
            if held is None:  # reported twice: by pipe, and on the slate of a child that died then
                continue
            child.reported += 1
            self._unload(child, held)
            self._measure(held.row.task, stopped - started)
            self.outcomes.append(Ended(held, kind, result, error, delay, started, stopped))

    def _measure(self, task: str, seconds: float) -> None:
        old = self.estimates.get(task)
        if old is None:
            self.estimates[task] = seconds
        elif seconds > old:
            self.estimates[task] = old + (seconds - old) * 0.5
        else:
            self.estimates[task] = old + (seconds - old) * 0.02
        pace = self.pace
        self.pace = (
            seconds if pace is None else pace + (seconds - pace) * (0.2 if seconds > pace else 0.02)
        )

    def _unload(self, child: _Child, held: Held) -> None:
        """Take a job's estimate off a child's load; an empty pipe is exactly 0 again."""
        estimate = self.estimates.get(held.row.task)
        if estimate is not None and estimate < IN_PIPE:
            self.short_in_pipes = max(0, self.short_in_pipes - 1)
        child.load = child.load - (estimate or 0.0) if child.pipe else 0.0

    def _claimed(self, event: Claimed, now: float) -> None:
        order, rows = event.order, event.rows
        self.claiming -= 1
        if order.sweep:
            self.next_sweep[order.queue] = now + max(SWEEP_INTERVAL, event.cost / SWEEP_SHARE)
        if rows:
            self._take(rows, event.token, now)
            self._advance(order, rows)
            self._count_claim(now)
            self.poll = FIRST_POLL
        if len(rows) < order.limit:
            if order.sweep or now < self.next_sweep.get(order.queue, 0.0):
                self.hot.pop(order.queue, None)
                self.next_look = min(self.next_look, now + self.poll)
            else:
                self.next_sweep[order.queue] = now  # it looks empty: sweep before saying so

    def _take(self, rows: Sequence[ClaimedRow], token: str, now: float) -> None:
        """Add claimed jobs to those that wait, in order of priority and age."""
        self.claims[token] = len(rows)
        if not self.waiting:
            self.waiting_since = now
        taken = []
        for row in sorted(rows, key=_line):
            self.serial += 1
            held = Held(self.serial, row, token)
            if row.expired:
                self._end(Ended(held, "expired", None, None, None, None, now), now)
            elif row.crashes >= MAX_CRASHES:
                error = {
                    "type": "pgtasks.Crash",
                    "message": f"took its process down {row.crashes} times",
                }
                self._end(Ended(held, "quarantined", None, error, None, None, now), now)
            else:
                taken.append(held)
        if taken and self.waiting and _line(self.waiting[-1].row) > _line(taken[0].row):
            self.waiting = deque(
                sorted(chain(self.waiting, taken), key=lambda held: _line(held.row))
            )
        else:
            self.waiting.extend(taken)

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
        while len(cursors) > MAX_CURSORS:
            del cursors[min(cursors)]

    def _count_claim(self, now: float) -> None:
        if now - self.busy_since > 1.0:
            self.busy_since, self.busy_claims = now, 0
        self.busy_claims += 1

    def _end(self, ended: Ended, now: float) -> None:
        if not self.outcomes:
            self.first_outcome_at = now
        self.outcomes.append(ended)

    def _written(self, event: Written) -> None:
        self.writing = False
        for ended in event.batch.ended:
            row = ended.held.row
            if row.id in event.ids or event.batch.again:
                self.finished[row.task] = self.finished.get(row.task, 0) + 1
                self.ended_by_kind[ended.kind] = self.ended_by_kind.get(ended.kind, 0) + 1
                if ended.kind == "retry":
                    due = ended.stopped + (ended.delay or 0.0)
                    self.due[row.queue] = min(self.due.get(row.queue, due), due)
            else:
                self.late += 1

    def _unwritten(self, event: Unwritten, now: float) -> None:
        self.writing = False
        batch = event.batch
        if event.reason == "lost":
            batch.again = True
            self.parts.appendleft(batch)
        elif event.reason == "again":
            self.parts.append(batch)
            self.write_after = now + WRITE_AGAIN
        elif len(batch.ended) > 1:  # one of them cannot be stored: find it by halves
            middle = len(batch.ended) // 2
            self.parts.append(Batch(batch.ended[:middle], []))
            self.parts.append(Batch(batch.ended[middle:], batch.claims))
        else:
            self.parts.append(Batch([_unstorable(batch.ended[0], event.message)], batch.claims))

    def _looked(self, event: Looked, now: float) -> None:
        self.looking = False
        found = False
        for queue, (ready, due_in) in event.queues.items():
            if ready:
                found = True
                if queue not in self.hot:
                    self._heat(queue)
                    # It may lie behind the cursor, since seq order is not commit order.
                    self.next_sweep[queue] = min(self.next_sweep.get(queue, now), now)
            if due_in is None:
                self.due.pop(queue, None)
            else:
                self.due[queue] = now + due_in
        if found or self.hot:
            self.next_look = now + LOOK_INTERVAL
        else:
            self.poll = min(self.poll * POLL_GROWTH, self.options.poll_interval)
            self.next_look = now + self.poll

    def _refused(self, command: Look | Claim | Promote | SetIdle, now: float) -> None:
        match command:
            case Look():
                self.looking = False
            case Claim(queue):
                self.claiming -= 1
                self.hot.pop(queue, None)
            case Promote(queue):
                self.promoting.discard(queue)
            case SetIdle(idle):
                self.setting_idle = False
                self.idle = not idle
            case _:
                assert_never(command)
        self.poll = max(self.poll, IDLE_POLL)
        self.next_look = now + self.poll

    def _heat(self, queue: str) -> None:
        if queue in self.queues:
            self.hot.setdefault(queue)

    def _connected(self, now: float) -> None:
        self.connected = True
        if self.phase is Phase.STARTING:
            self.phase = Phase.RUNNING
        self.must_release_lost = True
        self.claiming, self.looking, self.setting_idle = 0, False, False
        self.promoting.clear()
        self.cursors.clear()
        self.next_sweep.clear()
        self.idle = False
        self.poll, self.next_look = FIRST_POLL, now

    def _child_died(self, event: ChildDied, now: float) -> None:
        child = self.children.pop(event.child, None)
        if child is None:  # it died before it was ready
            self.spawning -= 1
            return
        begun = min(max(0, event.begun - child.reported), len(child.pipe))
        rest = list(child.pipe.values())
        for held in rest:
            if self.estimates.get(held.row.task, IN_PIPE) < IN_PIPE:
                self.short_in_pipes = max(0, self.short_in_pipes - 1)
        running, unbegun = rest[:begun], rest[begun:]
        if self.killing or len(running) > 1:
            self.to_release += running
        else:
            for held in running:
                if held.row.crashes + 1 >= MAX_CRASHES:
                    self._end(Ended(held, "quarantined", None, event.cause, None, now, now), now)
                else:
                    self.to_crash.append(held)
        if self.phase is Phase.DRAINING:
            self.to_release += unbegun
        else:
            self.waiting.extendleft(reversed(unbegun))

    def _stop_asked(self, at_once: bool, now: float) -> None:
        if self.phase is Phase.DRAINING or at_once:
            self.killing = True
        if self.phase is not Phase.STOPPED:
            self.phase = Phase.DRAINING
            if self.drain_deadline is None:
                self.drain_deadline = now + self.options.grace
            self.to_release += self.waiting
            self.waiting.clear()

    def _lease_lost(self) -> None:
        """Forget what was not begun; what runs may end, and its finish will be refused as late."""
        for held in self.waiting:
            self._leave(held)
        self.waiting.clear()
        for held in (*self.to_release, *self.to_crash):
            self._leave(held)
        self.to_release, self.to_crash = [], []

    def _leave(self, held: Held) -> None:
        """Let a job go; with the last of a claim its row can be deleted."""
        left = self.claims.get(held.token, 0) - 1
        if left > 0:
            self.claims[held.token] = left
        elif self.claims.pop(held.token, None) is not None:
            self.ended_claims.append(held.token)

    # Commands

    def commands(self, now: float) -> Iterator[Command]:
        """Yield what is to be done now."""
        if (
            self.phase is Phase.DRAINING
            and self.drain_deadline is not None
            and now >= self.drain_deadline
        ):
            self.killing = True
        if self.killing:
            for number, child in self.children.items():
                if child.pipe:
                    yield KillChild(number)
        if self.connected:
            yield from self._give_back(now)
            yield from self._finish(now)
        if self.phase is Phase.RUNNING:
            while len(self.children) + self.spawning < self.options.concurrency:
                self.spawning += 1
                yield Spawn()
            yield from self._send()
            if self.connected:
                yield from self._fetch(now)
        elif self.phase is Phase.DRAINING:
            yield from self._drain()

    def _give_back(self, now: float) -> Iterator[Command]:
        if self.must_release_lost:
            self.must_release_lost = False
            yield ReleaseLost(tuple(self._own_tokens()))
        if self.waiting and now - self.waiting_since > WAIT_LIMIT:
            self.to_release += self.waiting
            self.waiting.clear()
        for kind, jobs in ((Release, self.to_release), (Crash, self.to_crash)):
            if jobs:
                for held in jobs:
                    self._leave(held)
                yield kind(tuple(jobs), self._take_ended_claims())
                jobs.clear()

    def _own_tokens(self) -> set[str]:
        """Return the tokens under which this worker still has something to say."""
        returned = (held.token for held in (*self.to_release, *self.to_crash))
        unwritten = (ended.held.token for batch in self.parts for ended in batch.ended)
        return {*self.claims, *returned, *unwritten}

    def _take_ended_claims(self) -> list[str]:
        claims, self.ended_claims = self.ended_claims, []
        return claims

    def _finish(self, now: float) -> Iterator[Command]:
        if self.writing or now < self.write_after:
            return
        if self.parts:
            self.writing = True
            yield Finish(self.parts.popleft())
        elif self.outcomes and (
            len(self.outcomes) >= FLUSH_BATCH
            or not self.short_in_pipes
            or now - self.first_outcome_at >= FLUSH_DELAY
            or self.phase is not Phase.RUNNING
        ):
            batch, self.outcomes = (
                self.outcomes[: 2 * FLUSH_BATCH],
                self.outcomes[2 * FLUSH_BATCH :],
            )
            self.first_outcome_at = now
            for ended in batch:
                self._leave(ended.held)
            batch.sort(key=lambda ended: ended.held.row.id)
            self.writing = True
            yield Finish(Batch(batch, self._take_ended_claims()))

    def _send(self) -> Iterator[Command]:
        """Share what waits among the children, the least loaded first."""
        if not self.waiting:
            return
        ready = sorted(
            (
                one
                for one in self.children.items()
                if not one[1].closing and one[1].load < IN_PIPE / 2
            ),
            key=lambda one: (one[1].load, len(one[1].pipe)),
        )
        for position, (number, child) in enumerate(ready):
            if not self.waiting:
                return
            share = -(-len(self.waiting) // (len(ready) - position))
            jobs = self._fill(child, min(share, self.options.prefetch - len(child.pipe)))
            if jobs:
                yield Send(number, jobs)

    def _fill(self, child: _Child, most: int) -> list[Held]:
        jobs: list[Held] = []
        while self.waiting and len(jobs) < max(most, 1):
            held = self.waiting[0]
            estimate = self.estimates.get(held.row.task)
            alone = estimate is None or estimate >= IN_PIPE or held.row.crashes > 0
            if child.pipe and (alone or child.load >= IN_PIPE or most < 1):
                break
            self.waiting.popleft()
            child.pipe[held.serial] = held
            jobs.append(held)
            if alone:
                child.load += max(estimate or IN_PIPE, IN_PIPE)
                break
            child.load += estimate or 0.0
            self.short_in_pipes += 1
        return jobs

    def held_count(self) -> int:
        """Return how many claimed jobs have no outcome yet."""
        return len(self.waiting) + sum(len(child.pipe) for child in self.children.values())

    def target(self) -> int:
        """Return how many jobs this worker wants to hold: what runs, and what the pace says beyond."""
        extra = 0 if self.pace is None else int(AHEAD / max(self.pace, 1e-6))
        return self.options.concurrency * (1 + min(self.options.prefetch, extra))

    def _fetch(self, now: float) -> Iterator[Command]:
        for queue, due in self.due.items():
            if due <= now and queue not in self.promoting:
                self.promoting.add(queue)
                self.due[queue] = now + LOOK_INTERVAL  # until the look that follows says
                yield Promote(queue)
        yield from self._claim(now)
        if not self.looking and now >= self.next_look:
            self.looking = True
            yield Look()
        if self.options.listen and not self.setting_idle:
            if not self.idle and self.poll >= IDLE_POLL and not self.hot:
                self.idle = self.setting_idle = True
                yield SetIdle(True)
            elif self.idle and self.busy_claims >= BUSY_CLAIMS and now - self.busy_since <= 1.0:
                self.idle, self.setting_idle = False, True
                yield SetIdle(False)

    def _claim(self, now: float) -> Iterator[Command]:
        if self.claiming or not self.hot or not self.children:
            return
        target, held = self.target(), self.held_count()
        want = min(target - held, self.options.claim_batch)
        # Half a batch is worth a claim; less only if a child has nothing to do.
        if want <= 0 or (want < min(target, self.options.claim_batch) // 2 and self.waiting):
            return
        queues = list(self.hot)[:MAX_QUEUES_A_ROUND]
        share = -(-want // len(queues))
        for queue in queues:
            self.hot.pop(queue)
            self.hot[queue] = None  # to the end of the turn
            self.claiming += 1
            yield self._order(queue, share, now)

    def _order(self, queue: str, limit: int, now: float) -> Claim:
        """Build a claim: from the cursors and the gaps between them, or a sweep when one is due."""
        cursors = self.cursors.get(queue)
        if not cursors or now >= self.next_sweep.get(queue, 0.0):
            return Claim(queue, limit, sweep=True)
        high: list[int] = []
        low: list[int] = []
        after: list[int | None] = []
        top = HIGHEST
        for priority in sorted(cursors, reverse=True):
            if priority < top:
                high.append(top)
                low.append(priority + 1)
                after.append(None)
            high.append(priority)
            low.append(priority)
            after.append(cursors[priority])
            top = priority - 1
        if top >= LOWEST:
            high.append(top)
            low.append(LOWEST)
            after.append(None)
        return Claim(queue, limit, tuple(high), tuple(low), tuple(after))

    def _drain(self) -> Iterator[Command]:
        empty = True
        for number, child in self.children.items():
            empty = False
            if not child.pipe and not child.closing:
                child.closing = True
                yield CloseChild(number)
        if (
            empty
            and not self.spawning
            and not (
                self.outcomes or self.parts or self.writing or self.to_release or self.to_crash
            )
        ):
            self.phase = Phase.STOPPED

    # For the parent

    @property
    def done(self) -> bool:
        """Whether the worker may end."""
        return self.phase is Phase.STOPPED

    def next_wake(self, now: float) -> float:
        """Return the moment at which `commands` has something to do even if nothing happens."""
        moments = [now + 1.0]
        if self.outcomes and not self.writing:
            moments.append(self.first_outcome_at + FLUSH_DELAY)
        if self.phase is Phase.RUNNING and self.connected:
            if not self.looking:
                moments.append(self.next_look)
            moments += [due for queue, due in self.due.items() if queue not in self.promoting]
        if self.drain_deadline is not None:
            moments.append(self.drain_deadline)
        return min(moments)

    def running(self, begun: Mapping[int, int]) -> list[Held]:
        """Return the jobs that children have begun, given how many each ever began."""
        found: list[Held] = []
        for number, child in self.children.items():
            count = begun.get(number, 0) - child.reported
            if count > 0:
                found += list(child.pipe.values())[:count]
        return found

    def stuck(self, begun: Mapping[int, int]) -> Iterable[int]:
        """Return the children that have outcomes to report while a job of theirs runs on."""
        return [
            number
            for number, child in self.children.items()
            if begun.get(number, 0) > child.reported + 1
        ]


def _line(row: ClaimedRow) -> tuple[int, int]:
    """Order jobs as they stand in line: higher priority first, then older."""
    return -row.priority, row.seq


def _unstorable(ended: Ended, message: str) -> Ended:
    """Replace an outcome that cannot be stored by a failure that says so."""
    error = {
        "type": "pgtasks.errors.EncodingError",
        "message": f"the outcome ({ended.kind}) could not be stored: {message}"[:500],
        "traceback": "",
        "args": None,
    }
    return ended._replace(kind="failed", result=None, error=error, delay=None)
