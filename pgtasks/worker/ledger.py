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
    - only the job that a dead child had begun is charged; if several were begun, none is, and all are
      released (a child runs one at a time, so that does not happen yet)
    - nothing is claimed while draining, and what had not been sent is released

`Intake` decides which queue to ask and when; `Pace` knows how long jobs take. How many are claimed ahead
and lie in a pipe follows from that: many of microseconds, none extra of long ones.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import assert_never

from pgtasks.options import MAX_CRASHES, WorkerOptions
from pgtasks.worker.intake import Intake
from pgtasks.worker.messages import (
    Batch,
    ChildDied,
    ChildStarted,
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
    Looked,
    LostKept,
    Promoted,
    Refused,
    Release,
    Released,
    ReleaseLost,
    Reported,
    Send,
    Spawn,
    StopAsked,
    Unreleased,
    Unwritten,
    Woken,
    Written,
)
from pgtasks.worker.pace import IN_PIPE, Pace

# A finish waits so long for more outcomes, while short jobs are under way.
FLUSH_DELAY = 0.004
FLUSH_BATCH = 500

# With so many outcomes unwritten nothing more is claimed: ten full batches, some hundred milliseconds of
# work at full speed, and a bound on memory while the server refuses to store any.
OUTCOMES_LIMIT = 10 * FLUSH_BATCH

# A finish that the server refused for a passing reason (deadlock, time-out) is tried again after this.
WRITE_AGAIN = 0.1

# If no job could be sent for so long, those that wait in the parent are given back, for others to take.
WAIT_LIMIT = 5.0

# A claim on a connection that was given up may be committed long after the next one is up, when the server
# or the network stood still. So what was lost is looked for so often.
RELEASE_LOST_EVERY = 10.0

# A child that dies before its first job (a hook of the app raised) is followed by another after this.
SPAWN_AGAIN = 1.0


