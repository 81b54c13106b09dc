"""What is around a ledger, in a few dictionaries: the database, and children that do what the test says."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgtasks.worker import messages as msg
from pgtasks.worker.messages import Order, TaskFacts
from pgtasks.worker.slate import SKIPS

QUEUES = ("first", "second")
UNSTORABLE = "unstorable"  # a result that the database refuses

Record = tuple[Any, ...]


def claimed_row(**changed: Any) -> msg.ClaimedRow:
    """Return a row as claim_jobs gives it."""
    values: dict[str, Any] = dict.fromkeys(msg.ClaimedRow._fields)
    values |= {
        "id": str(uuid.uuid4()),
        "seq": 1,
        "priority": 0,
        "task": "task",
        "args": "[]",
        "kwargs": "{}",
        "attempt": 1,
        "crashes": 0,
        "created_at": 0.0,
        "expired": False,
        "queue": QUEUES[0],
    }
    return msg.ClaimedRow(**(values | changed))


@dataclass(slots=True)
class StoredJob:
    """A row of the table job."""

    id: str
    seq: int
    queue: str
    priority: int = 0
    task: str = "task"
    crashes: int = 0
    attempt: int = 0
    options: str | None = None
    start_at: float | None = None  # set: scheduled
    expired: bool = False
    token: str | None = None
    cancel_requested: bool = False

    @property
    def ready(self) -> bool:
        return self.start_at is None and self.token is None


class RefusedByValueError(Exception):
    """The database cannot store one value of a batch."""


class Database:
    """What the statements of schema/statements do."""

    def __init__(self) -> None:
        self.jobs: dict[str, StoredJob] = {}
        self.claims: dict[str, list[str]] = {}
        self.at_most_once: set[str] = set()  # tokens of claims of such tasks
        self.ended: dict[str, list[str]] = {}  # id -> how it ended, each time
        self.idle = False
        self._inserted = 0
        self._seq = 0
        self._skipped: list[int] = []

    def insert(self, queue: str, *, late: bool = False, **fields: Any) -> StoredJob:
        """Add a job; a late one took its seq long ago and is committed only now."""
        self._seq += 2
        self._skipped.append(self._seq - 1)
        seq = self._skipped.pop(0) if late else self._seq
        self._inserted += 1
        job = StoredJob(str(uuid.UUID(int=self._inserted)), seq, queue, **fields)
        self.jobs[job.id] = job
        return job

    def survey(self, queue: str) -> dict[int, int]:
        """Say of which priorities something is ready or runs, and the last seq of each."""
        last: dict[int, int] = {}
        for job in self.jobs.values():
            if job.queue == queue and job.start_at is None:
                last[job.priority] = max(job.seq, last.get(job.priority, 0))
        return last

    def look(
        self, now: float, tasks: Sequence[str] | None = None, hot: Sequence[str] = ()
    ) -> dict[str, tuple[bool | None, float | None]]:
        found: dict[str, tuple[bool | None, float | None]] = {}
        for queue in QUEUES:
            rows = [job for job in self.jobs.values() if job.queue == queue]
            ready = any(job.ready and (tasks is None or job.task in tasks) for job in rows)
            due = [job.start_at for job in rows if job.start_at is not None]
            known = None if queue in hot else ready
            found[queue] = (known, min(due) - now if due else None)
        return found

    def claim(
        self,
        order: msg.Claim,
        token: str,
        locked: int,
        kind: msg.LaneKind | None = None,
    ) -> list[msg.ClaimedRow]:
        """Claim by ranges, in order, stepping over so many rows that somebody else has locked."""
        line = sorted(
            (
                job
                for job in self.jobs.values()
                if job.queue == order.queue
                and job.ready
                and (kind is None or not kind.tasks or job.task in kind.tasks)
            ),
            key=lambda job: (-job.priority, job.seq),
        )
        taken: list[StoredJob] = []
        for high, low, after in zip(order.high, order.low, order.after, strict=True):
            within = [
                job
                for job in line
                if low <= job.priority <= high and (after is None or job.seq > after)
            ]
            taken += within[locked:] if len(within) > locked else within
        taken = taken[: order.limit]
        assert len({job.id for job in taken}) == len(taken), "the ranges of a claim overlap"
        for job in taken:
            job.token = token
            job.attempt += 1
        if taken:
            self.claims[token] = [job.id for job in taken]
            if kind is not None and kind.at_most_once:
                self.at_most_once.add(token)
        return [
            claimed_row(
                id=job.id,
                seq=job.seq,
                priority=job.priority,
                task=job.task,
                attempt=job.attempt,
                crashes=job.crashes,
                expired=job.expired,
                options=job.options,
                queue=job.queue,
            )
            for job in reversed(taken)  # the statement promises no order
        ]

    def promote(self, queue: str, now: float) -> None:
        for job in self.jobs.values():
            if job.queue == queue and job.start_at is not None and job.start_at <= now:
                self._renew(job)

    def request_cancel(self, ids: Iterable[str]) -> dict[str, frozenset[str]]:
        """Flag running jobs, and return what their workers are told: token -> ids."""
        told: dict[str, frozenset[str]] = {}
        for id in ids:
            job = self.jobs[id]
            if job.token is not None:
                job.cancel_requested = True
                told[job.token] = told.get(job.token, frozenset()) | {id}
        return told

    def finish(self, batch: msg.Batch, now: float) -> frozenset[str]:
        mine = [ended for ended in batch.ended if self.holds(ended.held)]
        if any(ended.result == UNSTORABLE for ended in mine):
            raise RefusedByValueError
        for ended in mine:
            job = self.jobs[ended.held.row.id]
            if ended.kind != "retry":
                self._end(job, ended.kind)
            elif job.cancel_requested:
                self._end(job, "cancelled")
            else:
                job.token = None
                self._renew(job)
                job.start_at = now + ended.delay if ended.delay else None
        self.end_claims(batch.claims)
        return frozenset(ended.held.row.id for ended in mine)

    def commit(self, held: msg.Held) -> bool:
        """Let a child write the success of a transactional job, if it is still this worker's."""
        if not self.holds(held):
            return False
        self._end(self.jobs[held.row.id], "succeeded")
        return True

    def release_jobs(self, command: msg.Release | msg.Crash) -> None:
        for held in command.jobs:
            if self.holds(held):
                job = self.jobs[held.row.id]
                job.token = None
                if isinstance(command, msg.Crash):
                    job.crashes += 1
                else:
                    job.attempt -= 1
                if job.cancel_requested:
                    self._end(job, "cancelled")
        self.end_claims(command.claims)

    def end_claims(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            self.claims.pop(token, None)
            left = [job.id for job in self.jobs.values() if job.token == token]
            assert not left, f"claim {token} ended, and nobody could rescue {left} any more"

    def release_lost(self, known: Sequence[str]) -> None:
        for token in [token for token in self.claims if token not in known]:
            del self.claims[token]
            for job in list(self.jobs.values()):
                if job.token == token:
                    job.token = None
                    job.attempt -= 1
                    if job.cancel_requested:
                        self._end(job, "cancelled")

    def rescue(self) -> None:
        """Do what another worker does once it takes this one for dead."""
        for job in list(self.jobs.values()):
            if job.token in self.at_most_once:
                self._end(job, "failed")
        self.release_lost(())

    def holds(self, held: msg.Held) -> bool:
        return held.row.id in self.jobs and self.jobs[held.row.id].token == held.token

    def _end(self, job: StoredJob, kind: str) -> None:
        del self.jobs[job.id]
        self.ended.setdefault(job.id, []).append(kind)

    def _renew(self, job: StoredJob) -> None:
        self._seq += 2
        job.seq, job.start_at = self._seq, None


@dataclass(slots=True)
class Sent:
    """A job in a child's hands."""

    held: msg.Held
    over_limit: float | None = None
    slot: int = -1
    began: float = 0.0
    session: int = 0
    committed: str | None = None  # what the child's own writing came to: committed or late
    orders: dict[Order, float] = field(default_factory=dict)  # since when

    @property
    def serial(self) -> int:
        return self.held.serial

    @property
    def task(self) -> str:
        return self.held.row.task


class FakeChild:
    """A child: what it was sent, what it runs, what its slate says and what it has to report.

    Args:
        number: its own.
        places: how many ordinary jobs it runs at once, and how many coroutines, if these have places of
            their own.
        facts: what is known of a task.
    """

    def __init__(
        self,
        number: int,
        places: Sequence[int] = (1,),
        facts: Callable[[str], TaskFacts] | None = None,
    ) -> None:
        self.number = number
        self.places = places
        self._facts = facts or (lambda name: TaskFacts())
        self.inbox: list[Sent] = []
        self.running: list[Sent] = []
        self.begun: set[int] = set()  # serials
        self.slots: list[msg.Running | None] = [None] * sum(places)
        self.unreported: list[Record] = []
        self.reported: list[Record] = []
        self.skip_below = 0
        self.skips: list[int] = []
        self.kills = 0
        self.closed = False  # no more jobs come
        self.killed = False
        self.dead = False

    def track(self, sent: Sent) -> int:
        return 1 if self._facts(sent.task).asynchronous else 0

    def begin(self, now: float, track: int = 0, session: bool = True) -> Sent | None:
        """Begin the next job of a track, or of the other one; what the slate says to skip is skipped."""
        for at in ((track + n) % len(self.places) for n in range(len(self.places))):
            while self._free(at):
                sent = next((one for one in self.inbox if self.track(one) == at), None)
                if sent is None:
                    break
                self.inbox.remove(sent)
                if sent.serial < self.skip_below or sent.serial in self.skips:
                    self.unreported.append((sent.serial, "skipped", None, None, None, None, None))
                    continue
                taken = {one.slot for one in self.running}
                sent.slot = next(n for n in range(len(self.slots)) if n not in taken)
                sent.began = now
                if session and self._facts(sent.task).transactional and sent.over_limit is None:
                    sent.session = 1000 + sent.serial
                self.slots[sent.slot] = msg.Running(sent.serial, now, sent.session)
                self.running.append(sent)
                self.begun.add(sent.serial)
                return sent
        return None

    def end(
        self,
        sent: Sent,
        now: float,
        seconds: float,
        kind: str = "succeeded",
        result: str | None = None,
        delay: float | None = None,
    ) -> None:
        """End a job: its outcome stands on the slate."""
        self.running.remove(sent)
        kind = sent.committed or kind
        error = {"type": "ValueError", "message": "no"} if kind in ("failed", "retry") else None
        record = (sent.serial, kind, result, error, delay, now - seconds, now)
        self.unreported.append(record)

    def report(self) -> list[Record]:
        records, self.unreported = self.unreported, []
        self.reported += records
        return records

    def slate(self) -> list[msg.Running]:
        """Return what stands in the slots: what runs, or ran last."""
        return [one for one in self.slots if one is not None]

    def skip(self, below: int, serials: Sequence[int]) -> None:
        self.skip_below, self.skips = below, list(serials[:SKIPS])

    def _free(self, track: int) -> bool:
        return sum(self.track(one) == track for one in self.running) < self.places[track]


def check_ranges(order: msg.Claim) -> None:
    """Assert that the ranges of a claim go down the priorities and leave none out."""
    top = msg.HIGHEST
    for high, low, after in zip(order.high, order.low, order.after, strict=True):
        assert high == top
        assert low <= high
        assert after is None or low == high, "a cursor is of one priority"
        top = low - 1
    assert top == msg.LOWEST - 1
