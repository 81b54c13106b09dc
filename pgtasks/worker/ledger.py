"""The parent's record of claimed jobs and who has them. Pure: events in, commands out, no clock.

The parent tells what happened (`handle`) and performs what is asked for (`commands`); nothing else
decides anything. A job that this worker claimed is, until it leaves the ledger, in exactly one place:

    waiting ──Send──► in a child's pipe ──Reported──► outcomes ──Finish──► being written ──► gone
       │                    │ ChildDied                    ▲                      │ refused or lost
       │◄── not begun ──────┤                              └──────────────────────┘
       └──Release           ├─ begun ──Crash
                            ├─ begun, at_most_once ──► failed as lost
                            ├─ one of several ──► a suspect: runs again, alone
                            ├─ killed for its time limit ──► a child says what that means ──► outcomes
                            └─ transactional ──Settle──► one of these, or gone: it had committed

Promises, which the property tests drive through any order of events
    - every claimed job leaves: finished, released, or charged a crash; once, while the connection holds
    - a job is in one child at most, and never sent again after an outcome
    - only the job that a dead child had begun is charged; if several were begun, none is, and each runs
      again alone
    - a job of an at_most_once task that may have begun never runs again
    - what is paused does not begin, once its child looked: it is released
    - nor does a cancelled one begin, once its child looked, or begin again after its child died
    - nothing is claimed while draining, or while the lease cannot be trusted, and what had not been sent
      is released

Its parts: `Lane`, what waits and is asked for; `Crew`, who has what; `Limits`, who must be interrupted;
`Aftermath`, what becomes of the jobs of dead children; `Gates`, what is paused or limited; `Outbox`, what leaves
and the claims that end with it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import assert_never

from pgtasks.options import MAX_CRASHES, WorkerOptions
from pgtasks.worker.aftermath import Aftermath, Death, cancelled, quarantined
from pgtasks.worker.crew import Crew
from pgtasks.worker.facts import Facts
from pgtasks.worker.gates import Gates
from pgtasks.worker.lanes import Lane, lane_kinds, line
from pgtasks.worker.limits import Limits, Reason
from pgtasks.worker.messages import (
    CancelAsked,
    ChildDied,
    ChildStarted,
    Claim,
    Claimed,
    CloseChild,
    Command,
    Connected,
    Disconnected,
    Ended,
    Event,
    GatesRead,
    Held,
    IdleSet,
    Interrupt,
    KillChild,
    LaneKind,
    LeaseLost,
    Look,
    Looked,
    LostKept,
    Promoted,
    Refused,
    Released,
    Report,
    Reported,
    Running,
    Seen,
    Send,
    Settled,
    Skip,
    Spawn,
    StopAsked,
    Surveyed,
    TaskFacts,
    Tell,
    Trust,
    TrustChanged,
    Unreleased,
    Unsettled,
    Unwritten,
    Woken,
    Written,
)
from pgtasks.worker.outbox import Outbox

# If no job could be sent for so long, those that wait in the parent are given back, for others to take.
WAIT_LIMIT = 5.0

# A child that dies before its first job (a hook of the app raised) is followed by another after this.
SPAWN_AGAIN = 1.0

# What a child reports of a transactional job, whose success it wrote itself, see wire.
BY_ITSELF = frozenset(("committed", "late"))


class Phase(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


class Ledger:
    """Decides what a worker does next.

    Args:
        options: the worker's.
        queues: which queues it serves.
        now: monotonic seconds.
        tasks: what is known of the tasks that it can run.
    """

    def __init__(
        self,
        options: WorkerOptions,
        queues: Sequence[str],
        now: float,
        tasks: Mapping[str, TaskFacts] | None = None,
    ) -> None:
        self.options = options
        self.phase = Phase.STARTING
        self.connected = False
        self.trust = Trust.SURE

        self._facts = Facts(tasks or {})
        kinds = lane_kinds(self._facts.tasks)
        self.lanes = [Lane(number, kind, options, queues, now) for number, kind in enumerate(kinds)]
        self._by_turn = sorted(self.lanes, key=lambda lane: not lane.kind.at_most_once)
        self._lane_of = {name: lane for lane in self.lanes for name in lane.kind.tasks}
        self.crew = Crew(options)
        self.limits = Limits(kills=options.pool == "prefork", grace=options.grace)
        self.outbox = Outbox(now)
        self.serial = 0
        self.aftermath = Aftermath(self._facts, self.outbox)
        self.gates = Gates()
        # serial -> child, of cancelled jobs in pipes: they end as cancelled if the child has not begun them.
        self.cancelled: dict[int, int] = {}
        self.skips_changed: set[int] = set()  # children
        self.skip_below = 0
        self.kill_children: list[int] = []

        self.spawning = 0
        self.spawn_after = now
        self.drain_deadline: float | None = None
        self.killing = False
        self.late = 0
        self.finished: Counter[str] = Counter()  # by task
        self.ended_by_kind: Counter[str] = Counter()
        self._tell: list[Tell] = []

    # Events

    def handle(self, event: Event, now: float) -> None:
        """Take note of what happened."""
        match event:
            case Reported():
                self._reported(event, now)
            case Claimed():
                self._claimed(event, now)
            case Written():
                self._written(event, now)
            case Unwritten():
                self.outbox.unwritten(event, now)
            case Looked(queues, number, cost):
                self.lanes[number].intake.looked(queues, cost, now)
            case Surveyed(queue, priorities, number):
                self.lanes[number].intake.surveyed(queue, priorities)
            case Promoted(queue):
                self.lanes[0].intake.promoted(queue, now)
                for lane in self.lanes[1:]:
                    lane.intake.woken(queue, now)
            case IdleSet(idle):
                for lane in self.lanes:
                    lane.intake.idle_set(idle, now)
            case LostKept():
                self.outbox.lost_kept(now)
            case Refused(question):
                number = question.lane if isinstance(question, Look | Claim) else 0
                self.lanes[number].intake.refused(question, now)
            case Woken(woken):
                for lane in self.lanes:
                    lane.intake.woken(woken, now)
            case Released(command):
                self.outbox.released(command)
            case Unreleased(command):
                self.outbox.unreleased(command, now)
            case Seen(running):
                self.limits.seen(running)
            case ChildStarted(child):
                self.spawning -= 1
                self.crew.add(child)
                if self.skip_below:
                    self.skips_changed.add(child)
            case ChildDied():
                self._child_died(event, now)
            case Settled(held, alive):
                self._settled(held, alive, now)
            case Unsettled(settle):
                self.outbox.unsettled(
                    settle, now, again=settle.held.serial in self.aftermath.settling
                )
            case CancelAsked():
                self._cancel_asked(event, now)
            case GatesRead():
                self._gates_read(event, now)
            case Connected():
                self._connected(now)
            case Disconnected():
                self.connected = False
            case StopAsked(at_once):
                self._stop_asked(at_once, now)
            case LeaseLost():
                self._lease_lost(now)
            case TrustChanged(trust):
                self._trust_changed(trust)
            case _:
                assert_never(event)

    def _connected(self, now: float) -> None:
        self.connected = True
        if self.phase is Phase.STARTING:
            self.phase = Phase.RUNNING
        self.outbox.connected(now)
        for lane in self.lanes:
            lane.intake.connected(now)

    # What was claimed

    def _claimed(self, event: Claimed, now: float) -> None:
        lane = self.lanes[event.order.lane]
        lane.intake.claimed(event.order, event.rows, event.cost, now)
        if not event.rows:
            return
        lane.spend(len(event.rows), now)
        self.outbox.claimed(event.token, len(event.rows))
        self.gates.claimed(event.token, event.order.queue, lane)
        taken = []
        for row in sorted(event.rows, key=line):
            self.serial += 1
            held = Held(self.serial, row, event.token)
            if row.expired:
                self.outbox.add(Ended(held, "expired", None, None, None, None, now), now)
            elif row.crashes >= MAX_CRASHES:
                self.outbox.add(quarantined(held, None, None, now), now)
            else:
                taken.append(held)
        if self._keeps:
            waits, paused = self.gates.part(taken)
            lane.take(waits, now)
            self.outbox.release(paused)
        else:
            self.outbox.release(taken)

    # What children said

    def _reported(self, event: Reported, now: float) -> None:
        """Take outcomes; 40,000 a second come through here, so what is rare is asked for once."""
        watched = bool(
            self.limits.active or self.aftermath.deciding or self.cancelled or self.gates.held_back
        )
        lane_of, first = self._lane_of, self.lanes[0]
        outcomes: list[Ended] = []
        for held, record in self.crew.reported(event.child, event.records):
            serial, kind, result, error, delay, started, stopped = record
            lane = lane_of.get(held.row.task, first)
            lane.in_pipes -= 1
            limit = self.aftermath.deciding.get(serial) if watched else None
            is_cancelled = self._forget(serial) if watched else False
            if kind == "skipped":
                self._skipped(held, is_cancelled, limit, now)
                continue
            # One that was killed for its limit took as long at least.
            lane.pace.measure(held.row.task, stopped - started if limit is None else limit)
            ended = Ended(held, kind, result, error, delay, started, stopped)
            if kind in BY_ITSELF:
                self._ended_by_itself(ended, late=kind == "late")
            else:
                outcomes.append(ended)
        self.outbox.extend(outcomes, now)

    def _skipped(self, held: Held, is_cancelled: bool, limit: float | None, now: float) -> None:
        """Go on with a job that its child did not begin: it was cancelled or paused, or the lease was in doubt."""
        if is_cancelled:
            self.outbox.add(cancelled(held, None, now), now)
        elif limit is not None:
            self.aftermath.undecided(held, limit)
        else:
            self.outbox.release([held])

    def _ended_by_itself(self, ended: Ended, *, late: bool) -> None:
        """Take note of a transactional job, whose child wrote the success itself."""
        self.outbox.gone([ended.held])
        ended = ended._replace(kind="succeeded")
        self._tell.append(Tell(ended, late))
        self._freed([ended], ended.stopped)
        if late:
            self.late += 1
        else:
            self.finished[ended.held.row.task] += 1
            self.ended_by_kind["succeeded"] += 1

    def _written(self, event: Written, now: float) -> None:
        self.outbox.written(event)
        batch, ids = event.batch, event.ids
        done = [ended for ended in batch.ended if batch.again or ended.held.row.id in ids]
        self.late += len(batch.ended) - len(done)
        self.finished.update(ended.held.row.task for ended in done)
        self.ended_by_kind.update(ended.kind for ended in done)
        for ended in done:
            if ended.kind == "retry":
                due = ended.stopped + (ended.delay or 0.0)
                self.lanes[0].intake.scheduled(ended.held.row.queue, due)
        self._freed(done, now)

    def _freed(self, ended: Sequence[Ended], now: float) -> None:
        """Ask limited queues anew of which jobs ended."""
        if self.gates.read.limited_queues:
            for queue in {one.held.row.queue for one in ended}:
                for lane in self.lanes:
                    lane.intake.freed(queue, now)

    # Children that are gone

    def _child_died(self, event: ChildDied, now: float) -> None:
        member = self.crew.remove(event.child)
        if member is None:  # it died before it was ready
            self.spawning -= 1
            return
        slots = {one.serial: one for one in event.running if one.serial in member}
        if not slots and not member.reported and event.cause.get("signal") is None:
            self.spawn_after = now + SPAWN_AGAIN
        again: list[Held] = []
        for held in member.jobs():
            self._lane(held).in_pipes -= 1
            limit = self.aftermath.deciding.get(held.serial)
            is_cancelled = self._forget(held.serial)
            running = slots.get(held.serial)
            if running is None:
                if is_cancelled:
                    self.outbox.add(cancelled(held, None, now), now)
                elif limit is not None:
                    self.aftermath.undecided(held, limit)
                elif member.alone:
                    self.aftermath.suspects.append(held)
                else:
                    again.append(held)
                continue
            death = Death(
                running,
                event.cause,
                member.killed_for.get(held.serial),
                bool(member.killed_for),
                len(slots) > 1,
                is_cancelled,
                limit,
            )
            if self.aftermath.begun(held, death, killing=self.killing, now=now):
                again.append(held)
        self._release_suspects()
        self._take_back(again, now)

    def _settled(self, held: Held, alive: bool, now: float) -> None:
        """Go on with a transactional job whose child died, now that it is known whether it committed."""
        self.outbox.releasing -= 1
        if held.serial not in self.aftermath.settling:
            return  # the lease was lost meanwhile, and so it has our token no more
        if not alive:
            self._ended_by_itself(self.aftermath.committed(held, now), late=False)
        elif self.aftermath.alive(held, killing=self.killing, now=now):
            self._take_back([held], now)
        self._release_suspects()

    def _release_suspects(self) -> None:
        """Let suspects go that may not wait here."""
        suspects = self.aftermath.give_up()
        self.outbox.release([held for held in suspects if not self._waits(held)])
        self.aftermath.suspects = [held for held in suspects if self._waits(held)]

    def _take_back(self, jobs: Sequence[Held], now: float) -> None:
        """Let jobs that no child has begun wait again, before all others, or go."""
        self.outbox.release([held for held in jobs if not self._waits(held)])
        for lane in self.lanes:
            lane.take_back(
                (held for held in jobs if self._lane(held) is lane and self._waits(held)), now
            )

    # Cancel, leases, the end

    def _cancel_asked(self, event: CancelAsked, now: float) -> None:
        """Cancel what has not begun; interrupt what has, if that was asked for."""

        def asked(held: Held, of: Mapping[str, frozenset[str]]) -> bool:
            return held.row.id in of.get(held.token, ())

        for lane in self.lanes:
            hit = [held for held in lane.waiting if asked(held, event.cancel)]
            for held in hit:
                lane.waiting.remove(held)
                self.outbox.add(cancelled(held, None, now), now)
        self.aftermath.cancel(lambda held: asked(held, event.cancel), now)
        for number, member in self.crew.members.items():
            for held in member.jobs():
                if not asked(held, event.cancel):
                    continue
                # Whether it has begun, the child knows: it looks before it begins one.
                if held.serial not in self.cancelled:
                    self.cancelled[held.serial] = number
                    self.skips_changed.add(number)
                if asked(held, event.interrupt):
                    self.limits.cancel(held.serial, number, self._facts.of(held).asynchronous)

    def _gates_read(self, event: GatesRead, now: float) -> None:
        """Give back what is paused and has not begun; go by the limits from now on."""
        before, self.gates.read = self.gates.read, event
        for lane in self.lanes:
            lane.intake.limited = event.limited_queues
            if self.gates.lets_go(before):
                lane.intake.woken(None, now)
            waits, paused = self.gates.part(lane.waiting)
            if paused:
                lane.waiting = deque(waits)
                self.outbox.release(paused)
        self._release_suspects()
        self.skips_changed |= self.gates.hold_back(self.crew.members, self.aftermath.deciding)

    def _stop_asked(self, at_once: bool, now: float) -> None:
        if self.phase is Phase.DRAINING or at_once:
            self.killing = True
        if self.phase is not Phase.STOPPED:
            self.phase = Phase.DRAINING
            if self.drain_deadline is None:
                self.drain_deadline = now + self.options.grace
            self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        for lane in self.lanes:
            self.outbox.release(lane.give_up())
        self.outbox.release(self.aftermath.give_up())

    def _lease_lost(self, now: float) -> None:
        """Forget what was not begun; what runs may end, and its finish will be refused as late."""
        waiting = chain.from_iterable(lane.give_up() for lane in self.lanes)
        self.outbox.gone(waiting)
        self.aftermath.lease_lost()
        self.outbox.lease_lost()
        self._stop_unbegun()

    def _trust_changed(self, trust: Trust) -> None:
        self.trust = trust
        if trust is Trust.LOST:
            self._give_up_waiting()
            self._stop_unbegun()

    def _stop_unbegun(self) -> None:
        """Let nothing begin that lies in a pipe, and end what must not run twice."""
        self.skip_below = self.serial + 1
        self.skips_changed.update(self.crew.members)
        for number, member in self.crew.members.items():
            for held in member.jobs():
                if self._facts.of(held).at_most_once and self.options.pool == "prefork":
                    if not member.killed_for:
                        self.kill_children.append(number)
                    member.killed_for.setdefault(held.serial, Reason.LOST)

    # Commands

    def commands(self, now: float) -> Iterator[Command]:
        """Yield what is to be done now."""
        yield from self._tell
        self._tell.clear()
        yield from self._kill(now)
        yield from self._skip()
        yield from self._interrupt(now)
        if self.connected:
            claiming = any(lane.intake.claiming for lane in self.lanes)
            yield from self._give_back(claiming, now)
            at_once = not self.crew.short_in_pipes or self.phase is not Phase.RUNNING
            finish = self.outbox.finish(at_once, now)
            if finish is not None:
                yield finish
        if self.phase is Phase.RUNNING:
            if now >= self.spawn_after:
                while len(self.crew.members) + self.spawning < self.options.children:
                    self.spawning += 1
                    yield Spawn()
            if self.trust is Trust.SURE:
                yield from self._send(now)
                if self.connected:
                    yield from self._ask(now)
        elif self.phase is Phase.DRAINING:
            yield from self._drain(now)

    def _kill(self, now: float) -> Iterator[Command]:
        for number in self.kill_children:
            if number in self.crew.members:
                yield KillChild(number)
        self.kill_children.clear()
        overdue = self.drain_deadline is not None and now >= self.drain_deadline
        if overdue or self.killing:
            self.killing = True
            for number, member in self.crew.members.items():
                if not member.empty or overdue:  # overdue and empty: it hangs on its way out
                    yield KillChild(number)
            self.aftermath.kill(now)

    def _skip(self) -> Iterator[Command]:
        for number in sorted(self.skips_changed):
            if number in self.crew.members:
                serials = [
                    serial
                    for serial, child in chain(self.cancelled.items(), self.gates.held_back.items())
                    if child == number
                ]
                yield Skip(number, self.skip_below, serials)
        self.skips_changed.clear()

    def _interrupt(self, now: float) -> Iterator[Command]:
        for verdict in self.limits.due(now):
            member = self.crew.members.get(verdict.child)
            if member is None or verdict.serial not in member:
                continue
            if verdict.order is not None:
                yield Interrupt(verdict.child, verdict.serial, verdict.order)
            elif verdict.reason is not None:
                if not member.killed_for:
                    yield KillChild(verdict.child)
                member.killed_for.setdefault(verdict.serial, verdict.reason)

    def _give_back(self, claiming: bool, now: float) -> Iterator[Command]:
        for lane in self.lanes:
            if lane.waiting and now - lane.waiting_since > WAIT_LIMIT:
                self.outbox.release(lane.give_up())
        yield from self.outbox.returns(claiming, now)

    def _ask(self, now: float) -> Iterator[Command]:
        """Ask for jobs: none before there are children, or while the database takes nothing back."""
        blocked = not self.crew.members or self.outbox.must_release_lost or self.outbox.full
        for lane in self.lanes:
            free = self.crew.free(lane) if lane.kind.at_most_once else 0
            want = 0 if blocked else lane.want(self.options.children, free)
            room = 0
            if lane.intake.limited:
                room = self.gates.room(lane, self.options.children, self.outbox.claims)
            yield from lane.intake.questions(lane.allowed(want, now), now, room)

    def _send(self, now: float) -> Iterator[Command]:
        yield from self._send_over_limit()
        self.crew.share_anew()
        suspects = self.aftermath.suspects
        while suspects:
            held = suspects[0]
            number = self.crew.place_alone(held, self._lane(held))
            if number is None:
                break
            del suspects[0]
            yield self._sent(number, [held])
        # First at_most_once jobs: they were claimed for places that are free now.
        for lane in self._by_turn:
            for number, jobs in self.crew.place(lane):
                lane.waiting_since = now
                yield self._sent(number, jobs)
            coming = self.connected and (lane.intake.hot or lane.intake.claiming)
            if lane.kind.at_most_once and (lane.waiting or coming):
                self.crew.keep_free(lane)

    def _send_over_limit(self) -> Iterator[Command]:
        """Let a child say what its time limit means for a job: its task's policy and hooks are user code."""
        while self.aftermath.over_limit:
            held, hard = self.aftermath.over_limit[0]
            self.serial += 1  # by its old one it may be among those that are skipped
            held = held._replace(serial=self.serial)
            number = self.crew.place_first(held, self._lane(held))
            if number is None:
                return
            del self.aftermath.over_limit[0]
            self.aftermath.deciding[held.serial] = hard
            yield Send(number, [held], hard)

    def _sent(self, number: int, jobs: Sequence[Held]) -> Send:
        for held in jobs:
            row = held.row
            if row.options is not None or row.task in self._facts.limited:
                soft, hard = self._facts.limits(held)
                if soft is not None or hard is not None:
                    apart = self._facts.of(held).asynchronous
                    self.limits.watch(held.serial, number, soft, hard, apart)
        return Send(number, jobs)

    def _drain(self, now: float) -> Iterator[Command]:
        if self.aftermath.over_limit and self.trust is Trust.SURE:
            yield from self._send_over_limit()
            if self.aftermath.over_limit and not self.spawning and now >= self.spawn_after:
                self.spawning += 1
                yield Spawn()
        for number, member in self.crew.members.items():
            if member.empty and not member.closing:
                member.closing = True
                yield CloseChild(number)
        # Jobs that are being claimed right now would stay behind.
        coming = any(lane.intake.claiming for lane in self.lanes)
        if (
            not self.crew.members
            and not self.spawning
            and not self.aftermath.over_limit
            and self.outbox.empty
            and not (self.connected and coming)
        ):
            self.phase = Phase.STOPPED

    # What is known

    @property
    def _keeps(self) -> bool:
        """Whether what has not begun may wait here."""
        return self.phase is not Phase.DRAINING and self.trust is not Trust.LOST

    def _waits(self, held: Held) -> bool:
        """Whether a job that was sent may wait here again: children skip it if the lease was lost since."""
        return self._keeps and held.serial >= self.skip_below and not self.gates.paused(held)

    def _lane(self, held: Held) -> Lane:
        return self._lane_of.get(held.row.task, self.lanes[0])

    def _forget(self, serial: int) -> bool:
        """Watch a job no longer that a child had; returns whether it was cancelled meanwhile."""
        if self.limits.active:
            self.limits.forget([serial])
        if self.aftermath.deciding:
            self.aftermath.deciding.pop(serial, None)
        if serial in self.gates.held_back:
            self.skips_changed.add(self.gates.held_back.pop(serial))
        if serial not in self.cancelled:
            return False
        self.skips_changed.add(self.cancelled.pop(serial))
        return True

    # For the parent

    @property
    def done(self) -> bool:
        """Whether the worker may end."""
        return self.phase is Phase.STOPPED

    @property
    def kinds(self) -> list[LaneKind]:
        """What the lanes are for, by number."""
        return [lane.kind for lane in self.lanes]

    def held_count(self) -> int:
        """Return how many claimed jobs have no outcome yet."""
        return sum(lane.held() for lane in self.lanes) + self.aftermath.held()

    def next_wake(self, now: float) -> float:
        """Return the moment at which `commands` has something to do even if nothing happens."""
        moments = [now + 1.0, self.limits.next_wake(now)]
        if self.connected:
            moments.append(self.outbox.next_wake(now))
        if self.phase is Phase.RUNNING:
            if self.connected and self.trust is Trust.SURE:
                moments += [lane.intake.next_wake() for lane in self.lanes]
                moments += [lane.next_token(now) for lane in self.lanes]
            if len(self.crew.members) + self.spawning < self.options.children:
                moments.append(self.spawn_after)
        elif self.aftermath.over_limit and not self.spawning and self.trust is Trust.SURE:
            moments.append(self.spawn_after)
        if self.drain_deadline is not None and not self.killing:
            moments.append(self.drain_deadline)
        return min(moments)

    def running(self, slates: Mapping[int, Sequence[Running]]) -> list[Held]:
        """Return the jobs that children run, by what their slates say."""
        return self.crew.running(slates)

    def reports(self, slates: Mapping[int, Sequence[Report]]) -> dict[int, tuple[Held, Report]]:
        """Return by serial how far the jobs that children run are, by what their slates say."""
        return self.crew.reports(slates)
