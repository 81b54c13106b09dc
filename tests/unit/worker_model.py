"""A worker without processes, clock or PostgreSQL, to drive the ledger through any order of events.

`World` performs the ledger's commands as the parent does, on a `Database` and on `FakeChild`s that do
what the test says. It knows the place of each claimed job by itself and checks each command against it:
a broken promise is an AssertionError at the command that broke it, or, if nothing was done that had to be,
at `check_duties`.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from pgtasks.options import MAX_CRASHES, WorkerOptions
from pgtasks.worker import messages as msg
from pgtasks.worker.ledger import Ledger, Phase
from pgtasks.worker.limits import CANCEL_GRACE, Reason
from pgtasks.worker.messages import Order, TaskFacts, Trust
from pgtasks.worker.slate import SKIPS
from tests.unit.worker_fakes import (
    QUEUES,
    Database,
    FakeChild,
    RefusedByValueError,
    Sent,
    check_ranges,
)

SOFT, HARD = 2.0, 5.0

# One task for each thing that can be said of one; those of the first lane have a measured duration.
TASKS = {
    "short": TaskFacts(),
    "medium": TaskFacts(),
    "long": TaskFacts(),
    "limited": TaskFacts(soft_time_limit=SOFT, time_limit=HARD),
    "transactional": TaskFacts(transactional=True),
    "transactional limited": TaskFacts(transactional=True, time_limit=HARD),
    "once": TaskFacts(at_most_once=True),
    "once limited": TaskFacts(at_most_once=True, time_limit=HARD),
    "once transactional": TaskFacts(at_most_once=True, transactional=True),
    "coroutine": TaskFacts(asynchronous=True),
    "coroutine limited": TaskFacts(asynchronous=True, soft_time_limit=SOFT, time_limit=HARD),
    "coroutine once": TaskFacts(asynchronous=True, at_most_once=True),
    "coroutine once limited": TaskFacts(asynchronous=True, at_most_once=True, time_limit=HARD),
}

Key = tuple[str, str]  # token and id: one claim of one job
Answer = Literal["ok", "refused", "again"]


class Place(Enum):
    """Where a claimed job is, in the words of the ledger's drawing."""

    WAITING = "waits"
    SUSPECT = "is a suspect"
    PIPE = "is in a child's pipe"
    OVER_LIMIT = "was killed for its time limit"
    SETTLING = "may have committed"
    SETTLED = "was settled by its child"
    ENDED = "has an outcome"
    RETURNING = "is to be released"
    CRASHED = "is to be charged a crash"
    LEAVING = "has its exit under way"
    GONE = "is gone"
    FORGOTTEN = "is not ours any more"


UNSENT = (Place.WAITING, Place.SUSPECT)
OUT = (Place.LEAVING, Place.GONE, Place.FORGOTTEN)
HELD = tuple(place for place in Place if place not in OUT)


@dataclass(slots=True)
class Claimed:
    """What the model knows of one claim of one job."""

    row: msg.ClaimedRow
    place: Place
    child: int | None = None
    kind: str | None = None  # the outcome
    deciding: bool = False  # in the pipe for what its time limit means
    cancelled: bool = False  # in the pipe
    interrupt: bool = False
    # Of the death of its child, while it may have committed: why it was killed, if for another's sake, and
    # how many ran.
    death: tuple[Reason | None, bool, int] = (None, False, 0)
    began: bool = False  # a child began it, and no outcome is known
    ours: bool = True
    stale: bool = False  # it lay in the pipe when the lease was lost


@dataclass(slots=True)
class Unit:
    """A command under way on the connection."""

    command: Any
    token: str = ""


