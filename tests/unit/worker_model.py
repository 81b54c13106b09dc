"""A worker without processes, clock or PostgreSQL, to drive the ledger through any order of events.

`World` performs the ledger's commands as the parent does, on a `Database` and on `FakeChild`s that do
what the test says. It knows the place of each claimed job by itself and checks each command against it:
a broken promise is an AssertionError at the command that broke it.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from pgtasks.options import MAX_CRASHES, WorkerOptions
from pgtasks.worker import messages as msg
from pgtasks.worker.ledger import Ledger, Phase

QUEUES = ("first", "second")
UNSTORABLE = "unstorable"  # a result that the database refuses

Key = tuple[str, str]  # token and id: one claim of one job
Answer = Literal["ok", "refused", "again"]


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
    start_at: float | None = None  # set: scheduled
    expired: bool = False
    token: str | None = None

    @property
    def ready(self) -> bool:
        return self.start_at is None and self.token is None


class RefusedByValueError(Exception):
    """The database cannot store one value of a batch."""


class Database:
    """What the statements of schema/statements do, in a few dictionaries."""

    def __init__(self) -> None:
        self.jobs: dict[str, StoredJob] = {}
        self.claims: dict[str, list[str]] = {}
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

    def look(self, now: float) -> dict[str, tuple[bool, float | None]]:
        found: dict[str, tuple[bool, float | None]] = {}
        for queue in QUEUES:
            rows = [job for job in self.jobs.values() if job.queue == queue]
            due = [job.start_at for job in rows if job.start_at is not None]
            found[queue] = (any(job.ready for job in rows), min(due) - now if due else None)
        return found

    def claim(self, order: msg.Claim, token: str, locked: int) -> list[msg.ClaimedRow]:
        """Claim by ranges, in order, stepping over so many rows that somebody else has locked."""
        line = sorted(
            (job for job in self.jobs.values() if job.queue == order.queue and job.ready),
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
        return [
            claimed_row(
                id=job.id,
                seq=job.seq,
                priority=job.priority,
                task=job.task,
                attempt=job.attempt,
                crashes=job.crashes,
                expired=job.expired,
                queue=job.queue,
            )
            for job in reversed(taken)  # the statement promises no order
        ]

    def promote(self, queue: str, now: float) -> None:
        for job in self.jobs.values():
            if job.queue == queue and job.start_at is not None and job.start_at <= now:
                self._renew(job)

    def finish(self, batch: msg.Batch, now: float) -> frozenset[str]:
        mine = [ended for ended in batch.ended if self._holds(ended.held)]
        if any(ended.result == UNSTORABLE for ended in mine):
            raise RefusedByValueError
        for ended in mine:
            job = self.jobs[ended.held.row.id]
            if ended.kind == "retry":
                job.token = None
                self._renew(job)
                job.start_at = now + ended.delay if ended.delay else None
            else:
                del self.jobs[job.id]
                self.ended.setdefault(job.id, []).append(ended.kind)
        self.end_claims(batch.claims)
        return frozenset(ended.held.row.id for ended in mine)

    def release_jobs(self, command: msg.Release | msg.Crash) -> None:
        for held in command.jobs:
            if self._holds(held):
                job = self.jobs[held.row.id]
                job.token = None
                if isinstance(command, msg.Crash):
                    job.crashes += 1
                else:
                    job.attempt -= 1
        self.end_claims(command.claims)

    def end_claims(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            self.claims.pop(token, None)
            left = [job.id for job in self.jobs.values() if job.token == token]
            assert not left, f"claim {token} ended, and nobody could rescue {left} any more"

    def release_lost(self, known: Sequence[str]) -> None:
        for token in [token for token in self.claims if token not in known]:
            del self.claims[token]
            for job in self.jobs.values():
                if job.token == token:
                    job.token = None
                    job.attempt -= 1

    def rescue(self) -> None:
        """Do what another worker does once it takes this one for dead."""
        self.release_lost(())

    def _holds(self, held: msg.Held) -> bool:
        return held.row.id in self.jobs and self.jobs[held.row.id].token == held.token

    def _renew(self, job: StoredJob) -> None:
        self._seq += 2
        job.seq, job.start_at = self._seq, None


@dataclass(slots=True)
class FakeChild:
    """A child: what it was sent, how many jobs it began, and what it has to report."""

    number: int
    inbox: list[msg.Held] = field(default_factory=list)
    begun: int = 0
    running: list[msg.Held] = field(default_factory=list)
    unreported: list[tuple[Any, ...]] = field(default_factory=list)
    reported: list[tuple[Any, ...]] = field(default_factory=list)
    skip_below: int = 0
    closed: bool = False  # no more jobs come
    killed: bool = False
    dead: bool = False

    def begin(self) -> bool:
        while self.begun < len(self.inbox) and self.inbox[self.begun].serial < self.skip_below:
            held = self.inbox.pop(self.begun)
            self.unreported.append((held.serial, "skipped", None, None, None, None, None))
        if self.begun == len(self.inbox):
            return False
        self.running.append(self.inbox[self.begun])
        self.begun += 1
        return True

    def end(
        self,
        which: int,
        now: float,
        seconds: float,
        kind: str = "succeeded",
        result: str | None = None,
        delay: float | None = None,
    ) -> None:
        held = self.running.pop(which % len(self.running))
        error = None if kind == "succeeded" else {"type": "ValueError", "message": "no"}
        record = (held.serial, kind, result, error, delay, now - seconds, now)
        self.unreported.append(record)

    def report(self) -> list[tuple[Any, ...]]:
        records, self.unreported = self.unreported, []
        self.reported += records
        return records


class Place(Enum):
    """Where a claimed job is, in the words of the ledger's drawing."""

    WAITING = "waiting"
    PIPE = "in a child's pipe"
    ENDED = "has an outcome"
    RETURNING = "to be released"
    CRASHED = "to be charged a crash"
    LEAVING = "its exit is under way"
    GONE = "gone"
    FORGOTTEN = "not ours any more"