class Phase(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(slots=True)
class _Child:
    """What the ledger knows of one child."""

    # What was sent and not reported, in order, with the seconds that each was expected to take.
    pipe: dict[int, tuple[Held, float]] = field(default_factory=dict)
    load: float = 0.0  # the sum of these
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
        self.phase = Phase.STARTING
        self.connected = False

        self.waiting: deque[Held] = deque()
        self.waiting_since = now
        self.children: dict[int, _Child] = {}
        self.outcomes: list[Ended] = []
        self.first_outcome_at = 0.0
        self.parts: deque[Batch] = deque()  # batches to write again, or in halves
        # token -> jobs whose exit is not committed, as far as is known
        self.claims: dict[str, int] = {}
        self.ended_claims: list[str] = []  # nothing is left of them, and the database was not told
        self.to_release: list[Held] = []
        self.to_crash: list[Held] = []
        self.serial = 0
        self.short_in_pipes = 0
        self.pace = Pace()
        self.intake = Intake(queues, options.poll_interval, options.listen, now)

        self.writing = False
        self.write_after = now
        self.releasing = 0  # Release and Crash under way
        self.must_release_lost = False
        self.release_lost_at = now
        self.release_after = now

        self.spawning = 0
        self.spawn_after = now
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
            case Looked(queues):
                self.intake.looked(queues, now)
            case Promoted(queue):
                self.intake.promoted(queue, now)
            case IdleSet(idle):
                self.intake.idle_set(idle, now)
            case LostKept():
                self.must_release_lost = True
                self.release_after = now + WRITE_AGAIN
            case Refused(question):
                self.intake.refused(question, now)
            case Woken(woken):
                self.intake.woken(woken, now)
            case Released(released):
                self.releasing -= 1
                self._leave(released.jobs, released.claims)
            case Unreleased(command):
                self.releasing -= 1
                jobs = self.to_release if isinstance(command, Release) else self.to_crash
                jobs += command.jobs
                self._keep_ended(command.claims)
                self.release_after = now + WRITE_AGAIN
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
            sent = child.pipe.pop(serial, None)
            if sent is None:  # reported twice: by pipe, and on the slate of a child that died then
                continue
            held, expected = sent
            child.reported += 1
            child.load = child.load - expected if child.pipe else 0.0
            self.short_in_pipes -= expected < IN_PIPE
            self.pace.measure(held.row.task, stopped - started)
            self.outcomes.append(Ended(held, kind, result, error, delay, started, stopped))

    def _claimed(self, event: Claimed, now: float) -> None:
        self.intake.claimed(event.order, event.rows, event.cost, now)
        if event.rows:
            self._take(event.rows, event.token, now)

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

    def _end(self, ended: Ended, now: float) -> None:
        if not self.outcomes:
            self.first_outcome_at = now
        self.outcomes.append(ended)

    def _written(self, event: Written) -> None:
        self.writing = False
        self._leave([ended.held for ended in event.batch.ended], event.batch.claims)
        for ended in event.batch.ended:
            row = ended.held.row
            if row.id in event.ids or event.batch.again:
                self.finished[row.task] = self.finished.get(row.task, 0) + 1
                self.ended_by_kind[ended.kind] = self.ended_by_kind.get(ended.kind, 0) + 1
                if ended.kind == "retry":
                    self.intake.scheduled(row.queue, ended.stopped + (ended.delay or 0.0))
            else:
                self.late += 1

    def _unwritten(self, event: Unwritten, now: float) -> None:
        self.writing = False
        batch = event.batch
        self._keep_ended(batch.claims)
        if event.reason == "lost":
            batch.again = True
            self.parts.appendleft(batch)
        elif event.reason == "again":
            self.parts.append(batch)
            self.write_after = now + WRITE_AGAIN
        elif len(batch.ended) > 1:  # one of them cannot be stored: find it by halves
            middle = len(batch.ended) // 2
            self.parts.append(Batch(batch.ended[:middle], []))
            self.parts.append(Batch(batch.ended[middle:], []))
        else:
            if batch.ended[0].kind == "failed":  # not for its own value, it seems
                self.write_after = now + WRITE_AGAIN
            self.parts.append(Batch([_unstorable(batch.ended[0], event.message)], []))

    def _connected(self, now: float) -> None:
        self.connected = True
        if self.phase is Phase.STARTING:
            self.phase = Phase.RUNNING
        self.must_release_lost = True
        self.release_after = now
        self.intake.connected(now)

    def _child_died(self, event: ChildDied, now: float) -> None:
        child = self.children.pop(event.child, None)
        if child is None:  # it died before it was ready
            self.spawning -= 1
            return
        begun = min(max(0, event.begun - child.reported), len(child.pipe))
        if not event.begun and event.cause.get("signal") is None:
            self.spawn_after = now + SPAWN_AGAIN
        self.short_in_pipes -= sum(expected < IN_PIPE for _, expected in child.pipe.values())
        rest = [held for held, _ in child.pipe.values()]
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
        self._leave((*self.waiting, *self.to_release, *self.to_crash), ())
        self.waiting.clear()
        self.to_release, self.to_crash = [], []

    def _leave(self, jobs: Iterable[Held], told: Collection[str]) -> None:
        """Let jobs go; a claim of which nothing is left has ended, and its row goes with what is said next.

        Args:
            jobs: what left.
            told: the claims whose rows went in the same transaction.
        """
        for held in jobs:
            left = self.claims.get(held.token, 0) - 1
            if left > 0:
                self.claims[held.token] = left
            elif self.claims.pop(held.token, None) is not None and held.token not in told:
                self.ended_claims.append(held.token)

    def _ending(self, jobs: Iterable[Held]) -> list[str]:
        """Return the claims that end once these jobs have left, and those that ended before.

        One of which anything else is held, or under way, stays: its row is the only way by which others
        find its jobs if this worker dies.
        """
        leaving = Counter(held.token for held in jobs)
        ended, self.ended_claims = self.ended_claims, []
        return ended + [
            token for token, count in leaving.items() if self.claims.get(token) == count
        ]

    def _keep_ended(self, claims: Iterable[str]) -> None:
        """Take back what the database was not told."""
        self.ended_claims += [token for token in claims if token not in self.claims]

    # Commands

    def commands(self, now: float) -> Iterator[Command]:
        """Yield what is to be done now."""
        overdue = self.drain_deadline is not None and now >= self.drain_deadline
        if overdue or self.killing:
            self.killing = True
            for number, child in self.children.items():
                if child.pipe or overdue:  # overdue and empty: it hangs on its way out
                    yield KillChild(number)
        if self.connected:
            yield from self._release(now)
            yield from self._finish(now)
        if self.phase is Phase.RUNNING:
            if now >= self.spawn_after:
                while len(self.children) + self.spawning < self.options.concurrency:
                    self.spawning += 1
                    yield Spawn()
            yield from self._send(now)
            if self.connected:
                yield from self.intake.questions(self._want(), now)
        elif self.phase is Phase.DRAINING:
            yield from self._drain()

    def _release(self, now: float) -> Iterator[Command]:
        if now < self.release_after:
            return
        if (self.must_release_lost or now >= self.release_lost_at) and not self.intake.claiming:
            self.must_release_lost = False
            self.release_lost_at = now + RELEASE_LOST_EVERY
            yield ReleaseLost(tuple(self.claims))
        if self.waiting and (self.phase is Phase.DRAINING or now - self.waiting_since > WAIT_LIMIT):
            self.to_release += self.waiting
            self.waiting.clear()
        for kind, jobs in ((Release, self.to_release), (Crash, self.to_crash)):
            if jobs:
                self.releasing += 1
                yield kind(tuple(jobs), self._ending(jobs))
                jobs.clear()
        if self.ended_claims and not (self.claims or self.writing or self.releasing):
            self.releasing += 1
            yield Release((), self._ending(()))

    def _finish(self, now: float) -> Iterator[Command]:
        if self.writing or now < self.write_after:
            return
        if self.parts:
            self.writing = True
            batch = self.parts.popleft()
            batch.claims = self._ending(one.held for one in batch.ended)
            yield Finish(batch)
        elif self.outcomes and (
            len(self.outcomes) >= FLUSH_BATCH
            or not self.short_in_pipes
            or now - self.first_outcome_at >= FLUSH_DELAY
            or self.phase is not Phase.RUNNING
        ):
            ended = self.outcomes[: 2 * FLUSH_BATCH]
            del self.outcomes[: 2 * FLUSH_BATCH]
            self.first_outcome_at = now
            ended.sort(key=lambda one: one.held.row.id)
            self.writing = True
            yield Finish(Batch(ended, self._ending(one.held for one in ended)))

    def _send(self, now: float) -> Iterator[Command]:
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
                self.waiting_since = now
                yield Send(number, jobs)

    def _fill(self, child: _Child, most: int) -> list[Held]:
        jobs: list[Held] = []
        while self.waiting and len(jobs) < max(most, 1):
            held = self.waiting[0]
            # One that took its process down before runs with nothing behind it.
            expected = IN_PIPE if held.row.crashes else self.pace.expect(held.row.task)
            alone = expected >= IN_PIPE
            if child.pipe and (alone or child.load >= IN_PIPE or most < 1):
                break
            self.waiting.popleft()
            child.pipe[held.serial] = (held, expected)
            child.load += expected
            jobs.append(held)
            if alone:
                break
            self.short_in_pipes += 1
        return jobs

    def held_count(self) -> int:
        """Return how many claimed jobs have no outcome yet."""
        return len(self.waiting) + sum(len(child.pipe) for child in self.children.values())

    def target(self) -> int:
        """Return how many jobs this worker wants to hold: what runs, and what the pace says beyond."""
        return self.options.concurrency * (1 + self.pace.ahead(self.options.prefetch))

    def _want(self) -> int:
        """Return how many jobs to claim now: half a batch or more; fewer only if nothing waits."""
        if not self.children or self.must_release_lost:
            return 0
        if len(self.outcomes) >= OUTCOMES_LIMIT:  # the database takes nothing back: give it time
            return 0
        target = self.target()
        want = min(target - self.held_count(), self.options.claim_batch)
        worth_it = want >= min(target, self.options.claim_batch) // 2 or not self.waiting
        return want if worth_it else 0

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
                self.outcomes
                or self.parts
                or self.writing
                or self.to_release
                or self.to_crash
                or self.releasing
                or self.ended_claims
            )
            # Jobs that are being claimed right now would stay behind.
            and not (self.connected and (self.intake.claiming or self.waiting))
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
        if self.connected and not self.writing:
            if self.parts:
                moments.append(self.write_after)
            elif self.outcomes:
                moments.append(max(self.first_outcome_at + FLUSH_DELAY, self.write_after))
        if self.connected and now < self.release_after:
            moments.append(self.release_after)
        if self.phase is Phase.RUNNING:
            if self.connected:
                moments.append(self.intake.next_wake())
            if len(self.children) + self.spawning < self.options.concurrency:
                moments.append(self.spawn_after)
        if self.drain_deadline is not None and not self.killing:
            moments.append(self.drain_deadline)
        return min(moments)

    def running(self, begun: Mapping[int, int]) -> list[Held]:
        """Return the jobs that children have begun, given how many each ever began."""
        found: list[Held] = []
        for number, child in self.children.items():
            count = begun.get(number, 0) - child.reported
            if count > 0:
                found += [held for held, _ in list(child.pipe.values())[:count]]
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