class World:
    """A ledger with everything around it.

    Args:
        tasks: what is known of the tasks.
        options: the worker's.
    """

    def __init__(self, tasks: Mapping[str, TaskFacts] | None = None, **options: Any) -> None:
        self.now = 1000.0
        self.options = WorkerOptions(**options)
        many = self.options.async_concurrency > 1
        self.tasks = {
            name: facts._replace(asynchronous=facts.asynchronous and many)
            for name, facts in (tasks or {}).items()
        }
        self.ledger = Ledger(self.options, QUEUES, self.now, self.tasks)
        self.database = Database()
        self.link_up = False
        self.units: deque[Unit] = deque()
        self.events: list[msg.Event] = []
        self.children: dict[int, FakeChild] = {}
        self.known_children: set[int] = set()  # to the ledger
        self.alone: set[int] = set()  # children that have a suspect
        self.unborn = 0
        self.claimed: dict[Key, Claimed] = {}
        self.trust = Trust.SURE
        self.gates = msg.GatesRead()
        self.stop_asked = False
        self.charged: list[str] = []
        self.lost: list[str] = []  # of at_most_once tasks, ended as such
        self.told: list[msg.Tell] = []
        self.released = 0
        self.sweeps: list[tuple[float, str]] = []
        self.begun_once: set[str] = set()
        self._next_child = 0

    # What happens

    def cycle(self) -> list[Any]:
        """Tell the ledger what happened and perform its commands, as the parent's `cycle` does."""
        happened, self.events = self.events, []
        if self.ledger.limits.active:
            happened.append(
                msg.Seen({number: one.slate() for number, one in self.children.items()})
            )
        for event in happened:
            self._note(event)
            self.ledger.handle(event, self.now)
        done = []
        for command in self.ledger.commands(self.now):
            self._perform(command)
            done.append(command)
        if self.ledger.killing:
            self._note_killing()
        if any(
            isinstance(event, msg.LeaseLost)
            or (isinstance(event, msg.TrustChanged) and event.trust is Trust.LOST)
            for event in happened
        ):
            self._check_nothing_begins()
        if any(isinstance(event, msg.CancelAsked | msg.GatesRead) for event in happened):
            self._check_skips()
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
        places = [self.options.threads]
        if self.options.async_concurrency > 1:
            places.append(self.options.async_concurrency)
        self.children[self._next_child] = FakeChild(self._next_child, places, self.facts)
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
            if one.dead or one.killed or (one.closed and not one.inbox and not one.running)
        ]

    def wake(self, queue: str) -> None:
        self.events.append(msg.Woken(queue))

    def begin(self, child: FakeChild, track: int = 0, session: bool = True) -> Sent | None:
        """Let a child begin its next job, and check that it may run."""
        sent = child.begin(self.now, track, session)
        if sent is None:
            return None
        claimed = self._of(sent.held)
        if sent.over_limit is None:
            assert claimed.ours, "a job that was sent before the lease was lost began after that"
            claimed.began = True
            if self.facts(sent.task).at_most_once:
                assert claimed.row.id not in self.begun_once, "an at_most_once job began twice"
                self.begun_once.add(claimed.row.id)
        return sent

    def commit(self, sent: Sent) -> None:
        """Let a child write the success of a transactional job."""
        if sent.session and sent.committed is None:
            sent.committed = "committed" if self.database.commit(sent.held) else "late"

    def end(
        self,
        child: FakeChild,
        which: int = 0,
        seconds: float = 0.001,
        kind: str = "succeeded",
        result: str | None = None,
        delay: float | None = None,
    ) -> None:
        """Let a job of a child end."""
        sent = child.running[which % len(child.running)]
        if sent.over_limit is not None and kind not in ("failed", "retry"):
            kind = "failed"
        if kind == "succeeded":
            self.commit(sent)
        if kind == "retry" and sent.committed is None:
            self.begun_once.discard(sent.held.row.id)  # it may begin again, by its own policy
        child.end(sent, self.now, seconds, kind, result, delay)

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
        self.events.append(msg.ChildDied(number, child.slate(), cause))

    def cancel(self, ids: Iterable[str], interrupt: bool = False) -> None:
        told = self.database.request_cancel(ids)
        self.events.append(msg.CancelAsked(told, told if interrupt else {}))

    def hold_back(self, queues: Iterable[str] = (), tasks: Iterable[str] = ()) -> None:
        """Pause these, and nothing else."""
        self.events.append(msg.GatesRead(frozenset(queues), frozenset(tasks)))

    def lose_lease(self) -> None:
        self.database.rescue()
        self.events.append(msg.LeaseLost())

    def change_trust(self, trust: Trust) -> None:
        if trust is not self.trust:
            self.events.append(msg.TrustChanged(trust))

    def stop(self, at_once: bool = False) -> None:
        self.stop_asked = True
        self.events.append(msg.StopAsked(at_once))

    # What the ledger asks for

    def _perform(self, command: Any) -> None:
        match command:
            case msg.Spawn():
                decides = any(one.place is Place.OVER_LIMIT for one in self.claimed.values())
                assert not self.stop_asked or decides, "a child was started while draining"
                self.unborn += 1
                open_ones = sum(not one.closed for one in self.children.values())
                assert open_ones + self.unborn <= self.options.children + len(
                    [event for event in self.events if isinstance(event, msg.ChildDied)]
                ), "too many children"
            case msg.Send():
                self._send(command)
            case msg.Interrupt(number, serial, order):
                self._interrupt(self.children[number], serial, order)
            case msg.Skip(number, below, serials):
                self.children[number].skip(below, serials)
            case msg.CloseChild(number):
                assert self.stop_asked, "a child was closed while there is work"
                self.children[number].closed = True
            case msg.KillChild(number):
                self._kill(self.children[number])
            case msg.Tell(ended, late):
                claimed = self._leave(ended.held, Place.SETTLED)
                assert (claimed.kind == "late") == late
                assert ended.kind == "succeeded"
                claimed.place = Place.GONE
                self.told.append(command)
            case _:
                assert self.link_up, f"{command} without a connection"
                self._check(command)
                token = str(uuid.uuid4()) if isinstance(command, msg.Claim) else ""
                self.units.append(Unit(command, token))

    def _send(self, command: msg.Send) -> None:
        number, jobs, over_limit = command.child, command.jobs, command.over_limit
        child = self.children[number]
        assert jobs, "an empty frame was sent"
        assert not child.closed, "jobs were sent to a child that was closed"
        assert self.trust is Trust.SURE, "jobs were sent while the lease is in doubt"
        assert number not in self.alone, "a suspect is not alone"
        assert over_limit is not None or not self.stop_asked, "jobs were sent while draining"
        for held in jobs:
            claimed, facts = self._of(held), self.facts(held.row.task)
            before = [
                one
                for one in self._in_pipe(number)
                if self.facts(one.row.task).asynchronous == facts.asynchronous
            ]
            if over_limit is not None:
                assert claimed.place is Place.OVER_LIMIT, (
                    f"to be decided, though it {claimed.place}"
                )
                assert over_limit == self.limits(held.row)[1]
                assert len(jobs) == 1
            else:
                assert claimed.place in UNSENT, f"sent, though it {claimed.place.value}"
                if facts.at_most_once:
                    assert not claimed.began, "an at_most_once job may run again"
                    places = child.places[1 if facts.asynchronous else 0]
                    assert len(before) < places, "an at_most_once job lies behind another"
            if claimed.place is Place.SUSPECT:
                assert len(jobs) == 1
                assert not self._in_pipe(number), "a suspect is not alone"
                self.alone.add(number)
            assert not claimed.cancelled, "a cancelled job is sent"
            assert over_limit is not None or not self._paused(claimed), "a paused job is sent"
            claimed.place, claimed.child = Place.PIPE, number
            claimed.deciding = over_limit is not None
            claimed.stale = False
            if not child.dead:
                child.inbox.append(Sent(held, over_limit))

    def _interrupt(self, child: FakeChild, serial: int, order: Order) -> None:
        sent = next((one for one in child.running if one.serial == serial), None)
        if sent is None:  # it ended at the same moment
            assert serial in child.begun, "an order for what never began"
            return
        assert order not in sent.orders, "an order was given twice"
        soft, hard = self.limits(sent.held.row)
        ran = self.now - sent.began
        match order:
            case Order.SOFT_LIMIT:
                assert soft is not None
                assert ran >= soft
                assert not sent.orders
            case Order.HARD_LIMIT:
                assert hard is not None
                assert ran >= hard
                assert self.facts(sent.task).asynchronous
            case Order.CANCEL:
                assert self._of(sent.held).interrupt
        sent.orders[order] = self.now

    def _kill(self, child: FakeChild) -> None:
        child.killed = True
        if self.ledger.killing:
            assert self.stop_asked, "killed without being asked to"
            return
        assert self.options.pool == "prefork", "only children of a pool of processes are killed"
        member = self.ledger.crew.members[child.number]
        child.kills += 1
        assert child.kills == 1, "a child was killed twice"
        for sent in child.running:
            reason = member.killed_for.get(sent.serial)
            claimed, facts = self._of(sent.held), self.facts(sent.task)
            hard = self.limits(sent.held.row)[1]
            match reason:
                case Reason.LIMIT:
                    assert hard is not None
                    assert self.now >= sent.began + hard
                    assert Order.HARD_LIMIT in sent.orders or not facts.asynchronous
                case Reason.CANCEL:
                    assert claimed.interrupt
                    assert self.now >= sent.orders[Order.CANCEL] + self.options.grace
                case Reason.LOST:
                    assert facts.at_most_once
                    assert self.trust is Trust.LOST or not claimed.ours
                case None:
                    pass

    def _check(self, command: Any) -> None:
        match command:
            case msg.Claim():
                self._check_claim(command)
            case msg.Finish(batch):
                for ended in batch.ended:
                    self._note_given_up(ended.held)
                    claimed = self._leave(ended.held, Place.ENDED)
                    given_up = claimed.kind == "refused" and ended.kind == "failed"
                    assert given_up or ended.kind == claimed.kind, f"{ended} for {claimed}"
                    if (ended.error or {}).get("type") == "pgtasks.errors.JobLostError":
                        assert self.facts(ended.held.row.task).at_most_once
                        self.lost.append(ended.held.row.id)
                self._check_tokens(batch.claims)
            case msg.Release(jobs, claims):
                for held in jobs:
                    claimed = self._leave(held, *UNSENT, Place.RETURNING)
                    self._check_may_go_back(claimed)
                self.released += len(jobs)
                self._check_tokens(claims)
            case msg.Crash(jobs, claims, causes):
                assert len(causes) == len(jobs)
                for held in jobs:
                    self._note_given_up(held)
                    claimed = self._leave(held, Place.CRASHED)
                    self._check_may_go_back(claimed)
                    self.charged.append(held.row.id)
                self._check_tokens(claims)
            case msg.ReleaseLost(known):
                live = (*HELD, Place.LEAVING)
                own = {key[0] for key, one in self.claimed.items() if one.place in live}
                assert own <= set(known), "a token of a held job is called unknown"
            case msg.Settle(held, session):
                assert self._of(held).place is Place.SETTLING
                assert session == 1000 + held.serial
            case _:
                pass

    def _check_claim(self, command: msg.Claim) -> None:
        assert not self.stop_asked, "a claim while draining"
        assert self.trust is Trust.SURE, "a claim while the lease is in doubt"
        assert command.limit >= 1
        check_ranges(command)
        if command.sweep:
            self.sweeps.append((self.now, command.queue))
        kind = self.ledger.kinds[command.lane]
        if kind.at_most_once:
            asked = command.limit + sum(
                unit.command.limit
                for unit in self.units
                if isinstance(unit.command, msg.Claim) and unit.command.lane == command.lane
            )
            waiting = sum(
                one.place is Place.WAITING and one.row.task in kind.tasks
                for one in self.claimed.values()
            )
            assert asked + waiting <= self._free(kind.asynchronous), "more than can begin at once"

    def _free(self, asynchronous: bool) -> int:
        free = 0
        for number in self.known_children - self.alone:
            child = self.children.get(number)
            if child is None or child.closed:  # its death is not known yet
                continue
            track = [
                one
                for one in self._in_pipe(number)
                if self.facts(one.row.task).asynchronous == asynchronous
            ]
            free += max(0, child.places[1 if asynchronous else 0] - len(track))
        return free

    def _check_may_go_back(self, claimed: Claimed) -> None:
        once = self.facts(claimed.row.task).at_most_once
        assert not (once and claimed.began and claimed.ours), "an at_most_once job goes back"

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

    # What must have been done

    def _check_nothing_begins(self) -> None:
        """Nothing that lies in a pipe begins now, and what must not run twice is ended."""
        for child in self.living():
            for sent in child.inbox:
                assert sent.serial < child.skip_below, "it may begin without a lease"
            held = [*child.inbox, *child.running]
            once = any(self.facts(one.task).at_most_once for one in held)
            if once and self.options.pool == "prefork":
                assert child.killed, "an at_most_once job runs on without a lease"

    def _check_skips(self) -> None:
        for child in self.living():
            unwanted = {
                one.serial
                for one in child.inbox
                if self._of(one.held).cancelled
                or (one.over_limit is None and self._paused(self._of(one.held)))
            }
            if len(unwanted) <= SKIPS // 2:  # with others, that run
                below = {serial for serial in unwanted if serial < child.skip_below}
                assert unwanted <= {*child.skips, *below}, "a cancelled or paused job may begin"

    def check_duties(self) -> None:
        """Assert that everything that is due was done, and that the ledger wakes for what comes next."""
        wake = self.ledger.next_wake(self.now)
        for child in self.living():
            if child.killed or child.number not in self.known_children:
                continue
            for sent in child.inbox:
                for limit in self.limits(sent.held.row):
                    if limit is not None and sent.over_limit is None:
                        assert wake <= self.now + limit, "it may begin, and run too long unseen"
            for sent in child.running:
                if sent.over_limit is None or self._of(sent.held).cancelled:
                    self._check_duty(sent, wake)

    def _check_duty(self, sent: Sent, wake: float) -> None:
        facts, claimed = self.facts(sent.task), self._of(sent.held)
        soft, hard = self.limits(sent.held.row) if sent.over_limit is None else (None, None)
        kills = self.options.pool == "prefork"
        due = []
        if claimed.interrupt:
            assert Order.CANCEL in sent.orders, "a cancelled job runs on"
            if kills:
                due.append(max(sent.orders[Order.CANCEL] + self.options.grace, sent.began))
        if hard is not None and Order.HARD_LIMIT not in sent.orders:
            if facts.asynchronous or kills:
                due.append(sent.began + hard)
        elif hard is not None and kills and not claimed.interrupt:
            due.append(max(sent.began + hard + CANCEL_GRACE, sent.orders[Order.HARD_LIMIT]))
        if soft is not None and not sent.orders:
            due.append(sent.began + soft)
        if due and not (claimed.interrupt and Order.HARD_LIMIT in sent.orders):
            assert self.now < min(due), "something is due and was not done"
            assert wake <= min(due), "the ledger sleeps too long"

    def _of(self, held: msg.Held) -> Claimed:
        return self.claimed[held.token, held.row.id]

    def _in_pipe(self, number: int) -> list[Claimed]:
        return [
            one for one in self.claimed.values() if one.place is Place.PIPE and one.child == number
        ]

    def facts(self, task: str) -> TaskFacts:
        return self.tasks.get(task, TaskFacts())

    def limits(self, row: msg.ClaimedRow) -> tuple[float | None, float | None]:
        """Return the soft and the hard limit of a job."""
        facts = self.facts(row.task)
        if row.options is None:
            return facts.soft_time_limit, facts.time_limit
        return facts.soft_time_limit, float(row.options.removeprefix('{"time_limit":')[:-1])

    # The server

    def _execute(
        self, unit: Unit, how: Answer, locked: int = 0, cost: float = 0.001
    ) -> list[msg.Event]:
        command, database = unit.command, self.database
        if how != "ok":
            return self._unanswered(command, "again")
        match command:
            case msg.Look(lane, hot):
                tasks = self.ledger.kinds[lane].tasks
                return [msg.Looked(database.look(self.now, tasks or None, hot), lane, cost)]
            case msg.Claim():
                kind = self.ledger.kinds[command.lane]
                survey = msg.Surveyed(command.queue, database.survey(command.queue), command.lane)
                rows = database.claim(command, unit.token, locked, kind)
                claimed = msg.Claimed(command, unit.token, rows, cost)
                return [survey, claimed] if command.sweep else [claimed]
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
            case msg.Settle(held):
                return [msg.Settled(held, database.holds(held))]
            case _:
                raise AssertionError(f"no statement for {command}")

    def _unanswered(self, command: Any, reason: Literal["lost", "again"]) -> list[msg.Event]:
        match command:
            case msg.Finish(batch):
                slow = reason == "again" and len(batch.ended) % 2 == 0
                return [msg.Unwritten(batch, "slow" if slow else reason, "the server said no")]
            case msg.Release() | msg.Crash():
                return [msg.Unreleased(command)]
            case msg.Settle():
                return [msg.Unsettled(command)]
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
                    claimed = Claimed(row, place, kind=kind)
                    if not kind and self._paused(claimed):
                        claimed.place = Place.RETURNING
                    self.claimed[token, row.id] = claimed
            case msg.ChildStarted(number):
                self.known_children.add(number)
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
            case msg.Released(command):
                for held in command.jobs:
                    self._of(held).place = Place.GONE
            case msg.Settled(held, alive):
                claimed = self._of(held)
                if claimed.place is Place.SETTLING and alive:
                    self._note_interrupted(claimed)
                elif claimed.place is Place.SETTLING:
                    claimed.place, claimed.kind = Place.SETTLED, "committed"
            case msg.CancelAsked(cancel, interrupt):
                self._note_cancel(cancel, interrupt)
            case msg.LeaseLost():
                for claimed in self.claimed.values():
                    claimed.ours = claimed.deciding = False
                    claimed.stale = True
                    if claimed.place not in (Place.PIPE, Place.ENDED, Place.SETTLED, *OUT):
                        claimed.place = Place.FORGOTTEN
            case msg.TrustChanged(trust):
                self.trust = trust
                if trust is Trust.LOST:
                    self._note_give_up()
            case msg.StopAsked():
                self._note_give_up()
            case msg.GatesRead():
                self.gates = event
                for claimed in self.claimed.values():
                    if claimed.place in UNSENT and self._paused(claimed):
                        claimed.place = Place.RETURNING
            case _:
                pass

    def _paused(self, claimed: Claimed) -> bool:
        """Whether a job may not begin."""
        row = claimed.row
        return row.queue in self.gates.paused_queues or row.task in self.gates.paused_tasks

    def _note_give_up(self) -> None:
        for claimed in self.claimed.values():
            claimed.stale |= self.trust is Trust.LOST
            if claimed.place in UNSENT:
                claimed.place = Place.RETURNING

    def _note_killing(self) -> None:
        for (token, _), claimed in self.claimed.items():
            self._note_given_up(msg.Held(0, claimed.row, token))

    def _note_given_up(self, held: msg.Held) -> None:
        """Take note that nobody is left to say what a time limit means."""
        claimed = self._of(held)
        if claimed.place is Place.OVER_LIMIT and self.ledger.killing:
            once = self.facts(claimed.row.task).at_most_once
            claimed.place = Place.ENDED if once else Place.CRASHED
            claimed.kind = "failed"

    def _note_cancel(
        self, cancel: Mapping[str, frozenset[str]], interrupt: Mapping[str, frozenset[str]]
    ) -> None:
        given_back = {(held.token, held.row.id) for held in self.ledger.outbox.to_release}
        for (token, id), claimed in self.claimed.items():
            if id not in cancel.get(token, ()):
                continue
            if (token, id) in given_back:  # it waited too long: the database will cancel it
                claimed.place = Place.RETURNING
            elif claimed.place in (*UNSENT, Place.OVER_LIMIT):
                claimed.place, claimed.kind = Place.ENDED, "cancelled"
            elif claimed.place is Place.PIPE:
                claimed.cancelled = True
                claimed.interrupt |= id in interrupt.get(token, ())

    @property
    def _open(self) -> bool:
        """Whether what no child has begun may wait."""
        return self.ledger.phase is Phase.RUNNING and self.trust is not Trust.LOST

    @property
    def _unbegun(self) -> Place:
        """Where a job goes that no child has begun."""
        return Place.WAITING if self._open else Place.RETURNING

    def _note_reported(self, number: int, records: Iterable[Sequence[Any]]) -> None:
        pipe = {held.serial: held for held in self.ledger.crew.members[number].jobs()}
        for serial, kind, *_ in records:
            if serial not in pipe:
                continue
            claimed = self._of(pipe.pop(serial))
            assert claimed.child == number
            self.alone.discard(number)
            if kind == "skipped" and claimed.cancelled:
                claimed.place, claimed.kind = Place.ENDED, "cancelled"
            elif kind == "skipped":
                claimed.place = Place.OVER_LIMIT if claimed.deciding else Place.RETURNING
            else:
                by_itself = kind in ("committed", "late")
                claimed.place = Place.SETTLED if by_itself else Place.ENDED
                claimed.kind = kind

    def _note_death(self, number: int, slots: Sequence[msg.Running]) -> None:
        self.known_children.discard(number)
        member = self.ledger.crew.members.get(number)
        if member is None:
            return
        begun = {one.serial: one for one in slots}
        jobs = {held.serial: self._of(held) for held in member.jobs()}
        several = sum(serial in begun for serial in jobs)
        for serial, claimed in jobs.items():
            assert (claimed.place, claimed.child) == (Place.PIPE, number)
            if serial in begun:
                reason = member.killed_for.get(serial)
                claimed.death = (reason, bool(member.killed_for), several)
                if begun[serial].session:
                    claimed.place = Place.SETTLING
                else:
                    self._note_interrupted(claimed)
            elif claimed.cancelled:
                claimed.place, claimed.kind = Place.ENDED, "cancelled"
            elif claimed.deciding:
                claimed.place = Place.OVER_LIMIT
            else:
                self._note_again(claimed, Place.SUSPECT if number in self.alone else Place.WAITING)
        self.alone.discard(number)

    def _note_interrupted(self, claimed: Claimed) -> None:
        reason, child_was_killed, several = claimed.death
        if claimed.cancelled:
            claimed.place, claimed.kind = Place.ENDED, "cancelled"
        elif reason is Reason.LIMIT and not self.ledger.killing:
            claimed.place = Place.OVER_LIMIT
        elif self.facts(claimed.row.task).at_most_once:
            claimed.place, claimed.kind = Place.ENDED, "failed"
        elif self.ledger.killing:
            claimed.place = Place.RETURNING
        elif claimed.deciding and (child_was_killed or several > 1):
            claimed.place = Place.OVER_LIMIT
        elif child_was_killed:
            self._note_again(claimed, Place.WAITING)
        elif several > 1:
            self._note_again(claimed, Place.SUSPECT)
        elif claimed.row.crashes + 1 >= MAX_CRASHES:
            claimed.place, claimed.kind = Place.ENDED, "quarantined"
        else:
            claimed.place = Place.CRASHED

    def _note_again(self, claimed: Claimed, place: Place) -> None:
        waits = self._open and not claimed.stale and not self._paused(claimed)
        claimed.place = place if waits else Place.RETURNING

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
        while child.running or self.begin(child):
            self.end(child)
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
        children = [(child.number, len(child.inbox), len(child.running)) for child in self.living()]
        jobs = list(self.database.jobs.values())[:3]
        return f"{self.now:.3f} {self.ledger.phase} {held} {list(self.units)} {children} {jobs}"


def weight(thing: Any, seen: set[int] | None = None) -> int:
    """Count what lies in a ledger's containers, at any depth: what would grow if something leaked."""
    seen = set() if seen is None else seen
    if isinstance(thing, msg.Held | msg.Ended | str | bytes):
        return 1
    if isinstance(thing, dict):
        return len(thing) + sum(weight(value, seen) for value in thing.values())
    if isinstance(thing, list | tuple | set | deque):
        return len(thing) + sum(weight(value, seen) for value in thing)
    if isinstance(thing, msg.Batch):
        return len(thing.ended) + len(thing.claims)
    if type(thing).__module__.startswith("pgtasks.worker.") and id(thing) not in seen:
        seen.add(id(thing))
        names = getattr(type(thing), "__slots__", None) or vars(thing)
        return sum(weight(getattr(thing, name), seen) for name in names)
    return 0