HELD = (Place.WAITING, Place.PIPE, Place.ENDED, Place.RETURNING, Place.CRASHED)


@dataclass(slots=True)
class Claimed:
    """What the model knows of one claim of one job."""

    row: msg.ClaimedRow
    place: Place
    child: int | None = None
    kind: str | None = None  # the outcome


@dataclass(slots=True)
class Unit:
    """A command under way on the connection."""

    command: Any
    token: str = ""


class World:
    """A ledger with everything around it."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.options = WorkerOptions(**options)
        self.ledger = Ledger(self.options, QUEUES, self.now)
        self.database = Database()
        self.link_up = False
        self.units: deque[Unit] = deque()
        self.events: list[msg.Event] = []
        self.children: dict[int, FakeChild] = {}
        self.unborn = 0
        self.claimed: dict[Key, Claimed] = {}
        self.stop_asked = False
        self.charged: list[str] = []
        self.released = 0
        self.sweeps: list[tuple[float, str]] = []
        self._next_child = 0

    # What happens

    def cycle(self) -> list[Any]:
        """Tell the ledger what happened and perform its commands, as the parent's `cycle` does."""
        happened, self.events = self.events, []
        for event in happened:
            self._note(event)
            self.ledger.handle(event, self.now)
        done = []
        for command in self.ledger.commands(self.now):
            self._perform(command)
            done.append(command)
        return done

    def connect(self) -> None:
        self.link_up = True
        self.events.append(msg.Connected())

    def break_link(self, committed: int = 0) -> None:
        """Break the connection after the server did so much of what is under way."""
        for unit in list(self.units)[:committed]:
            self._execute(unit, "ok")
        for unit in self.units:
            self.events += self._unanswered(unit.command, "lost")
        self.units.clear()
        self.link_up = False
        self.events.append(msg.Disconnected())

    def answer(self, how: Answer = "ok", locked: int = 0, cost: float = 0.001) -> None:
        """Let the server answer what is first in line."""
        unit = self.units.popleft()
        self.events += self._execute(unit, how, locked, cost)

    def start_child(self) -> None:
        self.unborn -= 1
        self._next_child += 1
        self.children[self._next_child] = FakeChild(self._next_child)
        self.events.append(msg.ChildStarted(self._next_child))

    def fail_to_start(self) -> None:
        """Let a child die before it was ready."""
        self.unborn -= 1
        self._next_child += 1
        self.events.append(msg.ChildDied(self._next_child, (), {}))

    def living(self) -> list[FakeChild]:
        return [one for one in self.children.values() if not one.dead]

    def dying(self) -> list[FakeChild]:
        """Return what has died, was killed, or has nothing left to do after it was closed."""
        return [
            one
            for one in self.children.values()
            if one.dead
            or one.killed
            or (one.closed and one.begun == len(one.inbox) and not one.running)
        ]

    def wake(self, queue: str) -> None:
        self.events.append(msg.Woken(queue))

    def report(self, number: int, twice: bool = False) -> None:
        child = self.children[number]
        again = list(child.reported[-2:]) if twice else []
        records = again + child.report()
        if records:
            self.events.append(msg.Reported(number, records))

    def reap(self, number: int, twice: bool = False) -> None:
        self.report(number, twice)
        child = self.children.pop(number)
        cause = {"type": "pgtasks.Crash", "message": "was killed", "traceback": "", "args": None}
        slots = [msg.Running(held.serial, self.now, 0) for held in child.inbox[: child.begun]]
        self.events.append(msg.ChildDied(number, slots, cause))

    def lose_lease(self) -> None:
        self.database.rescue()
        self.events.append(msg.LeaseLost())

    def stop(self, at_once: bool = False) -> None:
        self.stop_asked = True
        self.events.append(msg.StopAsked(at_once))

    # What the ledger asks for

    def _perform(self, command: Any) -> None:
        match command:
            case msg.Spawn():
                assert not self.stop_asked, "a child was started while draining"
                self.unborn += 1
                assert len(self.children) + self.unborn <= self.options.concurrency + len(
                    [event for event in self.events if isinstance(event, msg.ChildDied)]
                ), "too many children"
            case msg.Send(number, jobs):
                self._send(number, jobs)
            case msg.CloseChild(number):
                self.children[number].closed = True
            case msg.KillChild(number):
                if number in self.children:
                    self.children[number].killed = True
            case msg.Skip(number, below, _):
                self.children[number].skip_below = below
            case _:
                assert self.link_up, f"{command} without a connection"
                self._check(command)
                token = str(uuid.uuid4()) if isinstance(command, msg.Claim) else ""
                self.units.append(Unit(command, token))

    def _send(self, number: int, jobs: Sequence[msg.Held]) -> None:
        assert not self.stop_asked, "jobs were sent while draining"
        assert jobs, "an empty frame was sent"
        for held in jobs:
            claimed = self._of(held)
            assert claimed.place is Place.WAITING, f"sent, though it {claimed.place.value}"
            claimed.place, claimed.child = Place.PIPE, number
        child = self.children[number]
        assert not child.closed, "jobs were sent to a child that was closed"
        if not child.dead:
            child.inbox += jobs

    def _check(self, command: Any) -> None:
        match command:
            case msg.Claim():
                assert not self.stop_asked, "a claim while draining"
                assert command.limit >= 1
                check_ranges(command)
                if command.sweep:
                    self.sweeps.append((self.now, command.queue))
            case msg.Finish(batch):
                for ended in batch.ended:
                    claimed = self._leave(ended.held, Place.ENDED)
                    given_up = claimed.kind == "refused" and ended.kind == "failed"
                    assert given_up or ended.kind == claimed.kind, f"{ended} for {claimed}"
                self._check_tokens(batch.claims)
            case msg.Release(jobs, claims):
                for held in jobs:
                    self._leave(held, Place.WAITING, Place.RETURNING)
                self.released += len(jobs)
                self._check_tokens(claims)
            case msg.Crash(jobs, claims, causes):
                assert len(causes) == len(jobs)
                for held in jobs:
                    self._leave(held, Place.CRASHED)
                    self.charged.append(held.row.id)
                self._check_tokens(claims)
            case msg.ReleaseLost(known):
                live = (*HELD, Place.LEAVING)
                own = {key[0] for key, one in self.claimed.items() if one.place in live}
                assert own <= set(known), "a token of a held job is called unknown"
            case _:
                pass

    def _leave(self, held: msg.Held, *places: Place) -> Claimed:
        claimed = self._of(held)
        assert claimed.place in places, f"leaves, though it {claimed.place.value}"
        claimed.place = Place.LEAVING
        return claimed

    def _check_tokens(self, tokens: Sequence[str]) -> None:
        assert len(tokens) == len(set(tokens)), "a claim ends twice in one command"
        for (token, _), claimed in self.claimed.items():
            held = token in tokens and claimed.place in HELD
            assert not held, f"a claim ends, though a job of it {claimed.place.value}"

    def _of(self, held: msg.Held) -> Claimed:
        return self.claimed[held.token, held.row.id]

    # The server

    def _execute(
        self, unit: Unit, how: Answer, locked: int = 0, cost: float = 0.001
    ) -> list[msg.Event]:
        command, database = unit.command, self.database
        if how != "ok":
            return self._unanswered(command, "again")
        match command:
            case msg.Look():
                return [msg.Looked(database.look(self.now), command.lane)]
            case msg.Claim():
                rows = database.claim(command, unit.token, locked)
                return [msg.Claimed(command, unit.token, rows, cost)]
            case msg.Promote(queue):
                database.promote(queue, self.now)
                return [msg.Promoted(queue)]
            case msg.SetIdle(idle):
                database.idle = idle
                return [msg.IdleSet(idle)]
            case msg.Finish(batch):
                try:
                    return [msg.Written(batch, database.finish(batch, self.now))]
                except RefusedByValueError:
                    return [msg.Unwritten(batch, "value", "no such value")]
            case msg.Release() | msg.Crash():
                database.release_jobs(command)
                return [msg.Released(command)]
            case msg.ReleaseLost(known):
                database.release_lost(known)
                return []
            case _:
                raise AssertionError(f"no statement for {command}")

    def _unanswered(self, command: Any, reason: Literal["lost", "again"]) -> list[msg.Event]:
        match command:
            case msg.Finish(batch):
                return [msg.Unwritten(batch, reason, "the server said no")]
            case msg.Release() | msg.Crash():
                return [msg.Unreleased(command)]
            case msg.ReleaseLost():  # if it is lost, the next connection asks again
                return [] if reason == "lost" else [msg.LostKept()]
            case _:
                return [msg.Refused(command)]

    # What the events mean for the places

    def _note(self, event: Any) -> None:
        match event:
            case msg.Claimed(_, token, rows):
                for row in rows:
                    kind = (
                        "expired"
                        if row.expired
                        else "quarantined"
                        if row.crashes >= MAX_CRASHES
                        else None
                    )
                    place = Place.ENDED if kind else self._unbegun
                    self.claimed[token, row.id] = Claimed(row, place, kind=kind)
            case msg.Reported(number, records):
                self._note_reported(number, records)
            case msg.ChildDied(number, slots):
                self._note_death(number, slots)
            case msg.Written(batch):
                for ended in batch.ended:
                    self._of(ended.held).place = Place.GONE
            case msg.Unwritten(batch, reason):
                for ended in batch.ended:
                    self._of(ended.held).place = Place.ENDED
                    if reason == "value" and len(batch.ended) == 1:
                        self._of(ended.held).kind = "refused"
            case msg.Unreleased(command):
                back = Place.CRASHED if isinstance(command, msg.Crash) else Place.RETURNING
                for held in command.jobs:
                    self._of(held).place = back
            case msg.LeaseLost():
                for claimed in self.claimed.values():
                    if claimed.place in (Place.WAITING, Place.RETURNING, Place.CRASHED):
                        claimed.place = Place.FORGOTTEN
            case msg.StopAsked():
                for claimed in self.claimed.values():
                    if claimed.place is Place.WAITING:
                        claimed.place = Place.RETURNING
            case msg.Released(command):
                for held in command.jobs:
                    self._of(held).place = Place.GONE
            case _:
                pass

    @property
    def _unbegun(self) -> Place:
        """Where a job goes that no child has begun."""
        return Place.WAITING if self.ledger.phase is Phase.RUNNING else Place.RETURNING

    def _note_reported(self, number: int, records: Iterable[Sequence[Any]]) -> None:
        pipe = {held.serial: held for held in self.ledger.crew.members[number].jobs()}
        for serial, kind, *_ in records:
            if serial in pipe:
                claimed = self._of(pipe.pop(serial))
                assert claimed.child == number
                claimed.place, claimed.kind = Place.ENDED, kind
                if kind == "skipped":
                    claimed.place = Place.RETURNING

    def _note_death(self, number: int, slots: Sequence[msg.Running]) -> None:
        member = self.ledger.crew.members.get(number)
        if member is None:
            return
        begun = {one.serial for one in slots}
        running = [self._of(held) for held in member.jobs() if held.serial in begun]
        for held in member.jobs():
            if held.serial not in begun:
                self._of(held).place = self._unbegun
        for claimed in running:
            if self.ledger.killing:
                claimed.place = Place.RETURNING
            elif len(running) > 1:
                claimed.place = self._unbegun
            elif claimed.row.crashes + 1 >= MAX_CRASHES:
                claimed.place, claimed.kind = Place.ENDED, "quarantined"
            else:
                claimed.place = Place.CRASHED

    # To the end

    def run_until(self, reached: Callable[[], bool], cycles: int = 3000) -> None:
        """Let everything go well until something is so: answers come, children run what they have."""
        for _ in range(cycles):
            if reached():
                return
            if not self.link_up:
                self.connect()
            while self.units:
                self.answer()
            while self.unborn:
                self.start_child()
            for number, child in list(self.children.items()):
                self._go_on(number, child)
            self.cycle()
            if not self.units and not self.events:
                self.now = max(self.now + 0.001, min(self.ledger.next_wake(self.now), self.now + 1))
        raise AssertionError(f"not reached within {cycles} cycles; at {self.describe()}")

    def _go_on(self, number: int, child: FakeChild) -> None:
        if child.dead or child.killed:
            self.reap(number)
            return
        while child.running or child.begin():
            child.end(0, self.now, 0.001)
        self.report(number)
        if child.closed:
            self.reap(number)

    def stop_and_check(self) -> None:
        """Drain with a live database, and check that nothing stays behind."""
        if not self.stop_asked:
            self.stop()
        self.run_until(lambda: self.ledger.done and not self.units and not self.events)
        self.check_nothing_held()

    def check_nothing_held(self) -> None:
        held = [one for one in self.claimed.values() if one.place in (*HELD, Place.LEAVING)]
        assert not held, f"did not leave: {held}"
        stuck = [job for job in self.database.jobs.values() if job.token is not None]
        assert not stuck, f"still claimed, by nobody: {stuck}"
        assert not self.database.claims, f"claims are left over: {self.database.claims}"

    def describe(self) -> str:
        held = [f"{one.row.id[-4:]} {one.place.name}" for one in self.claimed.values()]
        held = [one for one in held if not one.endswith("GONE")]
        children = [
            (child.number, len(child.inbox), child.begun) for child in self.children.values()
        ]
        jobs = list(self.database.jobs.values())[:3]
        return f"{self.now:.3f} {self.ledger.phase} {held} {list(self.units)} {children} {jobs}"


def check_ranges(order: msg.Claim) -> None:
    """Assert that the ranges of a claim go down the priorities and leave none out."""
    top = msg.HIGHEST
    for high, low, after in zip(order.high, order.low, order.after, strict=True):
        assert high == top
        assert low <= high
        assert after is None or low == high, "a cursor is of one priority"
        top = low - 1
    assert top == msg.LOWEST - 1


def weight(thing: Any) -> int:
    """Count what lies in a ledger's containers, at any depth: what would grow if something leaked."""
    if isinstance(thing, msg.Held | msg.Ended | str | bytes):
        return 1
    if isinstance(thing, dict):
        return len(thing) + sum(weight(value) for value in thing.values())
    if isinstance(thing, list | tuple | set | deque):
        return len(thing) + sum(weight(value) for value in thing)
    if isinstance(thing, msg.Batch):
        return len(thing.ended) + len(thing.claims)
    if type(thing).__module__.startswith("pgtasks.worker."):
        names = getattr(type(thing), "__slots__", None) or vars(thing)
        return sum(weight(getattr(thing, name)) for name in names)
    return 0
